"""What steers a UNet by pictures: when, how strongly, in which part, and for which models; Canny's edges."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import TINY, randomised, tiny_net
from tests.models.test_controlnet import HINT
from torch import Tensor

from limner.control import Loaded, check_fit, edges, load_control, steering
from limner.errors import BadInput, BadWeights
from limner.image import to_pil
from limner.models.controlnet import ControlNet, ControlNetConfig
from limner.models.t2i_adapter import T2iAdapter, T2iAdapterConfig
from limner.models.unet import Unet, UnetConfig
from limner.nn.tiles import Window
from limner.pipeline import Model, load
from limner.recipe import Control
from limner.types import Cond
from limner.weights.io import write_tensors

CONFIGS = {family: TINY[family]["denoiser"] for family in ("sd15", "sd2", "sdxl")}
ADAPTERS = {
    "sd15": T2iAdapterConfig(widths=(64, 128)),
    "sdxl": T2iAdapterConfig(factor=16, widths=(64, 128, 128, 128)),
}
CLOCK = torch.tensor([500.0])


def control_net(family: str = "sd15") -> ControlNet:
    return randomised(ControlNet(ControlNetConfig(**vars(CONFIGS[family]) | {"out": 0}, hint=HINT)), seed=2)


def adapter_net(family: str = "sd15", picture: int = 3) -> T2iAdapter:
    return randomised(T2iAdapter(replace(ADAPTERS[family], picture=picture)), seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_checkpoint) -> Model:
    return load(str(tiny_checkpoint("sd15")))


@pytest.fixture(scope="module")
def hint() -> Tensor:
    return torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def start() -> tuple[Tensor, Cond]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 6, generator=draw), Cond(torch.randn(2, 5, 64, generator=draw))


@torch.no_grad()
def test_a_controlnet_and_an_adapter_add_up(hint, start):
    (x, cond), control, adapter = start, control_net(), adapter_net()
    told = steering([Loaded(control, hint, 0.5), Loaded(adapter, hint, 2.0), Loaded(control, 1 - hint)])(
        x, CLOCK, cond, 0.5
    )
    first, second = (control(x, CLOCK, cond, each.expand(2, -1, -1, -1)) for each in (hint, 1 - hint))
    assert len(told.control) == len(first) == 5 and len(told.hints) == 2
    for found, a, b in zip(told.control, first, second, strict=True):
        torch.testing.assert_close(found, 0.5 * a + b, rtol=0, atol=1e-6)
    for found, want in zip(told.hints, adapter(hint), strict=True):
        torch.testing.assert_close(found, 2 * want.expand(2, -1, -1, -1))
    assert torch.equal(told.tokens, cond.tokens)
    unet = tiny_net("sd15", "denoiser")
    apart = torch.cat([unet(x[i : i + 1], CLOCK, told.row(i)) for i in range(2)])
    torch.testing.assert_close(unet(x, CLOCK, told), apart, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_strength_0_and_times_outside_change_nothing_bit_for_bit(model, hint, start):
    x, cond = start
    plain, walk = model.denoiser(cond), [1.0, 0.75, 0.5, 0.25, 0.0]
    for net in (control_net(), adapter_net()):
        still = model.denoiser(cond, steer=steering([Loaded(net, hint, strength=0.0)]))
        part = model.denoiser(cond, steer=steering([Loaded(net, hint, start=0.25, end=0.75).over(walk)]))
        assert torch.equal(still(x, 0.5), plain(x, 0.5))
        for t in (1.0, 0.76, 0.25, 0.01):
            assert torch.equal(part(x, t), plain(x, t)), t
        for t in (0.75, 0.5, 0.26):
            assert float((part(x, t) - plain(x, t)).abs().max()) > 1e-3, t


@torch.no_grad()
def test_a_hint_takes_the_size_of_the_picture(hint, start):
    (x, cond), net = start, control_net()
    small = Loaded(net, torch.nn.functional.avg_pool2d(hint, 2))
    assert small.fitted(8, 6).hint.shape == hint.shape
    assert Loaded(net, hint).fitted(8, 6).hint is hint
    assert small.fitted(20, 30).hint.min() >= 0 and small.fitted(20, 30).hint.max() <= 1
    assert len(steering([small])(x, CLOCK, cond, 0.5).control) == 5


@torch.no_grad()
def test_a_window_sees_its_part_of_the_hint(hint, start):
    (x, cond), net = start, adapter_net()
    cut = Loaded(net, hint).at(Window(2, 1, 4, 3))
    assert torch.equal(cut.hint, hint[:, :, 16:48, 8:32])
    told = steering([cut])(x[:, :, 2:6, 1:4], CLOCK, cond, 0.5)
    assert [tuple(each.shape) for each in told.hints] == [(2, 64, 4, 3), (2, 128, 2, 2)]
    around = Loaded(net, hint).at(Window(6, 0, 4, 6))  # of a torus
    assert torch.equal(around.hint, hint.roll(16, dims=2)[:, :, :32])


@torch.no_grad()
def test_a_grey_adapter_reads_light(hint, start):
    (x, cond), net = start, adapter_net(picture=1)
    told = steering([Loaded(net, hint)])(x, CLOCK, cond, 0.5)
    grey = 0.299 * hint[:, :1] + 0.587 * hint[:, 1:2] + 0.114 * hint[:, 2:]
    torch.testing.assert_close(told.hints[0][:1], net(grey)[0])


@pytest.mark.parametrize(
    ("make", "of", "family", "why"),
    [
        (control_net, "sdxl", "sd15", "this ControlNet is made for a UNet of context 192, the model's has 64"),
        (control_net, "sd2", "sd15", "this ControlNet is made for a UNet of context 128, the model's has 64"),
        (control_net, "sd15", "sdxl", "this ControlNet is made for a UNet of context 64, the model's has 192"),
        (adapter_net, "sdxl", "sd15", "from every 16th pixel, the model's UNet takes .64, 128. from every 8th"),
        (adapter_net, "sd15", "sdxl", "from every 8th pixel, the model's UNet takes .64, 128, 128. from every 16th"),
    ],
)
def test_what_was_made_for_another_model_is_refused(make, of, family, why):
    with pytest.raises(BadInput, match=why):
        check_fit(make(of), tiny_net(family, "denoiser"))


def test_what_fits_is_taken():
    for family in CONFIGS:
        check_fit(control_net(family), tiny_net(family, "denoiser"))
    for family in ADAPTERS:
        check_fit(adapter_net(family), tiny_net(family, "denoiser"))
    without = replace(control_net("sdxl").config, depths=(0, 0, 0), middle=0, context=0, linear=False, heads=8)
    with torch.device("meta"):
        small = ControlNet(without)
    check_fit(small, tiny_net("sdxl", "denoiser"))
    with pytest.raises(BadInput, match="of vector 1584, the model's has 0"):
        check_fit(small, tiny_net("sd15", "denoiser"))
    with pytest.raises(BadInput, match="steers the UNets of sd15, sd2 and sdxl; this denoiser is a MMDiT"):
        check_fit(small, tiny_net("sd3", "denoiser"))


def test_published_sizes_fit_the_published_unets():
    with torch.device("meta"):
        sd15, sdxl = Unet(UnetConfig()), Unet(replace(
            TINY["sdxl"]["denoiser"], width=320, multiples=(1, 2, 4), blocks=2, context=2048, vector=2816))  # fmt: skip
        for config in (T2iAdapterConfig(), T2iAdapterConfig(picture=1), T2iAdapterConfig(light=True, blocks=4)):
            check_fit(T2iAdapter(config), sd15)
        check_fit(T2iAdapter(T2iAdapterConfig(factor=16)), sdxl)


@torch.no_grad()
def test_from_files_to_a_steered_denoiser(model, tmp_path, start):
    """As a recipe says it: a network, a photo whose edges are followed, a strength, a part of the walk."""
    x, cond = start
    write_tensors(tmp_path / "control.safetensors", control_net().state_dict())
    photo = torch.ones(4, 40, 30)
    photo[:3, 10:20] = 0
    to_pil(photo).save(tmp_path / "photo.png")
    said = Control(
        net=str(tmp_path / "control.safetensors"), image=f"canny:{tmp_path / 'photo.png'}", strength=0.8, end=0.6
    )
    loaded = load_control(said, tmp_path / "photo.png", model)
    assert (loaded.strength, loaded.start, loaded.end, loaded.factor) == (0.8, 0.0, 0.6, 8)
    assert torch.equal(loaded.hint[0], edges(photo)[:3])
    plain, steered = model.denoiser(cond), model.denoiser(cond, steer=steering([loaded.over([1.0, 0.4, 0.0])]))
    assert not torch.equal(steered(x, 0.9), plain(x, 0.9)) and torch.equal(steered(x, 0.1), plain(x, 0.1))
    ready = load_control(said.model_copy(update={"image": str(tmp_path / "photo.png")}), tmp_path / "photo.png", model)
    assert torch.equal(ready.hint[0], photo[:3])
    with pytest.raises(BadWeights, match="does not exist"):
        load_control(said.model_copy(update={"net": str(tmp_path / "none")}), tmp_path / "photo.png", model)


def test_edges_of_a_square_are_its_outline():
    picture = torch.ones(4, 40, 40)
    picture[:3, 10:30, 12:28] = 0
    found = edges(picture)
    assert set(found.unique().tolist()) == {0.0, 1.0} and bool((found[3] == 1).all())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    line = found[0]
    assert line[20].nonzero().flatten().tolist() in ([11, 27], [12, 28], [11, 28], [12, 27])  # one pixel thin
    assert line[:, 20].nonzero().flatten().tolist() in ([9, 29], [10, 30], [9, 30], [10, 29])
    assert line[12:28, 15:25].sum() == 0 and line[:8].sum() == 0 and line[32:].sum() == 0
    assert 60 <= line.sum() <= 76  # of an outline of 72


def test_edges_of_colour_and_of_outline_count_and_plain_ones_give_none():
    assert edges(torch.full((4, 9, 9), 0.5))[:3].sum() == 0
    red, clear = torch.zeros(4, 16, 16), torch.zeros(4, 16, 16)
    red[3] = 1
    red[0, :, 8:], red[1, :, :8] = 0.6, 0.6 * 0.299 / 0.587  # two colours of one lightness
    clear[3, 4:12, 4:12] = 1  # a black square on nothing
    assert edges(red)[0].sum() == 16
    assert edges(clear)[0].sum() >= 24


def test_weak_edges_count_where_they_go_on_from_strong_ones():
    picture = torch.ones(4, 30, 60)
    fade = torch.linspace(0.0, 1.0, 60)  # contrast falls from left to right
    picture[:3, 15:] = fade
    line = edges(picture)[0]
    reach = int(line.sum(0).nonzero().max())
    strong = int(edges(picture, low=0.8)[0].sum(0).nonzero().max())
    assert strong < 50 and reach > strong + 5
    assert torch.equal(edges(picture[:, :, strong + 3 :], low=0.4, high=0.8)[0], torch.zeros(30, 57 - strong))

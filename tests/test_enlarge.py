"""Enlarging: exact sizes, no seams, no fringes, by Lanczos and by networks of every scale."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import randomised
from torch import Tensor

from limner.enlarge import Upscaler, enlarge, filled, find_upscaler, lanczos
from limner.errors import BadInput, BadWeights
from limner.families.seeing import COMPACT, RRDB
from limner.image import from_pil, to_pil
from limner.models.rrdbnet import CompactConfig, CompactNet, RrdbConfig, RrdbNet
from limner.place import find_place
from limner.weights.io import write_tensors
from limner.weights.layout import translate

CPU = find_place("cpu", torch.float32)
FOUR = RrdbConfig(width=8, growth=4, blocks=1)
NETS = {
    "x4": RrdbNet(FOUR),
    "x8": RrdbNet(replace(FOUR, doublings=3)),
    "x2": RrdbNet(replace(FOUR, unshuffle=2)),
    "x1": RrdbNet(replace(FOUR, unshuffle=4)),
    "x1 without squares": RrdbNet(replace(FOUR, doublings=0)),
    "compact x4": CompactNet(CompactConfig(width=8, blocks=2)),
}


def repeating(scale: int) -> CompactNet:
    """A network that repeats pixels, and adds nothing."""
    net = CompactNet(CompactConfig(width=4, blocks=1, scale=scale))
    return net.requires_grad_(False).apply(lambda each: [value.zero_() for value in each.parameters(recurse=False)])


def scene(h: int = 30, w: int = 41, alpha: bool = True) -> Tensor:
    """Smooth colours under a disc of alpha."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    disc = ((0.8 - (x**2 + y**2).sqrt()) * 8).clamp(0, 1)[None] if alpha else torch.ones(1, h, w)
    colours = torch.stack([0.5 + 0.4 * x, 0.5 + 0.4 * y, 0.5 + 0.3 * (3 * x).sin()])
    return torch.cat([colours * disc, disc])


def valid(picture: Tensor) -> bool:
    return bool(picture.min() >= 0 and picture.max() <= 1 and (picture[:3] <= picture[3:] + 1e-6).all())


@pytest.mark.parametrize(
    "factor,size", [(2, (60, 82)), (8, (240, 328)), (1.5, (45, 62)), (1, (30, 41)), (0.5, (15, 20))]
)
def test_lanczos_gives_the_size_that_is_asked_for(factor, size):
    found = enlarge(scene(), factor)
    assert found.shape == (4, *size) and valid(found)


def test_lanczos_is_pillows():
    image = to_pil(scene(20, 30, alpha=False)).convert("RGB")
    want = np.asarray(image.resize((75, 50), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    found = enlarge(from_pil(image), 2.5)[:3].permute(1, 2, 0).numpy()
    assert np.abs(found - want).max() < 1.5 / 255  # Pillow's bytes are rounded twice


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_networks_of_every_scale_give_the_size_that_is_asked_for(net, factor):
    found = enlarge(scene(), factor, Upscaler(randomised(NETS[net]), CPU))
    assert found.shape == (4, 30 * factor, 41 * factor) and valid(found)


@pytest.mark.parametrize(
    "scale,factor,times", [(2, 2, 1), (2, 4, 2), (2, 8, 3), (2, 3, 1), (4, 8, 1), (4, 2, 1), (1, 4, 1)]
)
def test_a_network_is_applied_as_often_as_its_scale_fits(scale, factor, times, monkeypatch):
    seen = []

    def repeated(_: Upscaler, x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x.repeat_interleave(scale, 1).repeat_interleave(scale, 2)

    monkeypatch.setattr(Upscaler, "__call__", repeated)
    enlarge(scene(8, 9), factor, Upscaler(repeating(scale), CPU))
    assert seen == [(3, 8 * scale**i, 9 * scale**i) for i in range(times)]


@pytest.mark.parametrize("net", NETS)
def test_tiles_are_the_whole_beyond_what_a_network_sees(net):
    whole = Upscaler(randomised(NETS[net]), CPU, tile=1000)
    x = torch.rand(3, 101, 90, generator=torch.Generator().manual_seed(0))
    tiled = replace(whole, tile=64, overlap=32)
    want, found = whole(x), tiled(x)
    assert found.shape == want.shape == (3, round(101 * whole.scale), round(90 * whole.scale))
    assert float((found - want).abs().max() / want.abs().max()) < 5e-3


def test_tiles_of_a_network_that_sees_one_pixel_are_exactly_the_whole():
    x = torch.rand(3, 50, 33, generator=torch.Generator().manual_seed(0))
    found = Upscaler(repeating(2), CPU, tile=16, overlap=4)(x)
    assert torch.allclose(found, x.repeat_interleave(2, 1).repeat_interleave(2, 2), atol=1e-6)


def test_colours_do_not_darken_towards_clear_pixels():
    """One colour under any alpha stays that colour, where a picture on black would be dark at its border."""
    red = scene()[3:] * torch.tensor([0.9, 0.2, 0.1, 1.0])[:, None, None]
    found = enlarge(red, 4, Upscaler(repeating(4), CPU))
    some = found[3] > 0.05
    assert torch.allclose(found[:3, some] / found[3, some], torch.tensor([0.9, 0.2, 0.1])[:, None], atol=1e-4)
    assert torch.allclose(found[3], enlarge(red, 4)[3], atol=1e-6)


def test_clear_pixels_are_filled_from_around():
    picture = scene()
    straight = filled(picture)
    solid = picture[3] > 8 / 255
    assert torch.allclose(straight[:, solid], picture[:3, solid] / picture[3, solid], atol=1e-5)
    assert straight.min() > 0.05  # no black is left in the corners
    assert torch.equal(filled(torch.zeros(4, 9, 7)), torch.zeros(3, 9, 7))


def test_in_bf16_it_enlarges_nearly_alike():
    half = find_place("cpu", torch.bfloat16)
    net = randomised(RrdbNet(FOUR))
    want = Upscaler(net, CPU)(scene()[:3])
    found = Upscaler(half.settle(net), half)(scene()[:3])
    assert found.dtype == torch.float32 and float((found - want).norm() / want.norm()) < 0.02


def test_an_opaque_picture_stays_opaque():
    for upscaler in (None, Upscaler(randomised(NETS["x4"]), CPU)):
        assert (enlarge(scene(alpha=False), 3, upscaler)[3] == 1).all()
        assert to_pil(enlarge(scene(alpha=False), 3, upscaler)).size == (123, 90)


@pytest.mark.parametrize("layout", ["real-esrgan", "esrgan", "bsrgan"])
def test_a_file_in_any_names_enlarges_alike(layout, tmp_path: Path):
    net = randomised(RrdbNet(FOUR))
    file = tmp_path / "4x_test.safetensors"
    write_tensors(file, translate(net.state_dict(), RRDB.naming(layout).writes(FOUR), back=True))
    upscaler = find_upscaler(file, CPU)
    assert (upscaler.name, upscaler.scale) == ("4x_test", 4)
    assert torch.allclose(upscaler(scene()[:3]), Upscaler(net, CPU)(scene()[:3]), atol=1e-5)


def test_the_compact_kind_is_found_too(tmp_path: Path):
    file = tmp_path / "video.safetensors"
    write_tensors(file, NETS["compact x4"].state_dict())
    assert isinstance(find_upscaler(file, CPU).net, CompactNet) and COMPACT.net == "upscaler"


def test_other_channels_and_other_networks_are_refused(tmp_path: Path, tiny_checkpoint):
    grey = tmp_path / "grey.safetensors"
    write_tensors(grey, RrdbNet(replace(FOUR, channels=1)).state_dict())
    with pytest.raises(BadInput, match="pictures of 1 channels"):
        find_upscaler(grey, CPU)
    with pytest.raises(BadWeights, match="esrgan"):
        find_upscaler(tiny_checkpoint("sd15"), CPU)


def test_lanczos_of_the_same_size_changes_nothing():
    picture = scene()
    assert lanczos(picture, (30, 41)) is picture

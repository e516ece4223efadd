"""What is kept in memory changes no pixel; and what is not kept is gone."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from weakref import ref

import pytest
import torch
from tests.conftest import tiny_net, tiny_nets, write_single
from torch import Tensor, nn

import limner.nets
import limner.nn.streamed
from limner.denoiser import asked
from limner.nets import Nets, placed
from limner.nn.int8 import Int8Conv2d, Int8Linear
from limner.pipeline import load
from limner.place import Keep, Place, computes_int8, engines, find_place
from limner.tasks.run import begin, paint
from limner.weights.io import read_tensors, write_tensors

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limner.nets, "LARGE", 0)
    monkeypatch.setattr(limner.nn.streamed, "TABLE", 10_000)


def place(keep: Keep, dtype: torch.dtype = torch.float32) -> Place:
    return find_place("cpu", dtype, keep)


def painted(path: Path, where: Place, **wishes: object) -> Tensor:
    model = load(str(path), where)
    size = {"width": 64, "height": 64, "steps": 2, "seed": 3}
    return paint(model, begin(model, **{"prompt": "a (red:1.2) apple", "negative": "blue"} | size | wishes))


@pytest.mark.filterwarnings("ignore:.*holds T5 but no tokenizer")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35"])
def test_a_picture_is_the_same_whatever_is_kept(tmp_path: Path, family: str, dtype: torch.dtype):
    path = write_single(tmp_path / f"{family}.safetensors", family, tiny_nets(family), torch.float16)
    whole = painted(path, place("all", dtype))
    assert whole.std() > 0.01
    for keep in ("one", "layer"):
        assert torch.equal(painted(path, place(keep, dtype)), whole), keep


@pytest.mark.parametrize("keep", ["one", "layer"])
def test_a_folder_whose_weights_are_turned_and_joined_is_the_same(tiny_diffusers: Callable[[str], Path], keep: Keep):
    path = tiny_diffusers("sdxl")
    assert torch.equal(painted(path, place(keep)), painted(path, place("all")))


@pytest.mark.parametrize("keep", ["one", "layer"])
def test_seamless_pictures_are_the_same(tiny_checkpoint: Callable[[str], Path], keep: Keep):
    path = tiny_checkpoint("sd15")
    told = {"seamless": "xy"}
    assert torch.equal(painted(path, place(keep), **told), painted(path, place("all"), **told))


@pytest.mark.parametrize("keep", ["one", "layer"])
def test_mini_is_the_same(tiny_folder: Path, keep: Keep):
    assert torch.equal(painted(tiny_folder, place(keep)), painted(tiny_folder, place("all")))


def test_one_network_makes_room_for_the_next(tiny_checkpoint: Callable[[str], Path]):
    model = load(str(tiny_checkpoint("sd15")), place("one"))
    assert isinstance(model.nets, Nets)
    denoise = model.denoiser(model.encode(["a cat"]))
    denoise(torch.randn(1, *model.latent_shape(64, 64)), 0.5)
    seen = ref(model.nets["denoiser"])
    other = load(str(tiny_checkpoint("sdxl")), place("one"))
    assert seen() is model.nets["denoiser"]  # nothing else was asked for
    other.nets["autoencoder"]
    gc.collect()
    assert seen() is None, "the denoiser is held by somebody, though another model's network took its place"
    assert model.nets.bare("denoiser") is model.nets.bare("denoiser")  # still in its file


def test_small_networks_stay(tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limner.nets, "LARGE", 2**40)
    nets = load(str(tiny_checkpoint("sd15")), place("one")).nets
    first = nets["denoiser"]
    nets["autoencoder"]
    assert nets["denoiser"] is first


def test_between_its_calls_a_layer_lies_in_its_file(tmp_path: Path):
    write_tensors(tmp_path / "w.safetensors", {"weight": torch.randn(32, 16).half(), "bias": torch.randn(32).half()})
    layer = nn.Linear(16, 32)
    layer.load_state_dict(read_tensors(tmp_path / "w.safetensors"), assign=True)
    net = nn.Sequential(layer, nn.LayerNorm(32).half())
    where = layer.weight.data_ptr()
    placed(net, place("layer"))
    seen = []
    layer.register_forward_hook(lambda called, *_: seen.append(called.weight.dtype), prepend=True)
    with torch.inference_mode():
        net(torch.randn(2, 16))
    assert seen == [torch.float32]
    assert (layer.weight.dtype, layer.weight.data_ptr()) == (torch.float16, where)
    assert net[1].weight.dtype == torch.float32  # norms are settled for good


def test_a_layer_that_fails_goes_back_to_its_file():
    net = placed(nn.Sequential(nn.Linear(4, 4).half()), place("layer"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.randn(2, 5))
    assert net[0].weight.dtype == torch.float16


@pytest.mark.parametrize("keep", ["one", "layer"])
@pytest.mark.filterwarnings("ignore:the autoencoder overflowed")
def test_what_overflows_in_fp16_is_decoded_in_fp32(
    tiny_checkpoint: Callable[[str], Path], keep: Keep, monkeypatch: pytest.MonkeyPatch
):
    path = tiny_checkpoint("sd15")
    z = torch.randn(1, 4, 8, 8)
    want = load(str(path), place("all")).to_image(z)
    model = load(str(path), place(keep, torch.float16))
    real = type(model.nets.bare("autoencoder")).decode  # type: ignore[attr-defined]

    def overflowing(net: nn.Module, z: Tensor) -> Tensor:
        found = real(net, z)
        first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
        return found if first.weight.dtype == torch.float32 else found * float("inf")

    monkeypatch.setattr(type(model.nets.bare("autoencoder")), "decode", overflowing)  # type: ignore[attr-defined]
    assert (model.to_image(z) - want).abs().max() < 0.05


def test_a_place_says_what_it_keeps():
    assert find_place("cpu").keep == "all"
    assert find_place("cpu", keep="layer").keep == "layer"


@pytest.mark.skipif(not computes_int8(), reason="oneDNN has no products of 8 bits here")
@pytest.mark.filterwarnings("ignore:.*holds T5 but no tokenizer")
@pytest.mark.parametrize("family", ["sd15", "sd35"])
def test_in_8_bits_a_picture_is_near_and_the_same_whatever_is_kept(tmp_path: Path, family: str):
    path = write_single(tmp_path / f"{family}.safetensors", family, tiny_nets(family), torch.float16)
    small = painted(path, place("all").precisely("int8"))
    wide = painted(path, place("all"))
    assert 0 < (small - wide).abs().mean() < 0.05
    for keep in ("one", "layer"):
        assert torch.equal(painted(path, place(keep).precisely("int8")), small), keep


@pytest.mark.skipif(not computes_int8(), reason="oneDNN has no products of 8 bits here")
def test_8_bits_are_counted_before_and_only_the_denoiser_has_them(tiny_checkpoint: Callable[[str], Path]):
    path = str(tiny_checkpoint("sd15"))
    own = find_place("cpu").dtype  # what is not in 8 bits is in the machine's own type
    wide, small = (load(path, where).nets for where in (place("all", own), place("all").precisely("int8")))
    assert isinstance(wide, Nets) and isinstance(small, Nets)
    assert small.weight("text") == wide.weight("text")
    assert small.weight("denoiser") < 0.6 * wide.weight("denoiser")
    assert small.layer("denoiser") > small.weight("denoiser") - wide.layer("denoiser")  # what is packed stays
    assert any(isinstance(layer, Int8Conv2d) for layer in small["denoiser"].modules())
    assert not any(isinstance(layer, Int8Linear | Int8Conv2d) for layer in small["autoencoder"].modules())


@pytest.mark.skipif(
    "openvino" not in engines("cpu") or not computes_int8(), reason="needs the extra openvino, and int8"
)
@pytest.mark.parametrize("kind", ["base", "inpaint", "edit", "depth"])
def test_a_driven_network_in_8_bits_is_rehearsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """Whatever is laid beside its latents; what it showed is kept for the next process. Large ones tell."""
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("limner.denoiser.REHEARSAL", 2)
    monkeypatch.setattr("limner.pipeline.LARGE", 0)
    family, channels = {"base": ("sd15", 4), "inpaint": ("sd15", 9), "edit": ("sd15", 8), "depth": ("sd2", 5)}[kind]
    nets = tiny_nets(family) | {"denoiser": tiny_net(family, "denoiser", channels=channels)}
    path = write_single(tmp_path / "it.safetensors", family, nets)
    small = place("all").precisely("int8").driven("openvino")
    rows: list[int] = []
    monkeypatch.setattr("limner.denoiser.asked", lambda told, x, t, own=asked: rows.append(len(x)) or own(told, x, t))
    found = []
    for again in (False, True):
        model = load(str(path), small)
        assert model.variant == kind
        cond = replace(
            model.encode(["a red apple"]), image=torch.zeros(1, channels - 4, 8, 8) if channels > 4 else None
        )
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with nullcontext() if again else pytest.warns(UserWarning, match="walks 8 steps beforehand, once"):
            found.append(model.denoiser(cond)(x, 0.5))
        assert rows == [1, 2, 2] + [1] * again  # two steps of the rehearsal, within the first call
    want = load(str(path), place("all")).denoiser(cond)(x, 0.5)
    assert torch.equal(found[0], found[1])
    assert 0 < (found[0] - want).norm() < 0.3 * want.norm()


@pytest.mark.skipif("openvino" not in engines("cpu"), reason="needs the extra openvino")
def test_on_a_torus_a_network_is_its_own_engine(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path))
    path, x = str(tiny_checkpoint("sd15")), torch.randn(1, 4, 8, 8)
    found = []
    for where in (place("all"), place("all").driven("openvino")):
        model = replace(load(path, where), around=(True, True))
        found.append(model.denoiser(model.encode(["a red apple"]))(x, 0.5))
    assert torch.equal(*found)
    assert not (tmp_path / "graphs").exists()

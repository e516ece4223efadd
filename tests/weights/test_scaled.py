"""Weights of 8 bits with scales: what is written comes back, and the field's files are read or refused in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_net
from torch import Tensor

from limner.errors import BadInput, BadWeights
from limner.families import FAMILIES
from limner.families.recognise import recognise
from limner.families.write import write_checkpoint
from limner.types import Cond
from limner.weights.forms import weights_header, weights_of
from limner.weights.io import MAX_VALUES, read_header, read_tensors, write_tensors
from limner.weights.scaled import LEAST, NOTE, scaled

F8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def psnr(found: Tensor, want: Tensor) -> float:
    error = (found.double() - want.double()).square().mean()
    return float(10 * torch.log10(want.double().abs().max() ** 2 / error))


@given(st.integers(1, 5), st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_a_weight_is_off_by_half_a_step_of_its_row_at_most(rows, width, size, seed):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size
    kept = scaled("w", weight)
    assert kept["w"].dtype is torch.int8 and kept["w_scale"].dtype is torch.float32
    assert kept["w_scale"].shape == (rows, 1)
    off = (kept["w"].float() * kept["w_scale"] - weight).abs()
    assert bool((off <= kept["w_scale"] * 0.5001).all())


def test_rows_of_zeros_stay_zeros_and_a_convolution_keeps_its_shape():
    kept = scaled("w", torch.zeros(4, 3, 3, 3))
    assert not kept["w"].any() and kept["w"].shape == (4, 3, 3, 3) and kept["w_scale"].tolist() == [[[[1.0]]]] * 4


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sd3"])
def test_a_checkpoint_in_int8_comes_back_as_fp16(family, tiny_checkpoint, tmp_path):
    plain = recognise(tiny_checkpoint(family))
    path = write_checkpoint(plain, tmp_path / "small.safetensors", "single", torch.int8)
    found, raw = recognise(path), read_tensors(path)
    assert (found.family, found.variant, found.layout, found.missing) == (
        plain.family, plain.variant, plain.layout, ()
    )  # fmt: skip
    assert {net: part.config for net, part in found.parts.items()} == {n: p.config for n, p in plain.parts.items()}
    small = {name for name, value in raw.items() if value.dtype is torch.int8}
    layers = {f"{name.removesuffix('.weight')}" for name in small}
    assert json.loads(read_header(path).metadata[NOTE])["layers"].keys() == layers
    assert all(raw[name].numel() >= LEAST and raw[name].ndim in (2, 4) and f"{name}_scale" in raw for name in small)
    assert not any("embedding" in name and "patch" not in name for name in small)
    for net, part in found.parts.items():
        assert part.parameters == plain.parts[net].parameters
        want, back = plain.parts[net].tensors(), part.tensors()
        assert {value.dtype for value in back.values()} == {torch.float16}
        for name, value in back.items():
            assert psnr(value, want[name]) > 40 or torch.equal(value, want[name].half())
    unet = next(name for name in small if name.startswith("model.diffusion_model."))
    whole = (raw[unet].float() * raw[f"{unet}_scale"]).half()
    assert torch.equal(weights_of(path, [unet])[unet], whole)
    wide = write_checkpoint(found, tmp_path / "wide.safetensors", "single", torch.float16)
    assert torch.equal(read_tensors(wide)[unet], whole) and NOTE not in read_header(wide).metadata


def test_every_large_layer_of_a_unet_is_small(tiny_checkpoint, tmp_path):
    path = write_checkpoint(recognise(tiny_checkpoint("sd15")), tmp_path / "a.safetensors", "single", torch.int8)
    net = tiny_net("sd15", "denoiser")
    large = {
        f"model.diffusion_model.{name}.weight"
        for name, layer in net.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and layer.weight.numel() >= LEAST
    }
    raw = read_header(path).entries
    assert large == {n for n, e in raw.items() if e.dtype is torch.int8 and n.startswith("model.")}


def test_a_folder_has_no_place_for_scales(tiny_checkpoint, tmp_path):
    with pytest.raises(BadInput, match="8 bits are written as a single file"):
        write_checkpoint(recognise(tiny_checkpoint("sd15")), tmp_path / "folder", "diffusers", torch.int8)
    assert not (tmp_path / "folder").exists()


def field(path: Path, small: torch.dtype, style: str) -> tuple[Path, dict[str, Tensor]]:
    """A UNet as ComfyUI's files keep it, and what its weights are then."""
    net = tiny_net("sd15", "denoiser")
    tensors: dict[str, Tensor] = {}
    want: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        if value.ndim != 2:
            tensors[name] = want[name] = value.half()
            continue
        scale = value.abs().max() / (127 if small is torch.int8 else 448)
        kept = (value / scale).round().to(small) if small is torch.int8 else (value / scale).to(small)
        layer = name.removesuffix(".weight")
        tensors[name], want[name] = kept, (kept.float() * scale).half()
        if style == "earlier":
            tensors |= {f"{layer}.scale_weight": scale[None], f"{layer}.scale_input": torch.ones(1)}
        else:
            said = json.dumps({"format": {torch.int8: "int8_tensorwise"}.get(small, str(small).removeprefix("torch."))})
            tensors |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.ones(())}
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(said.encode()), dtype=torch.uint8)
    if style == "earlier":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=small)
    write_tensors(path, tensors)
    return path, want


@pytest.mark.parametrize(
    ("small", "style"), [(F8[0], "earlier"), (F8[0], "now"), (F8[1], "now"), (torch.int8, "now")], ids=str
)
def test_scaled_files_of_the_field(small, style, tmp_path):
    path, want = field(tmp_path / "unet.safetensors", small, style)
    part = recognise(path).parts["denoiser"]
    assert part.config == tiny_net("sd15", "denoiser").config
    assert part.parameters == sum(value.numel() for value in want.values())
    back = part.tensors()
    assert back.keys() == want.keys() and all(torch.equal(back[name], value) for name, value in want.items())


def test_fp8_that_was_cast_and_not_scaled_is_read_as_before(tmp_path):
    weight = torch.randn(8, 8).to(F8[0])
    write_tensors(tmp_path / "a.safetensors", {"w.weight": weight})
    assert weights_of(tmp_path / "a.safetensors", ["w.weight"])["w.weight"].dtype is F8[0]


SMALL, SCALE = torch.ones(4, 6, dtype=torch.int8), torch.ones(4, 1)


def said(text: str) -> dict[str, Tensor]:
    mark = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return {"a.weight": SMALL, "a.weight_scale": SCALE, "a.comfy_quant": mark}


REFUSED: dict[str, tuple[dict[str, Tensor], dict[str, str], str]] = {
    "no scale": ({"a.weight": SMALL}, {}, "'a.weight' is int8, and no 'a.weight_scale' lies beside it"),
    "scales of blocks": ({"a.weight": SMALL, "a.weight_scale": torch.ones(4, 3)}, {}, "nor one for each row"),
    "scales of columns": ({"a.weight": SMALL, "a.weight_scale": torch.ones(6)}, {}, "nor one for each row"),
    "whole scales": ({"a.weight": SMALL, "a.weight_scale": torch.ones(4, dtype=torch.int32)}, {}, "nor one for each"),
    "another format": (said('{"format": "nvfp4"}'), {}, "'a' is kept as 'nvfp4', which is not read here; float8_"),
    "rotations": (said('{"format": "int8_tensorwise", "convrot": true}'), {}, "int8_tensorwise with rotations"),
    "no JSON": (said("{"), {}, "is not JSON of their kind"),
    "a list": (said("[1]"), {}, "is not JSON of their kind"),
    "a long mark": (said(" " * 5000), {}, "longer than any is"),
    "a note of another format": ({"a.bias": SCALE}, {NOTE: '{"layers": {"b": {"format": "mxfp8"}}}'}, "'b' is kept as"),
    "a note of brackets": ({"a.bias": SCALE}, {NOTE: "[" * (MAX_VALUES + 1)}, "longer than that of any model"),
    "a note of a thousand brackets": ({"a.bias": SCALE}, {NOTE: "[" * 100_000}, "is not JSON of their kind"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_read_otherwise_is_refused(kind, tmp_path):
    tensors, metadata, why = REFUSED[kind]
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, metadata)
    for opens in (weights_header, recognise):
        with pytest.raises(BadWeights) as caught:
            opens(path)
        assert str(path) in str(caught.value) and why in str(caught.value) and len(str(caught.value)) < 500


def test_what_a_tiny_network_gives_hardly_changes(tiny_checkpoint, tmp_path):
    path = write_checkpoint(recognise(tiny_checkpoint("sd15")), tmp_path / "a.safetensors", "single", torch.int8)
    net, part = tiny_net("sd15", "denoiser"), recognise(path).parts["denoiser"]
    small: Any = FAMILIES["sd15"].nets["denoiser"].build(part.config).eval()
    small.load_state_dict({name: value.float() for name, value in part.tensors().items()})
    rng = torch.Generator().manual_seed(0)
    x, words = torch.randn(1, 4, 16, 16, generator=rng), torch.randn(1, 7, 64, generator=rng)
    with torch.inference_mode():
        a, b = (each(x, torch.tensor([500.0]), Cond(words)) for each in (small, net))
    assert psnr(a, b) > 40

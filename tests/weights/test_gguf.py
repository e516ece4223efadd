"""GGUF files: unpacked as the format's own package does it, recognised as all files are, refused where they lie."""

import os
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import TINY, tiny_net, tiny_nets, write_single

from limner.errors import BadWeights, LimnerError
from limner.families.recognise import recognise
from limner.pipeline import load
from limner.weights.forms import weights_header, weights_of
from limner.weights.gguf import KINDS, PLAIN, REFUSED, SHAPE, read_gguf_header, read_gguf_tensors
from limner.weights.io import read_tensors
from limner.weights.layout import translate
from limner.weights.names.t5 import LLAMA

Kind = gguf.GGMLQuantizationType
QUANTISED = sorted(KINDS[number][0] for number in KINDS.keys() - PLAIN.keys())
WRITTEN = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # what the package packs itself


def write_gguf(path: Path, tensors: dict[str, Any], kinds: dict[str, str], arch: str = "sd1", shapes: Any = ()) -> Path:
    """Write arrays, each packed as its kind says; raw bytes stay as they are. `shapes`: ComfyUI-GGUF's notes."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("general.license", "MIT")
    writer.add_array("tokenizer.ggml.tokens", ["a", "word"])
    for name, shape in dict(shapes).items():
        writer.add_array(SHAPE + name, list(shape))
    for name, value in tensors.items():
        kind = (
            Kind[kinds.get(name, {2: "F16", 4: "F32"}[value.itemsize])]
            if value.dtype != np.uint8
            else Kind[kinds[name]]
        )
        packed = value if value.dtype == np.uint8 else gguf.quantize(value, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed(file: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors as the package packs and unpacks them in Q8_0, where their rows fit, in fp16."""
    return {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(value.float().numpy(), Kind.Q8_0), Kind.Q8_0)).half()
        if fits(value)
        else value
        for name, value in read_tensors(file).items()
    }


def fits(value: torch.Tensor) -> bool:
    return value.ndim == 2 and value.shape[1] % 32 == 0


def q8(path: Path, file: Path, prefix: str = "") -> Path:
    """A safetensors file as a GGUF file in Q8_0; of one prefix, without it."""
    found = {n.removeprefix(prefix): v for n, v in read_tensors(file).items() if n.startswith(prefix)}
    kinds = {name: "Q8_0" for name, value in found.items() if fits(value)}
    return write_gguf(path, {name: value.numpy() for name, value in found.items()}, kinds)


def test_the_table_of_kinds_is_the_package_s():
    for number, (name, block, size) in KINDS.items():
        assert Kind(number).name == name and gguf.GGML_QUANT_SIZES[Kind(number)] == (block, size)
    assert {int(kind) for kind in Kind} <= KINDS.keys() | REFUSED.keys()


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_the_package_packs_is_unpacked_as_it_unpacks(kind, tmp_path):
    value = np.random.default_rng(0).standard_normal((5, 96), dtype=np.float32)
    path = write_gguf(tmp_path / "a.gguf", {"w": value}, {"w": kind})
    want = torch.from_numpy(gguf.dequantize(gguf.quantize(value, Kind[kind]), Kind[kind]))
    entries = read_gguf_header(path).entries
    assert (entries["w"].shape, entries["w"].kind) == ((5, 96), kind)
    found = read_gguf_tensors(path, entries)["w"]
    assert found.dtype is entries["w"].dtype and torch.equal(found, want.to(found.dtype))


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_kind_is_unpacked_as_the_package_does_it(kind, tmp_path, monkeypatch):
    """From random bytes, for most kinds only the C library packs; in pieces, as large tensors are."""
    monkeypatch.setattr("limner.weights.gguf.STEP", 512)
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    raw = np.random.default_rng(1).integers(0, 256, (3, 1024 // block * size), dtype=np.uint8)
    path = write_gguf(tmp_path / "a.gguf", {"w": raw}, {"w": kind})
    want = torch.from_numpy(gguf.dequantize(raw, Kind[kind])).half()
    found = weights_of(path, ["w"])["w"]
    assert found.shape == (3, 1024)
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(found.nan_to_num(), want.nan_to_num())


def test_plain_kinds_are_mapped_as_they_are(tmp_path):
    full, half = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
    path = write_gguf(tmp_path / "a.gguf", {"full": full, "half": half}, {})
    found = weights_of(path, ["full", "half"])
    assert torch.equal(found["full"], torch.from_numpy(full)) and torch.equal(found["half"], torch.from_numpy(half))
    header = weights_header(path)
    assert header.metadata == {"general.architecture": "sd1", "general.license": "MIT"}


def test_a_flattened_convolution_gets_its_shape_back(tmp_path):
    value = np.random.default_rng(2).standard_normal((64, 4, 3, 3), dtype=np.float32)
    flat = value.reshape(-1, 256)
    path = write_gguf(tmp_path / "a.gguf", {"w": flat}, {"w": "Q8_0"}, shapes={"w": value.shape})
    want = gguf.dequantize(gguf.quantize(flat, Kind.Q8_0), Kind.Q8_0).reshape(value.shape)
    assert torch.equal(weights_of(path, ["w"])["w"], torch.from_numpy(want).half())
    wrong = write_gguf(tmp_path / "b.gguf", {"w": flat}, {"w": "Q8_0"}, shapes={"w": (64, 4, 3, 4)})
    with pytest.raises(BadWeights, match=r"'w' of shape \[9, 256\] cannot have had the shape \(64, 4, 3, 4\)"):
        weights_header(wrong)


@pytest.mark.parametrize("family", TINY)
def test_whole_checkpoints_of_every_family(family, tiny_checkpoint, tmp_path):
    """As stable-diffusion.cpp writes them: the names of a single file."""
    plain = recognise(tiny_checkpoint(family))
    found = recognise(q8(tmp_path / f"{family}.gguf", tiny_checkpoint(family)))
    assert (found.family, found.variant, found.layout, found.missing) == (
        plain.family, plain.variant, "single file", ()
    )  # fmt: skip
    assert {net: part.config for net, part in found.parts.items()} == {n: p.config for n, p in plain.parts.items()}
    assert "q8_0" in found.parts["denoiser"].dtypes
    want = packed(tiny_checkpoint(family))
    for part in found.parts.values():
        mine = {name: want[part.prefix + name] for name in part.entries}
        want_ours = translate(mine, part.naming.reads(part.shapes))
        assert all(torch.equal(value, want_ours[name]) for name, value in part.tensors().items())


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_a_denoiser_alone_paints_with_the_rest_beside_it(family, tiny_checkpoint, tmp_path):
    """As ComfyUI-GGUF has them: no prefix."""
    path = q8(tmp_path / "unet.gguf", tiny_checkpoint(family), "model.diffusion_model.")
    found = recognise(path)
    assert (found.family.name, found.layout, list(found.parts)) == (family, "component", ["denoiser"])
    with pytest.raises(BadWeights, match=rf"unet\.gguf lacks the autoencoder and the text.* of a {family} model"):
        load(str(path))
    nets = tiny_nets(family, *(net for net in TINY[family] if net not in ("denoiser", "text_3")))
    rest = write_single(tmp_path / "rest.safetensors", family, nets)
    model = load(str(path), parts=[str(rest)])
    want = packed(tiny_checkpoint(family))
    state = model.nets["denoiser"].state_dict()
    assert all(torch.equal(v, want[f"model.diffusion_model.{n}"].to(v.dtype)) for n, v in state.items())


def test_sides_that_ggml_drops_and_adds_are_put_right(tiny_checkpoint, tmp_path):
    """The positions of SD3 lose a side of 1; older files of SDXL have linear projections with two of them."""
    tensors = {n: v.numpy() for n, v in read_tensors(tiny_checkpoint("sd3")).items()}
    name = "model.diffusion_model.pos_embed"
    short = write_gguf(tmp_path / "sd3.gguf", tensors | {name: tensors[name][0]}, {})
    assert recognise(short).parts["denoiser"].shapes["pos_embed"] == tensors[name].shape
    tensors = {n: v.numpy() for n, v in read_tensors(tiny_checkpoint("sdxl")).items()}
    turned = {
        n: v[:, :, None, None]
        for n, v in tensors.items()
        if n.startswith("model.") and n.endswith(("proj_in.weight", "proj_out.weight"))
    }
    assert len(turned) > 2 and all(value.ndim == 4 for value in turned.values())
    found = recognise(write_gguf(tmp_path / "sdxl.gguf", tensors | turned, {}))
    assert found.family.name == "sdxl" and found.parts["denoiser"].config == TINY["sdxl"]["denoiser"]


def test_t5_in_the_names_of_llama_cpp(tmp_path):
    net = tiny_net("sd3", "text_3")
    theirs = {n: v.numpy() for n, v in translate(net.state_dict(), LLAMA, back=True).items()}
    assert {"token_embd.weight", "enc.blk.1.ffn_gate.weight", "enc.blk.0.attn_rel_b.weight"} <= theirs.keys()
    found = recognise(write_gguf(tmp_path / "t5.gguf", theirs, {}, arch="t5encoder"))
    assert list(found.parts) == ["text_3"] and found.parts["text_3"].config == net.config
    back = found.parts["text_3"].tensors()
    assert all(torch.equal(back[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("fused", [True, False])
def test_the_text_encoder_in_stable_diffusion_cpps_own_names(fused, tmp_path):
    net = tiny_net("sdxl", "text_2")
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    turn = state.pop("text_projection.weight")
    if fused:
        for name in [name for name in state if ".q_proj." in name]:
            three = [state.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            state[name.replace("q_proj", "in_proj")] = np.concatenate(three)
    prefix = "cond_stage_model.1.transformer."
    state["text_model.text_projection"] = np.ascontiguousarray(turn.T)
    path = write_gguf(tmp_path / "text.gguf", {prefix + name: value for name, value in state.items()}, {})
    if not fused:
        with pytest.raises(BadWeights, match="in either of two ways, and nothing tells which"):
            recognise(path)
        return
    back = recognise(path).parts["text_2"].tensors()
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in net.state_dict().items())


def test_without_the_package_one_command_is_named(tiny_checkpoint, tmp_path, monkeypatch):
    path = q8(tmp_path / "a.gguf", tiny_checkpoint("sd15"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadWeights, match=r'a\.gguf is quantised; to unpack it: pip install "limner\[gguf\]"'):
        recognise(path).parts["denoiser"].tensors()
    plain = write_gguf(tmp_path / "b.gguf", {"w": np.ones(3, np.float32)}, {})
    assert weights_of(plain, ["w"])["w"].tolist() == [1, 1, 1]


def raw(
    *tensors: tuple[bytes, list[int], int, int], body: int = 64, facts: bytes = b"", count: int = -1, known: int = 0,
    magic: bytes = b"GGUF", version: int = 3,
) -> bytes:  # fmt: skip
    """A file of parts that need not fit: tensors as (name, sides, kind, offset), then `body` bytes."""
    head = magic + struct.pack("<IQQ", version, len(tensors) if count < 0 else count, known) + facts
    for name, sides, kind, offset in tensors:
        head += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(sides)}Q", len(sides), *sides)
        head += struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + bytes(body)


def fact(kind: int, value: bytes, name: bytes = b"general.alignment") -> dict[str, Any]:
    return {"facts": struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value, "known": 1}


LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it begins with b''"),
    "another file": (b"GGML" + bytes(60), "it begins with b'GGML'"),
    "the magic alone": (b"GGUF", "ends within the header"),
    "version 1": (raw(version=1), "version 1;"),
    "big-endian": (raw(version=3 << 24), "version 50331648;"),
    "too many tensors": (raw(count=2**63), "more than any model has"),
    "more tensors than there are": (raw((b"a", [8], 0, 0), count=2, body=0), "ends within"),
    "too many facts": (raw(known=2**40), "more than any model has"),
    "a name as long as the file": (raw(facts=struct.pack("<Q", 2**62), known=1), "bytes are announced"),
    "a name that is no text": (raw((b"\xff", [8], 0, 0), body=32), "utf-8"),
    "a name with marks": (raw((b"a\x1b[2J", [8], 0, 0), body=32), "not printable"),
    "a name of a kilobyte": (raw((b"a" * 1024, [8], 0, 0), body=32), "longer than 512"),
    "a name twice": (raw((b"a", [8], 0, 0), (b"a", [8], 0, 32)), "stands twice"),
    "a thousand sides": (raw((b"a", [1] * 1000, 0, 0), body=32), "has 1000 sides"),
    "four thousand million sides": (raw(count=1, facts=struct.pack("<QcI", 1, b"a", 2**32 - 1)), "sides, and"),
    "a side of 2^64": (raw((b"a", [2**64 - 1], 0, 0), body=32), "larger than any memory"),
    "a product that overflows": (raw((b"a", [2**32, 2**32], 0, 0), body=32), "larger than any memory"),
    "empty and enormous": (raw((b"a", [0, 2**40, 2**40], 0, 0), body=0), "larger than any memory"),
    "a kind that is not read": (raw((b"a", [256], 15, 0), body=292), "packed as Q8_K"),
    "a kind that nobody knows": (raw((b"a", [256], 77, 0), body=292), "packed as kind 77"),
    "rows that fill no blocks": (raw((b"a", [33], 8, 0), body=64), "rows of 33 values"),
    "a number in blocks": (raw((b"a", [], 8, 0), body=32), "rows of 1 values"),
    "an odd offset": (raw((b"a", [8], 0, 4), body=64), "no multiple of 32"),
    "an offset past the end": (raw((b"a", [8], 0, 2**40), body=32), "takes bytes"),
    "a tensor past the end": (raw((b"a", [64], 0, 0), body=32), "takes bytes"),
    "overlapping": (raw((b"a", [16], 0, 0), (b"b", [16], 0, 32), body=96), "takes bytes"),
    "the same bytes": (raw((b"a", [16], 0, 0), (b"b", [16], 0, 0)), "takes bytes"),
    "a gap": (raw((b"a", [8], 0, 0), (b"b", [8], 0, 96), body=128), "takes bytes"),
    "bytes that no tensor owns": (raw((b"a", [8], 0, 0), body=640), "the file has"),
    "no alignment": (raw((b"a", [8], 0, 0), body=32, **fact(4, struct.pack("<I", 0))), "no power of two"),
    "an odd alignment": (raw((b"a", [8], 0, 0), body=32, **fact(4, struct.pack("<I", 48))), "no power of two"),
    "an alignment in words": (raw((b"a", [8], 0, 0), **fact(8, struct.pack("<Q", 2) + b"32")), "no power of two"),
    "a fact of no type": (raw(**fact(13, b"")), "type 13"),
    "lists of lists": (raw(**fact(9, struct.pack("<IQ", 9, 1))), "a list of type 9"),
    "a list without end": (raw(**fact(9, struct.pack("<IQ", 6, 2**61))), "bytes are announced"),
    "texts without end": (raw(**fact(9, struct.pack("<IQ", 8, 2**61))), "a list of"),
    "empty texts": (raw(**fact(9, struct.pack("<IQ", 8, 299_999)), body=8_000_000), "whole"),
    "half a text": (raw(**fact(8, struct.pack("<Q", 2**63) + b"ab")), "bytes are announced"),
    "a fact twice": (raw(facts=2 * fact(7, b"\1")["facts"], known=2), "stands twice"),
    "a shape of text": (
        raw((b"a", [8], 0, 0), body=32, **fact(8, struct.pack("<Q", 1) + b"8", SHAPE.encode() + b"a")), "the shape 8"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
@pytest.mark.parametrize("opens", [read_gguf_header, recognise, lambda path: load(str(path))])
def test_a_header_that_lies_is_refused_before_anything_is_made(kind, opens, tmp_path, monkeypatch):
    monkeypatch.setattr("limner.weights.gguf.map_file", lambda *_: pytest.fail("the file was mapped for tensors"))
    data, why = LIES[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(BadWeights) as caught:
        opens(path)
    assert str(path) in str(caught.value) and why in str(caught.value) and len(str(caught.value)) < 500


def test_a_pipe_and_a_name_without_a_suffix(tmp_path, tiny_checkpoint):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(BadWeights, match="is not a file"):
        weights_header(tmp_path / "pipe.gguf")
    path = q8(tmp_path / "a.gguf", tiny_checkpoint("sd15")).rename(tmp_path / "model")
    assert recognise(path).family.name == "sd15"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    value = np.random.default_rng(3).standard_normal((4, 64), dtype=np.float32)
    tensors = {"a.weight": value, "b.weight": value[0], "c.weight": value.astype(np.float16)}
    path = write_gguf(
        tmp_path_factory.mktemp("gguf") / "a.gguf", tensors, {"a.weight": "Q8_0"}, shapes={"a.weight": (2, 2, 64)}
    )
    return path.read_bytes()


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_with_other_bytes_is_read_or_refused_in_words(data, small, tmp_path):
    changed = bytearray(small[: data.draw(st.sampled_from([len(small), data.draw(st.integers(0, len(small)))]))])
    for at in data.draw(st.lists(st.integers(0, max(len(changed) - 1, 0)), max_size=4)) if changed else []:
        width = data.draw(st.sampled_from([1, 4, 8]))
        number = data.draw(st.sampled_from([0, 1, 31, 255, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
        changed[at : at + width] = (number & (256**width - 1)).to_bytes(width, "little")[: len(changed) - at]
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(changed)
    try:
        header = read_gguf_header(path)
    except LimnerError as error:
        assert str(path) in str(error)
        return
    found = read_gguf_tensors(path, header.entries)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: entry.shape for name, entry in header.entries.items()
    }

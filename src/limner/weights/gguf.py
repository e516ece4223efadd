"""GGUF files, read with our own check of the header; the package `gguf` unpacks what is quantised, and nothing else.

The format (ggml-org/ggml, docs/gguf.md): magic and version, the number of tensors and of facts, the facts (a name, a
type, a value), then of each tensor the name, the sides from the innermost out, the kind and the offset, then the
bytes, each tensor at a multiple of the alignment. All is checked against the file's size before a tensor is made.
"""

from __future__ import annotations

import importlib
import math
import mmap
import re
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.errors import BadWeights
from limner.weights.io import MAX_AXES, MAX_NAME, Entry, Header, map_file, mapped_tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the first, of August 2023, had other widths; no image model was written in it
MAX_TENSORS = 25_000  # ten times the most of any network
MAX_TEXTS = 300_000  # texts in all facts; the largest vocabulary of a text encoder has 256,384
MAX_TEXT = 4096  # bytes of a fact that is kept; longer ones are passed over
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # facts' types
TEXT, ARRAY = 8, 9
WHOLE = {0, 1, 2, 3, 4, 5, 10, 11}
PLAIN = {
    0: torch.float32, 1: torch.float16, 24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64,
    28: torch.float64, 30: torch.bfloat16,
}  # fmt: skip
KINDS = {  # ggml's number of a kind -> its name, values in a block, bytes of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
REFUSED = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip
NUMBER_OF = {name: number for number, (name, _, _) in KINDS.items()}
SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF's note of a shape whose rows did not fit whole blocks
LINEAR = re.compile(r"(model\.diffusion_model\.)?(input_blocks|middle_block|output_blocks)\..*\.proj_(in|out)\.weight")
TURNED = "cond_stage_model.1.transformer.text_model.text_projection"  # OpenCLIP's or transformers', which is turned
FUSED = "cond_stage_model.1.transformer.text_model.encoder.layers.0.self_attn.in_proj.weight"  # OpenCLIP's alone has it
STEP = 2**20  # values that are unpacked at a time, for their 32 bits are in memory beside the result


def is_gguf(path: Path) -> bool:
    """Whether a file is called .gguf or begins as one; a pipe is not opened."""
    try:
        if path.suffix == ".gguf" or not stat.S_ISREG(path.stat().st_mode):
            return path.suffix == ".gguf"
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False  # the next reader says why


@dataclass
class Cursor:
    """Where reading stands in a file's bytes, and how many texts were met."""

    data: mmap.mmap
    at: int = 4
    texts: int = 0

    def number(self, code: str) -> Any:
        """One number; past the end struct refuses."""
        (found,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return found

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError(
                f"{count} bytes are announced at byte {self.at}, behind which {len(self.data) - self.at} are"
            )
        self.at += count

    def text(self, most: int) -> str | None:
        """A text, or None where it is longer than `most` bytes."""
        self.texts += 1
        if self.texts > MAX_TEXTS:
            raise ValueError(f"more than {MAX_TEXTS} texts")
        length, start = self.number("Q"), self.at
        self.skip(length)
        return self.data[start : self.at].decode() if length <= most else None


def read_gguf_header(path: Path) -> Header:
    """The checked header of a file: shapes from the outermost side in, as torch has them. Reads no tensor.

    An entry's dtype is what its tensor becomes: its own, or fp16 where it is quantised. Facts of one text are metadata.
    Raises BadWeights: no GGUF file, cut, counts, lengths or offsets that do not fit, a name twice, an unknown kind,
    tensors that overlap, leave a gap or pass the end.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise BadWeights(f"{path} is not a file")
        with path.open("rb") as file:
            if (first := file.read(4)) != MAGIC:
                raise BadWeights(f"{path} is not a GGUF file: it begins with {first!r} and not {MAGIC!r}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadWeights(f"{path} cannot be read: {error.strerror}") from error
    with data:
        try:
            return _header(Cursor(data))
        except (ValueError, struct.error, OverflowError) as error:
            why = "it ends within the header" if isinstance(error, struct.error) else str(error)[:200]
            raise BadWeights(f"{path} is not a whole GGUF file: {why}") from error


def _header(cursor: Cursor) -> Header:
    if (version := cursor.number("I")) not in VERSIONS:
        raise ValueError(f"version {version}; versions {VERSIONS[0]} and {VERSIONS[1]}, little-endian, are read")
    count, facts = cursor.number("Q"), cursor.number("Q")
    if count > MAX_TENSORS or facts > MAX_TENSORS + 1000:
        raise ValueError(f"{count} tensors and {facts} facts, more than any model has")
    told: dict[str, Any] = {}
    for _ in range(facts):
        name = _name(cursor.text(MAX_NAME), told)
        told[name] = _fact(cursor, cursor.number("I"))
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = _name(cursor.text(MAX_NAME), found)
        axes = cursor.number("I")
        if axes > MAX_AXES:
            raise ValueError(f"{name!r} has {axes} sides, and {MAX_AXES} are the most")
        sides = tuple(cursor.number("Q") for _ in range(axes))
        found[name] = sides[::-1], cursor.number("I"), cursor.number("Q")
    step = told.get("general.alignment", 32)
    if type(step) is not int or not 0 < step <= 2**20 or step & (step - 1):
        raise ValueError(f"an alignment of {step!r}, which is no power of two")
    base = -(-cursor.at // step) * step
    entries = {name: _entry(name, *rest, base, step, told) for name, rest in found.items()}
    _lie_well(entries, base, step, len(cursor.data))
    if TURNED in entries and FUSED not in entries:
        raise ValueError(f"an older converter kept {TURNED!r} in either of two ways, and nothing tells which")
    vector = any(name.endswith("label_emb.0.0.weight") for name in entries)
    entries = {name: _as_published(name, entry, vector) for name, entry in entries.items()}
    return Header(entries, {name: text for name, text in told.items() if isinstance(text, str)})


def _name(name: str | None, taken: Mapping[str, Any]) -> str:
    if not name or not name.isprintable():  # it would be shown on a terminal
        raise ValueError(f"a name that is longer than {MAX_NAME} letters, empty or not printable: {str(name)[:40]!r}")
    if name in taken:
        raise ValueError(f"{name!r} stands twice in the header")
    return name


def _fact(cursor: Cursor, kind: int) -> Any:
    """A fact's value: a number, a text, a short tuple of whole numbers (a shape), or None for all else."""
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind])
    if kind == TEXT:
        return cursor.text(MAX_TEXT)
    if kind != ARRAY:
        raise ValueError(f"a fact of type {kind}, which is not known")
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == TEXT:
        if count > MAX_TEXTS:
            raise ValueError(f"a list of {count} texts")
        for _ in range(count):
            cursor.text(0)
    elif kind not in NUMBERS:
        raise ValueError(f"a list of type {kind}, which is not known")
    elif kind in WHOLE and count <= MAX_AXES:
        return tuple(cursor.number(NUMBERS[kind]) for _ in range(count))
    else:
        cursor.skip(count * struct.calcsize(f"<{NUMBERS[kind]}"))
    return None


def _entry(
    name: str, shape: tuple[int, ...], number: int, offset: int, base: int, step: int, told: Mapping[str, Any]
) -> Entry:
    if number not in KINDS:
        raise ValueError(f"{name!r} is packed as {REFUSED.get(number, f'kind {number}')}, which is not read here")
    kind, block, size = KINDS[number]
    values = math.prod(shape)
    if math.prod(max(n, 1) for n in shape) >= 2**60:
        raise ValueError(f"{name!r} has a shape that is larger than any memory")
    if (row := shape[-1] if shape else 1) % block:
        raise ValueError(f"{name!r} has rows of {row} values, which blocks of {block} ({kind}) do not fill")
    if offset % step:
        raise ValueError(f"{name!r} begins at {offset}, which is no multiple of {step}")
    if (noted := told.get(SHAPE + name)) is not None:
        if not isinstance(noted, tuple) or min(noted, default=1) < 0 or math.prod(noted) != values:
            raise ValueError(f"{name!r} of shape {list(shape)} cannot have had the shape {str(noted)[:80]}")
        shape = noted
    start = base + offset
    return Entry(PLAIN.get(number, torch.float16), shape, start, start + values // block * size, kind)


def _lie_well(entries: Mapping[str, Entry], base: int, step: int, size: int) -> None:
    """Raise ValueError unless the tensors fill what is behind the header, with less than a step between them."""
    at, last = base, base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if not at <= entry.start < at + step or entry.end > size:
            raise ValueError(
                f"{name!r} takes bytes {entry.start} to {entry.end}; the next that is free is {at}, the end {size}"
            )
        last, at = entry.end, -(-entry.end // step) * step
    if entries and not last <= size < last + step + 1:
        raise ValueError(f"the header speaks of {last} bytes and the file has {size}")


def _as_published(name: str, entry: Entry, vector: bool) -> Entry:
    """ggml drops outer sides of 1 and stable-diffusion.cpp gave SDXL's projections sides of 1: as published again."""
    shape = entry.shape
    if name.endswith("pos_embed") and len(shape) == 2:
        shape = (1, *shape)
    elif vector and LINEAR.fullmatch(name) and shape[2:] == (1, 1):
        shape = shape[:2]
    return Entry(entry.dtype, shape, entry.start, entry.end, entry.kind)


def read_gguf_tensors(path: Path, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Tensors of a file by their checked entries: plain ones mapped, quantised ones unpacked into fp16."""
    unpack = _unpacker(path, (entry.kind for entry in entries.values()))
    mapped = map_file(path)
    return {
        name: mapped_tensor(mapped, entry) if NUMBER_OF[entry.kind] in PLAIN else _unpacked(mapped, entry, unpack)
        for name, entry in entries.items()
    }


def _unpacker(path: Path, kinds: Iterable[str]) -> Any:
    """gguf's function of bytes and kind, where any kind needs it."""
    if all(NUMBER_OF[kind] in PLAIN for kind in kinds):
        return None
    try:
        package = importlib.import_module("gguf")
    except ImportError as error:
        raise BadWeights(f'{path} is quantised; to unpack it: pip install "limner[gguf]"') from error
    return lambda data, kind: package.dequantize(data, package.GGMLQuantizationType(NUMBER_OF[kind]))


def _unpacked(mapped: mmap.mmap, entry: Entry, unpack: Any) -> Tensor:
    _, block, size = KINDS[NUMBER_OF[entry.kind]]
    made = torch.empty(entry.shape, dtype=torch.float16)
    if not made.numel():
        return made
    raw = np.frombuffer(mapped, np.uint8, entry.end - entry.start, entry.start)
    with np.errstate(all="ignore"):  # a scale may be infinite or no number, as any weight may
        for i, out in enumerate(made.view(-1).split(STEP)):
            at = i * (STEP // block) * size
            values = unpack(raw[at : at + len(out) // block * size].reshape(1, -1), entry.kind)
            out.copy_(torch.from_numpy(values).flatten())
    return made

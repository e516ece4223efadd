"""Weights of 8 bits with a scale beside them, as ComfyUI's files keep them: W is the small numbers times the scale.

`X.weight` is int8 or fp8 and `X.weight_scale` (earlier `X.scale_weight`) a number, or one for each output channel
(Comfy-Org/ComfyUI, QUANTIZATION.md). What we write is symmetric int8 for each output channel.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import BadWeights
from limner.weights.io import MAX_VALUES, Header, read_tensors

SMALL = {torch.int8, torch.float8_e4m3fn, torch.float8_e5m2}
FORMATS = {
    "int8_tensorwise",
    "float8_e4m3fn",
    "float8_e5m2",
}  # ComfyUI's words for what a scale of this kind belongs to
ASIDE = re.compile(r"(.*\.)?scaled_fp8|.*\.(input_scale|scale_input|comfy_quant)")  # hints for fast products; marks
NOTE = "_quantization_metadata"  # ComfyUI's fact in the header: which layers are kept in which format
LEAST = 2**14  # values of a matrix that is worth a scale
MOST = 127  # of an int8 that is symmetric


def scales(path: Path, header: Header) -> dict[str, str]:
    """The name of each small weight's scale, by the weight's name.

    Raises BadWeights for int8 without a scale, and for a scale or format that is read otherwise than here.
    """
    found: dict[str, str] = {}
    for name, entry in header.entries.items():
        if entry.dtype not in SMALL or entry.kind:
            continue
        names = (f"{name}_scale", f"{name.removesuffix('weight')}scale_weight")
        scale = next((each for each in names if each in header.entries), "")
        if not scale:
            if entry.dtype is torch.int8:
                raise BadWeights(f"{path}: {name!r} is int8, and no {names[0]!r} lies beside it")
            continue  # fp8 that was cast and not scaled
        told = header.entries[scale]
        if not told.dtype.is_floating_point or math.prod(told.shape) not in (1, *entry.shape[:1]):
            raise BadWeights(
                f"{path}: {scale!r} of shape {list(told.shape)} is not one scale, nor one for each row of {name!r}"
            )
        found[name] = scale
    for layer, kind in _formats(path, header).items():
        if kind not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise BadWeights(f"{path}: {layer[:80]!r} is kept as {kind[:80]!r}, which is not read here; {known} are")
    return found


def _formats(path: Path, header: Header) -> dict[str, str]:
    """What the file says of its layers' formats, in the header or in a tensor of JSON beside each."""
    marks = {n: e for n, e in header.entries.items() if n.endswith(".comfy_quant") and e.dtype is torch.uint8}
    if any(math.prod(entry.shape) > 4096 for entry in marks.values()):
        raise BadWeights(f"{path}: a note on how a layer is kept is longer than any is")
    notes = read_tensors(path, Header(marks, {})) if marks else {}
    said = header.metadata.get(NOTE, "{}")
    if sum(map(said.count, "[{,")) > MAX_VALUES:
        raise BadWeights(f"{path}: what it says of its layers' formats is longer than that of any model")
    texts = {name.removesuffix(".comfy_quant"): bytes(note.tolist()) for name, note in notes.items()}
    try:
        told = {layer: json.loads(text) for layer, text in texts.items()}
        told |= json.loads(said).get("layers", {})
        turned = {layer: " with rotations" if each.get("convrot") else "" for layer, each in told.items()}
        return {layer: f"{each.get('format')}{turned[layer]}" for layer, each in told.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadWeights(f"{path}: what it says of its layers' formats is not JSON of their kind") from error


def without_scales(path: Path, header: Header) -> Header:
    """The header as networks see it: weights alone."""
    beside = set(scales(path, header).values())
    kept = {n: e for n, e in header.entries.items() if n not in beside and not ASIDE.fullmatch(n)}
    return Header(kept, header.metadata)


def read_scaled(path: Path, header: Header, names: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of a file, those with a scale multiplied by it, in fp16; all others as they are, mapped."""
    beside = {name: scale for name, scale in scales(path, header).items() if name in names}
    wanted = {name: header.entries[name] for name in (*names, *beside.values())}
    found = read_tensors(path, Header(wanted, {}))
    return {name: _whole(found[name], found[beside[name]]) if name in beside else found[name] for name in names}


def _whole(small: Tensor, scale: Tensor) -> Tensor:
    rows = scale.float().reshape(-1, *(1,) * (small.ndim - 1))
    return small.float().mul_(rows).half()


def scaled(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A weight as int8 and a scale for each output channel, which stands first."""
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1, keepdim=True) / MOST
    scale[scale == 0] = 1
    small = (rows / scale).round_().clamp_(-MOST, MOST).to(torch.int8)
    return {name: small.view(weight.shape), f"{name}_scale": scale.view(-1, *(1,) * (weight.ndim - 1))}


def note(names: Collection[str]) -> dict[str, str]:
    """The fact by which ComfyUI knows these layers."""
    layers = {name.removesuffix(".weight"): {"format": "int8_tensorwise"} for name in sorted(names)}
    return {NOTE: json.dumps({"format_version": "1.0", "layers": layers})}

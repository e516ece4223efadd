"""One door to the forms in which files keep weights: plain safetensors, those with scales, GGUF."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from limner.weights.gguf import is_gguf, read_gguf_header, read_gguf_tensors
from limner.weights.io import Header, read_header
from limner.weights.scaled import read_scaled, without_scales

SUFFIXES = (".safetensors", ".gguf")


def weights_header(path: Path) -> Header:
    """The checked header of a file: its weights, without what says how they are kept. Reads no weight."""
    return read_gguf_header(path) if is_gguf(path) else without_scales(path, read_header(path))


def weights_of(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some weights of a file: mapped where they are kept plain, in fp16 where they are quantised."""
    if not is_gguf(path):
        return read_scaled(path, read_header(path), names)
    inside = read_gguf_header(path).entries
    return read_gguf_tensors(path, {name: inside[name] for name in names})

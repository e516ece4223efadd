"""safetensors files, read with our own check of the header and written whole or not at all.

The format (huggingface/safetensors, "Format"): eight bytes of header length, a JSON header that gives each tensor's
dtype, shape and byte range, then the bytes. Everything is checked against the size of the file before a tensor is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import BadWeights, NotSaved

MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_AXES = 16  # no network has more; bounds the products of hostile shapes
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    end: int


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> Header:
    """The checked header of a file. Reads no tensor.

    Raises BadWeights: too short, header longer than the file, not JSON, a name twice, an unknown dtype, a byte range
    that does not fit its shape, overlaps another, leaves a gap or passes the end.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise BadWeights(f"{path} is not a whole safetensors file: {size} bytes, header of {length}")
            text = file.read(length)
    except OSError as error:
        raise BadWeights(f"{path} cannot be read: {error.strerror}") from error

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise BadWeights(f"{path}: {counts.most_common(1)[0][0]!r} stands twice in the header")
        return found

    try:
        raw = json.loads(text, object_pairs_hook=once)
        metadata = raw.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata that is not text")
        entries = {name: _entry(value, 8 + length) for name, value in raw.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error)[:200]  # a hostile name can be as long as the file
        raise BadWeights(f"{path}: the header is not that of a safetensors file ({why})") from error
    at = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        want = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != at or entry.end - entry.start != want:
            raise BadWeights(
                f"{path}: tensor {name!r} of shape {list(entry.shape)} should take bytes {at} to {at + want}, "
                f"and the header says {entry.start} to {entry.end}"
            )
        at = entry.end
    if at != size:
        raise BadWeights(f"{path}: the header speaks of {at} bytes and the file has {size}")
    return Header(entries, metadata)


def _entry(value: dict[str, Any], base: int) -> Entry:
    shape, (start, end) = value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise ValueError(f"a shape is not a list of at most {MAX_AXES} numbers")
    if not all(type(n) is int and 0 <= n < 2**40 for n in (*shape, start, end)):
        raise ValueError(f"shape {shape} or range {start} to {end} is not made of whole numbers")
    if math.prod(max(n, 1) for n in shape) >= 2**60:  # with a zero beside it, it would pass for empty
        raise ValueError(f"shape {shape} is larger than any memory")
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype {value['dtype']!r} is not known")
    return Entry(DTYPES[value["dtype"]], tuple(shape), base + start, base + end)


def read_tensors(path: Path, header: Header | None = None) -> dict[str, Tensor]:
    """All tensors of a file, mapped and not copied; writing into them changes no file."""
    header = header or read_header(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _tensor(mapped, entry) for name, entry in header.entries.items()}


def _tensor(mapped: mmap.mmap, entry: Entry) -> Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if entry.start % entry.dtype.itemsize:  # an odd header: rare, so a copy is good enough
        return torch.frombuffer(bytearray(mapped[entry.start : entry.end]), dtype=entry.dtype).view(entry.shape)
    return torch.frombuffer(mapped, dtype=entry.dtype, count=count, offset=entry.start).view(entry.shape)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write under a temporary name, sync, rename: the file is whole or it is not there."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at, ordered = 0, sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise NotSaved(f"{path} could not be written: {name!r} is {tensor.dtype}, which no reader here knows")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, tensor in ordered:
                flat = tensor.detach().to("cpu").contiguous().reshape(-1)
                if flat.numel():
                    file.write(flat.view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NotSaved(f"{path} could not be written: {error.strerror or error}") from error
        raise

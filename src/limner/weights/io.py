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
import re
import stat
import struct
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner.errors import BadWeights, NotSaved

SHA256 = 64  # letters
MAX_HEADER = 10_000_000  # bytes; the format allows ten times more, and reading that takes seconds and a gigabyte
MAX_VALUES = 250_000  # braces, brackets and commas of a header: 25,000 tensors, ten times the most of any network
MAX_NAME = 512  # letters; the longest of a published network has 120
MAX_AXES = 16  # no network has more; bounds the products of hostile shapes
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAPPED: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()  # by where they begin in memory


@dataclass(frozen=True)
class Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    end: int
    kind: str = ""  # how a GGUF file packs it


@dataclass(frozen=True)
class Header:
    entries: dict[str, Entry]
    metadata: dict[str, str]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path, folder: Path) -> str:
    """The same, computed once for as long as the file stands there with this size and time; kept in a folder."""
    about = path.stat()
    place = f"{path.resolve()} {about.st_size} {about.st_mtime_ns}"
    kept = folder / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.sha256"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(told := kept.read_text(encoding="ascii")) == SHA256:
            return told
    told = sha256(path)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(told, encoding="ascii")
    return told


def read_header(path: Path) -> Header:
    """The checked header of a file. Reads no tensor.

    Raises BadWeights: a pickle, too short, header longer than the file, not JSON, a name twice, an unknown dtype, a
    byte range that does not fit its shape, overlaps another, leaves a gap or passes the end.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for ever
            raise BadWeights(f"{path} is not a file")
        size = state.st_size
        with path.open("rb") as file:
            refuse_pickle(path, first := file.read(9))
            length = struct.unpack("<Q", first[:8])[0] if len(first) > 8 else -1
            if not 2 <= length <= size - 8:
                raise BadWeights(f"{path} is not a whole safetensors file: {size} bytes, header of {length}")
            if length > MAX_HEADER:
                raise BadWeights(f"{path}: a header of {length} bytes is longer than any model needs ({MAX_HEADER})")
            text = first[8:] + file.read(length - 1)
    except OSError as error:
        raise BadWeights(f"{path} cannot be read: {error.strerror}") from error
    if _values(text) > MAX_VALUES:
        raise BadWeights(f"{path}: the header holds more than {MAX_VALUES} values, which no model needs")

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
        if strange := next((name for name in raw if len(name) > MAX_NAME or not name.isprintable()), None):
            raise ValueError(f"a name of {len(strange)} letters, {strange[:40]!r}")  # it would be shown on a terminal
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


def is_pickle(first: bytes) -> bool:
    """Whether a file of these first nine bytes is a pickle or a zip; the ninth of safetensors opens the header."""
    return first[8:9] != b"{" and re.match(rb"PK[\1-\7]|\x80[\0-\5]", first) is not None


def refuse_pickle(path: Path, first: bytes | None = None) -> None:
    """Raise BadWeights, with the command that converts it, where a file is a pickle or a zip, whatever it is called."""
    try:
        if first is None:
            with path.open("rb") as file:
                first = file.read(9)
    except OSError as error:
        raise BadWeights(f"{path} cannot be read: {error.strerror}") from error
    if is_pickle(first):
        raise BadWeights(
            f"{path} is a pickle or a zip, which could run code and is never opened here; "
            f"this makes a safetensors file of it: limner models convert {path.name} {path.stem}.safetensors"
        )


def refuse_link(file: Path, folder: Path) -> None:
    """Raise BadWeights where a file of a model's folder is a link to somewhere else.

    The hub's cache keeps a folder of links to the files beside it, which are that folder's own.
    """
    home, real = (Path(os.path.realpath(path)) for path in (folder, file))  # a link to itself is no error
    cache = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if home not in real.parents and cache not in real.parents:
        raise BadWeights(f"{file} is a link out of its folder, to {real}")


def _values(text: bytes) -> int:
    """How many values JSON holds, roughly, so that a header is not read into a hundred times its size."""
    if sum(map(text.count, b"[{,")) <= MAX_VALUES:  # nearly always: no need to look which of them stand in texts
        return 0
    bare = re.sub(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', b"", text, flags=re.DOTALL)
    return sum(map(bare.count, b"[{,"))


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
    mapped = map_file(path)
    return {name: mapped_tensor(mapped, entry) for name, entry in header.entries.items()}


def map_file(path: Path) -> mmap.mmap:
    """A file's bytes, looked at when they are needed; `release` knows them."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    MAPPED[torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()] = mapped
    return mapped


def release(tensor: Tensor) -> bool:
    """Give the pages of a mapped tensor back to the system; they are read again when they are next looked at.

    Only for tensors that nobody wrote into: what was written is lost. False where nothing is mapped: a copy in memory,
    or a system without that call.
    """
    if not hasattr(mmap, "MADV_DONTNEED") or tensor.device.type != "cpu":
        return False
    start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    for begin, mapped in MAPPED.items():
        if begin <= start and start + size <= begin + len(mapped):
            first = (start - begin) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, first, start - begin + size - first)
            return True
    return False


def mapped_tensor(mapped: mmap.mmap, entry: Entry) -> Tensor:
    """One tensor of a mapped file."""
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

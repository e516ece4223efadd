"""The process that reads pickled weights: the standard library alone, no path, no import, and nothing to call but this.

Run by `limner.intake.pickles` as `python -I -S pickle_child.py MOST`: standard input is the old file, standard output
the new one (safetensors, at most MOST bytes), standard error one line of JSON. It has no torch and needs none: of a
tensor only where it lies is built, and its bytes are copied from file to file. torch's two formats are read: the zip of
torch 1.6 and later, and the row of pickles before it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import mmap
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, BinaryIO, Literal, NoReturn

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows, where the audit hook stands alone
    resource = None

MOST_PICKLE = 16_000_000  # bytes; a training state of Stable Diffusion 1.5 has 2 million
MOST_DATA = 96_000_000  # bytes that the process may allocate
MOST_MAPPED = 256_000_000  # bytes of address space beside the mapped file: Python, its libraries and the above
MOST_MEMBERS = 100_000  # of a zip; a whole training state has 4,000
MOST_SECONDS = 10  # of the processor, for the pickle; copying the tensors then takes as long as it takes
MOST_AXES = 16
MOST_NAME = 512  # letters
CHUNK = 16_000_000  # bytes that are copied at once
FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}  # plain numbers of so many bytes
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch's old format begins with these two pickles
NESTS = (
    "state_dict",
    "model_state_dict",
    "params_ema",
    "params",
    "module",
    "model",
)  # where training tools put weights
PARTED = ("image_proj", "ip_adapter")  # two tables that are one network (IP-Adapter)
INERT_PACKAGES = (
    "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "numpy", "argparse", "pathlib", "typing",
    "torch.optim", "torch.nn.modules",
)  # fmt: skip
INERT_NAMES = {
    "collections defaultdict", "copyreg _reconstructor", "copy_reg _reconstructor", "_codecs encode", "torch Size",
    "torch device", "torch.serialization _get_layout", "datetime datetime", "datetime timedelta",
} | {
    f"{module} {name}" for module in ("builtins", "__builtin__")
    for name in ("dict", "list", "tuple", "set", "frozenset", "int", "float", "complex", "str", "bytes", "bytearray",
                 "bool", "object", "slice", "range")
}  # fmt: skip


class Refused(Exception):
    """Why the file is not read, in the end of a sentence."""


class Inert:
    """Stands for whatever a training tool left beside the weights: takes all arguments, holds nothing, does nothing."""

    __slots__ = ()

    def __new__(cls, *_args: object, **_named: object) -> Inert:
        return object.__new__(cls)

    def nothing(self, *_args: object) -> None:
        pass

    __setstate__ = append = extend = add = __setitem__ = nothing


class Named(dict[Any, Any]):
    """Stands for collections.OrderedDict; what is set on it beside its items is dropped."""

    __slots__ = ()

    def __setstate__(self, _state: object) -> None:
        pass


class Parameters(Named):
    """Stands for torch's ParameterDict, in which old textual inversions are."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict) and isinstance(state.get("_parameters"), dict):
            self.update(state["_parameters"])


class Closed:
    """What a pickle may hold and pass on, and not change."""

    __slots__ = ()

    def __setstate__(self, _state: object) -> NoReturn:
        raise Refused("it sets attributes of torch's own things")


class Kind(Closed):
    """A dtype, or the storage type of one."""

    __slots__ = ("name", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size


class Storage(Closed):
    """Bytes of the old file; where they begin is known once the pickle is read."""

    __slots__ = ("count", "key", "kind")

    def __init__(self, key: str, kind: Kind, count: int) -> None:
        self.key, self.kind, self.count = key, kind, count

    @property
    def bytes(self) -> int:
        return self.count * self.kind.size


class Lying(Closed):
    """A tensor: where its numbers lie in a storage."""

    __slots__ = ("kind", "offset", "shape", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, kind: Kind | None = None) -> None:
        kind = kind or getattr(storage, "kind", None)
        if not isinstance(storage, Storage) or not isinstance(kind, Kind):
            raise Refused("a tensor has no storage")
        if not isinstance(shape, tuple) or not isinstance(stride, tuple) or not len(shape) == len(stride) <= MOST_AXES:
            raise Refused(f"a tensor's shape and strides are not two rows of at most {MOST_AXES} numbers")
        if not all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *stride)):
            raise Refused("a tensor's shape, strides or offset are not whole numbers")
        reach = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1 if all(shape) else 0
        if reach * kind.size > storage.bytes:
            raise Refused(f"a tensor of shape {list(shape)} reaches past the {storage.bytes} bytes of its storage")
        self.storage, self.offset, self.shape, self.stride, self.kind = storage, offset, shape, stride, kind

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.kind.size


class Maker(Closed):
    """One of the few functions that a pickle may call."""

    __slots__ = ("make",)

    def __init__(self, make: Any) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


def parameter(data: Any, *_more: Any) -> Lying:
    if not isinstance(data, Lying):
        raise Refused("a parameter is not a tensor")
    return data


DTYPES = {
    "float64": ("F64", 8, "Double"), "float32": ("F32", 4, "Float"), "float16": ("F16", 2, "Half"),
    "bfloat16": ("BF16", 2, "BFloat16"), "int64": ("I64", 8, "Long"), "int32": ("I32", 4, "Int"),
    "int16": ("I16", 2, "Short"), "int8": ("I8", 1, "Char"), "uint8": ("U8", 1, "Byte"), "bool": ("BOOL", 1, "Bool"),
    "float8_e4m3fn": ("F8_E4M3", 1, ""), "float8_e5m2": ("F8_E5M2", 1, ""),
}  # fmt: skip
TABLE: dict[str, Any] = {
    "collections OrderedDict": Named,
    "torch.nn.modules.container ParameterDict": Parameters,
    "torch._utils _rebuild_tensor": Maker(Lying),
    "torch._utils _rebuild_tensor_v2": Maker(
        lambda storage, offset, shape, stride, *_: Lying(storage, offset, shape, stride)
    ),
    "torch._utils _rebuild_tensor_v3": Maker(
        lambda storage, offset, shape, stride, _grad, _hooks, kind, *_: Lying(storage, offset, shape, stride, kind)
    ),
    "torch._utils _rebuild_parameter": Maker(parameter),
    "torch._utils _rebuild_parameter_with_state": Maker(parameter),
    "torch.storage UntypedStorage": Kind("U8", 1),
}  # fmt: skip
for _name, (_kind, _size, _storage) in DTYPES.items():
    TABLE[f"torch {_name}"] = Kind(_kind, _size)
    if _storage:
        TABLE[f"torch {_storage}Storage"] = Kind(_kind, _size)


class Reader(pickle.Unpickler):
    """Python's unpickler, in which a name means what the table says or is refused."""

    def __init__(self, file: Any, storages: dict[str, Storage]) -> None:
        super().__init__(file, fix_imports=False, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module} {name}"
        if asked in TABLE:
            return TABLE[asked]
        inside = any(module == package or module.startswith(f"{package}.") for package in INERT_PACKAGES)
        if asked in INERT_NAMES or inside:
            return Inert
        raise Refused(f"it asks for {clip(asked.replace(' ', '.'))}, which weights do not need")

    def persistent_load(self, told: Any) -> Storage:
        match told:
            case ("storage", Kind() as kind, str() as key, _, int() as count) | (
                "storage", Kind() as kind, str() as key, _, int() as count, None
            ) if 0 <= count < 2**40:  # fmt: skip
                made = self.storages.setdefault(key, Storage(key, kind, count))
                if (made.kind.name, made.count) != (kind.name, count):
                    raise Refused(f"storage {clip(key)} is told twice, and differently")
                return made
        raise Refused("it speaks of a storage as torch does not")


Checks = list[tuple[str, int, int, int]]  # name, first byte, length and checksum of what should be whole


def read(mapped: mmap.mmap, file: BinaryIO) -> tuple[Any, dict[str, int], Checks]:
    """What the file holds, where each storage begins in it, and what to check before it is used."""
    if mapped[:4] == b"PK\3\4":
        return read_zip(mapped, file)
    if mapped[:1] == b"\x80":
        return read_row(mapped)
    raise Refused("it is neither of torch's two formats")


def read_zip(mapped: mmap.mmap, file: BinaryIO) -> tuple[Any, dict[str, int], Checks]:
    members = zip_members(mapped, file)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Refused("it is a zip without one data.pkl, so torch did not write it")
    top = pickles[0].removesuffix("data.pkl")
    if strange := [name for name in members if not name.startswith(top)]:
        raise Refused(f"its member {clip(strange[0])} is outside of its own folder")
    if f"{top}byteorder" in members:
        start, size, _ = members[f"{top}byteorder"]
        if mapped[start : start + min(size, 9)].strip() != b"little":
            raise Refused("its numbers are big-endian")
    start, size, crc = members[pickles[0]]
    if size > MOST_PICKLE:
        raise Refused(f"its pickle of {size} bytes is longer than {MOST_PICKLE}")
    check(mapped, [(pickles[0], start, size, crc)])
    storages: dict[str, Storage] = {}
    found = Reader(io.BytesIO(mapped[start : start + size]), storages).load()
    starts: dict[str, int] = {}
    checks: Checks = []
    for key, storage in storages.items():
        name = f"{top}data/{key}"
        if name not in members:
            raise Refused(f"storage {clip(key)} is not in it")
        start, size, crc = members[name]
        if size != storage.bytes:
            raise Refused(f"storage {clip(key)} has {size} bytes, and {storage.bytes} are told")
        starts[key] = start
        checks.append((name, start, size, crc))
    return found, starts, checks


def zip_members(mapped: mmap.mmap, file: BinaryIO) -> dict[str, tuple[int, int, int]]:
    """First byte, length and checksum of each member; refuses what torch does not write: packed, twice, overlapping."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, OSError, NotImplementedError) as error:
        raise Refused(f"its zip is broken ({clip(str(error))})") from None
    if len(listed) > MOST_MEMBERS:
        raise Refused(f"it has {len(listed)} members, more than {MOST_MEMBERS}")
    found: dict[str, tuple[int, int, int]] = {}
    end = 0
    for member in sorted(listed, key=lambda each: each.header_offset):
        name, at = member.filename, member.header_offset
        if name in found:
            raise Refused(f"its member {clip(name)} is there twice")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise Refused(f"its member {clip(name)} leads out of its folder")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refused(f"its member {clip(name)} is packed or locked, which torch never does")
        head = mapped[at : at + 30]
        if at < end or len(head) < 30 or head[:4] != b"PK\3\4":
            raise Refused(f"its member {clip(name)} is not where the zip says, or overlaps another")
        start = at + 30 + sum(struct.unpack("<HH", head[26:30]))
        end = start + member.file_size
        if member.compress_size != member.file_size or end > len(mapped):
            raise Refused(f"its member {clip(name)} reaches past the end of the file")
        found[name] = (start, member.file_size, member.CRC)
    return found


def check(mapped: mmap.mmap, checks: Checks) -> None:
    for name, start, size, crc in checks:
        found = 0
        for at in range(start, start + size, CHUNK):
            found = zlib.crc32(memoryview(mapped)[at : min(at + CHUNK, start + size)], found)
        if found != crc:
            raise Refused(f"its member {clip(name)} is damaged: the checksum is wrong")


def read_row(mapped: mmap.mmap) -> tuple[Any, dict[str, int], Checks]:
    """torch before 1.6: two magic numbers, the machine, the object, the storages' names, and their bytes in a row."""
    storages: dict[str, Storage] = {}

    def following() -> Any:
        return Reader(mapped, storages).load()

    if following() != MAGIC or following() != PROTOCOL:
        raise Refused("it is a pickle, and not of torch")
    system = following()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its numbers are big-endian")
    found, keys, starts = following(), following(), dict[str, int]()
    if not isinstance(keys, list) or set(keys) != set(storages) or len(keys) != len(storages):
        raise Refused("its list of storages is not that of its tensors")
    if mapped.tell() > MOST_PICKLE:
        raise Refused(f"its pickles are longer than {MOST_PICKLE} bytes")
    at = mapped.tell()
    for key in keys:
        if mapped[at : at + 8] != struct.pack("<q", storages[key].count):
            raise Refused(f"storage {clip(key)} has not the length that is told")
        starts[key] = at + 8
        at += 8 + storages[key].bytes
    if at > len(mapped):
        raise Refused("it ends before its last storage does")
    return found, starts, []


def choose(found: Any) -> tuple[dict[str, Lying], str, list[str]]:
    """The weights, the name that they stood under ("" at the top), and the names of what is left out."""
    if not isinstance(found, dict):
        raise Refused("it holds no table of weights")
    beside = [name for name in found if not isinstance(found[name], Lying)]
    at, held = "", found
    for nest in NESTS:
        if isinstance(found.get(nest), dict) and any(isinstance(each, Lying) for each in found[nest].values()):
            at, held = nest, found[nest]
            beside = [name for name in found if name != nest]
            beside += [name for name in held if not isinstance(held[name], Lying)]
            break
    words = found.get("string_to_param")  # a textual inversion: one row of vectors for its word
    if not at and isinstance(words, dict) and len(words) == 1 and isinstance(next(iter(words.values())), Lying):
        at, held = "string_to_param", {"emb_params": next(iter(words.values()))}
        beside = [name for name in found if name != at]
    if not at and all(isinstance(found.get(part), dict) for part in PARTED):
        held = {f"{part}.{name}": each for part in PARTED for name, each in found[part].items()}
        beside = [name for name in found if name not in PARTED]
    tensors = {name: each for name, each in held.items() if isinstance(each, Lying)}
    if not tensors:
        raise Refused("no tensor is in it, or none where weights are kept")
    for name in tensors:
        if not isinstance(name, str) or len(name) > MOST_NAME or name == "__metadata__" or not name.isprintable():
            raise Refused(f"a weight is called {clip(repr(name) if isinstance(name, str) else 'by what is no text')}")
    return tensors, at, [clip(name) if isinstance(name, str) else "what has no name" for name in beside]


def runs(lying: Lying) -> Iterator[tuple[int, int, int]]:
    """First index, count and step of the runs that make up a tensor, in order; one run where it is contiguous."""
    axes: list[tuple[int, int]] = []
    for n, step in zip(lying.shape, lying.stride, strict=True):
        if n == 0:
            return
        if axes and axes[-1][1] == n * step:  # the axis before steps over this one: they are one
            axes[-1] = (axes[-1][0] * n, step)
        elif n > 1:
            axes.append((n, step))
    n, step = axes.pop() if axes else (1, 1)
    for index in itertools.product(
        *(range(0, size * by, by) if by else itertools.repeat(0, size) for size, by in axes)
    ):
        yield lying.offset + sum(index), n, step


def write(out: BinaryIO, mapped: mmap.mmap, tensors: dict[str, Lying], starts: dict[str, int], most: int) -> None:
    """safetensors: the header, then each tensor's bytes, the largest numbers first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ordered, at = sorted(tensors.items(), key=lambda item: (-item[1].kind.size, item[0])), 0
    for name, lying in ordered:
        header[name] = {"dtype": lying.kind.name, "shape": lying.shape, "data_offsets": (at, at + lying.bytes)}
        at += lying.bytes
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if 8 + len(text) + at > most:
        raise Refused(f"its tensors would take {at} bytes, far more than the file has")
    out.write(struct.pack("<Q", len(text)) + text)
    for _, lying in ordered:
        size, start = lying.kind.size, starts[lying.storage.key]
        whole = memoryview(mapped)[start : start + lying.storage.bytes // size * size].cast(FORMATS[size])
        for first, count, step in runs(lying):
            if step == 1:
                for part in range(first, first + count, CHUNK // size):
                    out.write(whole[part : min(part + CHUNK // size, first + count)])
            elif step == 0:
                out.write(whole[first : first + 1].tobytes() * count)
            else:
                out.write(whole[first : first + (count - 1) * step + 1 : step].tobytes())
    out.flush()


def clip(text: str) -> str:
    """A stranger's words, short and without marks that could steer a terminal."""
    return "".join(mark if mark.isprintable() else "?" for mark in text[:80])


def confine(size: int, most: int) -> None:
    """From here on the process can open, start, import and connect to nothing, whatever it is told."""
    for encoding in ("cp437", "utf-8", "latin-1", "ascii"):
        "".encode(encoding)  # loaded now: nothing can be imported later
    limits = {
        "RLIMIT_AS": size + MOST_MAPPED, "RLIMIT_DATA": MOST_DATA, "RLIMIT_FSIZE": most, "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": 0,
    }  # fmt: skip
    for name, limit in limits.items():
        bound(name, limit, limit)
    bound("RLIMIT_CPU", MOST_SECONDS, copying(size))

    def refuse(event: str, _args: tuple[Any, ...]) -> None:
        if event != "resource.setrlimit":  # a limit can only be lowered, or raised to what was allowed before
            raise Refused(f"it tried what weights do not need ({event})")

    sys.addaudithook(refuse)


def copying(size: int) -> int:
    """Seconds of the processor that a file of this size may take in all, at 20 MB a second."""
    return MOST_SECONDS + 60 + size // 20_000_000


def bound(name: str, soft: int, hard: int) -> None:
    if resource is not None and hasattr(resource, name):
        with contextlib.suppress(ValueError, OSError):  # a system that lacks this limit
            resource.setrlimit(getattr(resource, name), (soft, hard))


def main() -> NoReturn:
    most = int(sys.argv[1])
    told: dict[str, Any]
    try:
        file = io.FileIO(0, closefd=False)
        out = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
        size = os.fstat(0).st_size
        mapped = mmap.mmap(0, 0, access=mmap.ACCESS_READ)
        confine(size, most)
        found, starts, checks = read(mapped, file)
        tensors, at, beside = choose(found)
        bound("RLIMIT_CPU", copying(size), copying(size))
        check(mapped, checks)
        write(out, mapped, tensors, starts, most)
        told = {"tensors": len(tensors), "at": at, "beside": beside[:100]}
    except Refused as error:
        told = {"error": str(error)}
    except MemoryError:
        told = {"error": "reading it would take more memory than weights need"}
    except RecursionError:
        told = {"error": "it is nested deeper than weights are"}
    except Exception as error:
        told = {"error": clip(f"it is no sound pickle of weights ({type(error).__name__}: {error})")}
    os.write(2, json.dumps(told).encode())
    os._exit(3 if "error" in told else 0)


if __name__ == "__main__":
    main()

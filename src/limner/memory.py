"""What painting takes in memory beside the weights, as a rule of sizes, and how much memory there is. No tensor here.

The bytes a pixel were measured on CPUs in fp32, as the most by which the process grew; half types compute in fewer,
which is not counted on. The rule asks for more than a process holds, never for less: docs/performance.md, Memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
TILED, TILE = 3 * 2**19, 512  # pixels above which the autoencoder works in tiles of that side
AT_ONCE = 2**23 - 1  # pixels that are decoded: 256 channels of them are just counted in 32 bits
WINDOWS = 8  # that a denoiser takes together
CONTROL = 0.5  # a ControlNet is not half of its model's denoiser
STREAMED = 256 * MIB  # the largest layer of a published network in fp32, and what of others is not streamed
MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's names for what mallopt sets
MAPPED, TRIMMED = 2**16, 2**17  # what they are unless told
NEVER = -1  # of a threshold
PAGE, HUGEPAGE = 2 * MIB, 14  # a large page of x86 and of most ARM, and what Linux calls the wish for such
MOST_HEAP = 2**35  # bytes of addresses that are marked so
_holding: list[Any] = []  # the C library, while it is told to hold
GROUPS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # versions 2 and 1


@dataclass(frozen=True)
class Cost:
    """Bytes a pixel while networks are at work: the denoiser's, the autoencoder's; and what a call takes at least."""

    walk: int
    decode: int
    least: int


COSTS = {"mini": Cost(600, 600, 48 * MIB)}  # measured: 340 to 470 a pixel, and 27 MiB for the smallest picture
PUBLISHED = Cost(3000, 5200, 192 * MIB)  # a UNet takes 1,800 to 2,700, the autoencoder of every family 4,400


def cost_of(family: str) -> Cost:
    return COSTS.get(family, PUBLISHED)


def machine() -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    return min([_whole(), *(limit for limit, _ in _groups())])


def _whole() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30


def free() -> int:
    """Bytes that this process could still take: what the machine has, and what its container leaves."""
    groups, there = list(_groups()), _whole()
    with suppress(OSError, ValueError, IndexError):
        there = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    if not Path("/proc/meminfo").exists() and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return max(0, min([there, *(limit - used for limit, used in groups)]))


def _groups() -> Iterator[tuple[int, int]]:
    """Of each control group that this process is in, as it sees them: the limit, and what of it is taken for good."""
    for folder in _folders():
        for most, now in GROUPS:
            with suppress(OSError, ValueError):  # "max": no limit
                limit, used = (int((folder / name).read_text()) for name in (most, now))
                told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cache = sum(int(told.get(f"{kind}_file", 0)) for kind in ("active", "inactive"))
                yield limit, used - cache


def _folders() -> list[Path]:
    """Where the files of the groups may be; inside a container its own group stands at the root."""
    roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")]
    own: list[Path] = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if path != "/" and (not kinds or "memory" in kinds.split(",")):
                own.append(roots[bool(kinds)] / path.lstrip("/"))
    return [*roots, *own]


def hold_freed() -> bool:
    """Has the C library keep what is freed for the next step, in large pages, where it is glibc; whether it listened.

    Else large tensors go back to the system when they are freed, and their pages come anew, zeroed, in the next layer.
    For programs, since it is so for the whole process until `let_go`. Who set glibc's own variables has his way.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            if libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, NEVER):
                _holding[:] = [libc]
                _in_large_pages(libc, min(free(), MOST_HEAP))
    return bool(_holding)


def _in_large_pages(libc: Any, size: int) -> None:
    """Has the next `size` bytes of the heap lie in pages of 2 MiB, where the system gives them to who asks.

    They are asked for, marked and given back to the heap, and none is there before it is used. In pages of 4 KiB a
    processor looks up anew, every few rows of a matrix, where in memory it is.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if start := libc.malloc(size):
        first = -(-start // PAGE) * PAGE
        libc.madvise(first, (start + size - first) // PAGE * PAGE, HUGEPAGE)
        libc.free(start)


def large_pages() -> str:
    """To whom Linux gives pages of 2 MiB: "always" to all, "madvise" to who asks, "never"; "" where it says nothing."""
    with suppress(OSError, IndexError):
        told = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        return told.split("[")[1].split("]")[0]
    return ""


def trim() -> None:
    """Gives back what is held and not in use, where a large part of it will not be used again soon."""
    for libc in _holding:
        libc.malloc_trim(0)
        _in_large_pages(libc, min(free(), MOST_HEAP))  # the heap may grow again where it was not marked


def let_go() -> None:
    """Ends that where memory is short, and gives back what is held."""
    for libc in _holding:
        libc.mallopt(MMAP_MAX, MAPPED)
        libc.mallopt(TRIM_THRESHOLD, TRIMMED)
        libc.malloc_trim(0)
    _holding.clear()


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"

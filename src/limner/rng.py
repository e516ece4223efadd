"""Random numbers: a stream for each picture, a stream for each training step, all drawn on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import count as counting
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.registry import Registry

Stream = Callable[[tuple[int, ...]], Tensor]  # a shape -> Gaussian noise of it; each call goes on where the last ended
NOISES: Registry[Callable[[int], Stream]] = Registry("noise")  # a seed -> its stream
Words = np.ndarray[Any, np.dtype[np.uint32]]


def seed_of(*names: object) -> int:
    """A 63-bit seed that depends on every name: `seed_of(7, "step", 12)`."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: object) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed_of(*names))


@NOISES.add("cpu", "diffusers", "ComfyUI")
def cpu_stream(seed: int) -> Stream:
    """`torch.randn` under a CPU generator, as diffusers and ComfyUI draw it."""
    rng = torch.Generator("cpu").manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=rng)


@NOISES.add("nv", "CUDA", "GPU", "philox")
def nv_stream(seed: int) -> Stream:
    """What `torch.randn` draws on an NVIDIA card, as AUTOMATIC1111 and stable-diffusion.cpp draw it by default.

    Number i of call j is the first normal of the four that thread i makes of Philox's block (j, 0, i, 0). A card does
    so up to the number of its threads, some 200,000; beyond, its numbers are others.
    """
    calls = counting()

    def draw(shape: tuple[int, ...]) -> Tensor:
        blocks = np.zeros((4, int(np.prod(shape))), np.uint32)
        blocks[0] = next(calls)
        blocks[2] = np.arange(blocks.shape[1])
        u, v = (philox(blocks, seed)[:2] + 0.5) / 2**32  # in (0, 1)
        normal = np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)  # Box and Muller 1958, the sine of the pair
        return torch.from_numpy(normal.astype(np.float32)).view(shape)

    return draw


def philox(blocks: Words, key: int) -> Words:
    """Philox4x32-10 of counters, 4 N (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3)."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    c0, c1, c2, c3 = blocks
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)  # to 64 bits
        c0, c2 = (p1 >> 32).astype(np.uint32) ^ c1 ^ np.uint32(k0), (p0 >> 32).astype(np.uint32) ^ c3 ^ np.uint32(k1)
        c1, c3 = p1.astype(np.uint32), p0.astype(np.uint32)
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def stream_of(seed: int, kind: str = "cpu", subseed: int = 0, variation: float = 0.0) -> Stream:
    """The stream of one picture; with a variation it leans towards that of another seed, every draw of it.

    Spherical interpolation keeps it Gaussian (Shoemake 1985; Ho et al. 2020, section 4.3).
    """
    first = NOISES[kind](seed)
    if not variation:
        return first
    other = NOISES[kind](subseed)
    return lambda shape: slerp(first(shape), other(shape), variation)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a to b along the arc between them; straight where they point the same way."""
    angle = torch.arccos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(a, b, share)
    return ((1 - share) * angle).sin() / angle.sin() * a + (share * angle).sin() / angle.sin() * b


class Noise:
    """Gaussian noise with a stream a picture: picture k of a batch draws what `Noise(seed + k)` draws alone.

    Each call continues the streams, so the noise that a sampler adds on its way is a picture's own too. `kind` names
    who draws: a CPU generator, or an NVIDIA card's arithmetic, which is done on the CPU too. `streams` are those of the
    first pictures, where their seeds do not follow one another.
    """

    def __init__(self, seed: int, kind: str = "cpu", streams: Sequence[Stream] = ()) -> None:
        self.seed = seed
        self.kind = NOISES.name(kind)
        self._streams = list(streams)

    def __call__(self, count: int, *shape: int) -> Tensor:
        while len(self._streams) < count:
            self._streams.append(NOISES[self.kind](self.seed + len(self._streams)))
        return torch.stack([stream(shape) for stream in self._streams[:count]])  # B *shape

    def like(self, x: Tensor) -> Tensor:
        """Noise of the shape of x, on its device."""
        return self(len(x), *x.shape[1:]).to(x.device)

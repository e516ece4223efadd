"""Random numbers: a stream for each picture, a stream for each training step, all drawn on the CPU."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seed_of(*names: object) -> int:
    """A 63-bit seed that depends on every name: `seed_of(7, "step", 12)`."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: object) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed_of(*names))


class Noise:
    """Gaussian noise with a stream a picture: picture k of a batch draws what `Noise(seed + k)` draws alone.

    Each call continues the streams, so the noise that a sampler adds on its way is a picture's own too. The first
    draw is `torch.randn` under a CPU generator with the picture's seed, as diffusers and ComfyUI draw it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._streams: list[torch.Generator] = []

    def __call__(self, count: int, *shape: int) -> Tensor:
        while len(self._streams) < count:
            self._streams.append(torch.Generator("cpu").manual_seed(self.seed + len(self._streams)))
        return torch.stack([torch.randn(shape, generator=stream) for stream in self._streams[:count]])  # B *shape

    def like(self, x: Tensor) -> Tensor:
        """Noise of the shape of x, on its device."""
        return self(len(x), *x.shape[1:]).to(x.device)

"""Samplers: generators that walk a denoiser down a list of times, on any path.

One Euler body is DDIM (variance preserving), k-diffusion's Euler (variance exploding) and the Euler of flow matching.
This room gathers the others; a sampler of your own registers itself with `@SAMPLERS.add("name")`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from limner.diffusion import singlestep  # isort: skip  each of these registers its samplers, in the order of the lists
from limner.diffusion import cfgpp, exponential, multistep
from limner.diffusion.path import VariancePreserving
from limner.diffusion.solver import SAMPLERS, Sampler
from limner.diffusion.times import times
from limner.rng import Noise

__all__ = ["SAMPLERS", "Sampler", "cfgpp", "draws", "exponential", "multistep", "singlestep"]


@cache
def draws(sampler: str) -> bool:
    """Whether a sampler draws noise on its way: it is tried, on one number."""
    drawn: list[tuple[int, ...]] = []

    def stream(shape: tuple[int, ...]) -> Tensor:
        drawn.append(shape)
        return torch.zeros(shape)

    path, x = VariancePreserving(), torch.ones(1, 1, 1, 1)
    for _ in SAMPLERS[sampler](lambda x, _: x, path, x, times(40, path=path), Noise(0, streams=[stream])):
        pass
    return bool(drawn)

"""Samplers: generators that walk a denoiser down a list of times, on any path.

One Euler body is DDIM (variance preserving), k-diffusion's Euler (variance exploding) and the Euler of flow matching.
This room gathers the others; a sampler of your own registers itself with `@SAMPLERS.add("name")`.
"""

from __future__ import annotations

from limner.diffusion import singlestep  # isort: skip  each of these registers its samplers, in the order of the lists
from limner.diffusion import cfgpp, exponential, multistep
from limner.diffusion.solver import SAMPLERS, Sampler

__all__ = ["SAMPLERS", "Sampler", "cfgpp", "exponential", "multistep", "singlestep"]

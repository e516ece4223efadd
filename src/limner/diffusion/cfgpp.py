"""CFG++: guidance that stays on the manifold, noise taken from the unguided estimate (Chung et al. 2024, 2406.08070).

A denoiser that cannot be asked for its unguided estimate has none, and these are then the samplers without CFG++.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from limner.diffusion.guide import pair
from limner.diffusion.path import Path
from limner.diffusion.solver import SAMPLERS, legs
from limner.rng import Noise
from limner.types import Denoiser, Step


def _euler(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise, eta: float) -> Iterator[Step]:
    for leg in legs(path, times):
        x0, away = pair(denoise, x, leg.t)
        kept, fresh = leg.split(eta)
        x = leg.a2 * (x0 - away) + leg.to(x, away, leg.a2, kept)
        if fresh:
            x = x + fresh * noise.like(x)
        yield leg.done(x, x0)


@SAMPLERS.add("euler_cfg_pp", "ddim_cfg++")
def euler_cfg_pp(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Euler with CFG++; its guidance scale is about 1 or less, a fraction of the usual."""
    return _euler(denoise, path, x, times, noise, eta=0.0)


@SAMPLERS.add("euler_ancestral_cfg_pp", "euler_a_cfg_pp")
def euler_ancestral_cfg_pp(
    denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise
) -> Iterator[Step]:
    """Euler ancestral with CFG++."""
    return _euler(denoise, path, x, times, noise, eta=1.0)


@SAMPLERS.add("dpmpp_2m_cfg_pp", "dpm++2m_cfg_pp")
def dpmpp_2m_cfg_pp(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M) with CFG++: the slope is from the last unguided estimate to this guided one (ComfyUI)."""
    old: Tensor | None = None
    last = math.inf
    for leg in legs(path, times):
        x0, away = pair(denoise, x, leg.t)
        x = leg.a2 * (x0 - away) + leg.to(x, away, leg.a2, leg.s2)
        if old is not None and math.isfinite(leg.h):
            x = x - leg.a2 * math.expm1(-leg.h) * leg.h / last / 2 * (x0 - old)
        old, last = away, leg.h
        yield leg.done(x, x0)

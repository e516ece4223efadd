"""Samplers that remember slopes: multistep rules in the path's frame, for noise and velocity predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from limner.diffusion.path import Path
from limner.diffusion.solver import SAMPLERS, lagrange, legs, weighed
from limner.rng import Noise
from limner.types import Denoiser, Step

Weights = Callable[[list[float], float], list[float]]  # levels, newest first; the level to reach -> weights of slopes
EVEN: tuple[list[float], ...] = (
    [1.0],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
)  # fmt: skip  Adams-Bashforth


def _multistep(
    denoise: Denoiser, path: Path, x: Tensor, times: list[float], order: int, weights: Weights, ends: bool = True
) -> Iterator[Step]:
    """ends: a step that ends on no noise takes the estimate."""
    slopes: list[Tensor] = []
    levels: list[float] = []
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        (c, level), (c2, level2) = path.frame(leg.t), path.frame(leg.t2)
        slopes, levels = [(x / c - x0) / level, *slopes][:order], [level, *levels][:order]
        x = c2 * x0 if ends and level2 == 0 else c2 * (x / c + weighed(weights(levels, level2), slopes))
        yield leg.done(x, x0)


def _even(levels: list[float], level: float) -> list[float]:
    return [(level - levels[0]) * share for share in EVEN[len(levels) - 1]]


def _uneven(levels: list[float], level: float) -> list[float]:
    """The integral of the polynomial through the slopes, over the level."""
    step = level - levels[0]
    nodes = [(one - levels[0]) / step for one in levels]
    return [step * share for share in lagrange(nodes, [1 / (k + 1) for k in range(len(nodes))])]


def _logarithmic(levels: list[float], level: float) -> list[float]:
    """The same of a polynomial in the logarithm of the level."""
    if level == 0:
        return [-levels[0]] + [0.0] * (len(levels) - 1)
    nodes = [math.log(one / levels[0]) for one in levels]
    end = math.log(level / levels[0])
    moments = [math.expm1(end)]
    for k in range(1, len(nodes)):
        moments.append(math.exp(end) * end**k - k * moments[-1])
    return [levels[0] * share for share in lagrange(nodes, moments)]


def _twice(levels: list[float], level: float) -> list[float]:
    return [(level - levels[0]) * share for share in ([2.0, -1.0] if len(levels) > 1 else [1.0])]


@SAMPLERS.add("lms", "k_lms", "lms_k", "LMSDiscreteScheduler")
def lms(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Fourth-order Adams-Bashforth on uneven levels, the last step too (k-diffusion's linear multistep)."""
    return _multistep(denoise, path, x, times, 4, _uneven, ends=False)


@SAMPLERS.add("ipndm", "IPNDMScheduler")
def ipndm(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Fourth-order Adams-Bashforth with the weights of even levels (Zhang and Chen 2022, arXiv 2204.13902)."""
    return _multistep(denoise, path, x, times, 4, _even)


@SAMPLERS.add("ipndm_v")
def ipndm_v(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Ipndm with the weights of the levels as they are: lms, but that its last step takes the estimate."""
    return _multistep(denoise, path, x, times, 4, _uneven)


@SAMPLERS.add("deis", "deis_k", "DEISMultistepScheduler")
def deis(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Second order, slopes interpolated in the log of the level (Zhang and Chen 2022, arXiv 2204.13902, rho-AB)."""
    return _multistep(denoise, path, x, times, 2, _logarithmic)


@SAMPLERS.add("plms", "pndm", "PNDMScheduler")
def plms(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Fourth order with even weights, as SD1 was released; its first step is Heun's, so n + 1 evaluations.

    Liu et al. 2022, arXiv 2202.09778, without the Runge-Kutta steps at the start.
    """
    slopes: list[Tensor] = []
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        (c, level), (c2, level2) = path.frame(leg.t), path.frame(leg.t2)
        slopes = [(x / c - x0) / level, *slopes][:4]
        slope = weighed(EVEN[len(slopes) - 1], slopes)
        if leg.i == 0 and level2 > 0:
            ahead = x / c + (level2 - level) * slope
            slope = (slope + (ahead - denoise(c2 * ahead, leg.t2)) / level2) / 2
        x = c2 * (x / c + (level2 - level) * slope)
        yield leg.done(x, x0)


@SAMPLERS.add("gradient_estimation", "euler_ge")
def gradient_estimation(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Euler along twice the slope less the last one (Permenter and Yuan 2023, arXiv 2306.04848)."""
    return _multistep(denoise, path, x, times, 2, _twice)


@SAMPLERS.add("er_sde", "er_sde_3")
def er_sde(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Third-order solver of the extended reverse SDE (Cui et al. 2023, arXiv 2309.06169), phi(s) = s (exp(s^0.3) + 10).

    The integrals of 1 / phi and (level - level_i) / phi are sums over 200 points, as published.
    """
    known: list[tuple[float, Tensor]] = []  # level s/a and estimate, newest first; then the last first difference
    slope: Tensor | None = None
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        level = min(math.exp(-leg.now), 1e4)  # pure noise has no level; ComfyUI steps aside by as much
        known = [(level, x0), *known][:3]
        if leg.s2 == 0:
            x = leg.a2 * x0
        else:
            level2 = math.exp(-leg.now - leg.h) if math.isfinite(leg.h) else leg.s2 / leg.a2
            ratio = _phi(level2) / _phi(level)
            x = leg.a2 * ratio * level / leg.s * x + leg.a2 * (1 - ratio) * x0
            if len(known) > 1:
                step = level2 - level
                points = level2 - np.arange(200) / 200 * step
                last, slope = slope, (x0 - known[1][1]) / (level - known[1][0])
                x = x + leg.a2 * (step + float((-step / 200 / _phi(points)).sum()) * _phi(level2)) * slope
                if last is not None:
                    bend = (slope - last) / ((level - known[2][0]) / 2)
                    second = float((-step / 200 * (points - level) / _phi(points)).sum()) * _phi(level2)
                    x = x + leg.a2 * (step * step / 2 + second) * bend
            x = x + leg.a2 * math.sqrt(max(0.0, level2**2 - (level * ratio) ** 2)) * noise.like(x)
        yield leg.done(x, x0)


def _phi(level: Any) -> Any:  # a number, or an array of them
    return level * (np.exp(level**0.3) + 10)

"""Samplers that remember nothing from one step to the next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch import Tensor

from limner.diffusion.path import Discrete, Path
from limner.diffusion.solver import SAMPLERS, Leg, leg_of, legs
from limner.rng import Noise
from limner.types import Denoiser, Step


def _euler(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise, eta: float) -> Iterator[Step]:
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        kept, fresh = leg.split(eta)
        x = leg.to(x, x0, leg.a2, kept)
        if fresh:
            x = x + fresh * noise.like(x)
        yield leg.done(x, x0)


@SAMPLERS.add(
    "euler", "ddim", "flow euler", "k_euler", "euler_k", "ddim_trailing",
    "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler",
)  # fmt: skip
def euler(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """First order, deterministic (Song et al. 2020, DDIM, arXiv 2010.02502, equation 12)."""
    return _euler(denoise, path, x, times, noise, eta=0.0)


@SAMPLERS.add(
    "euler_ancestral", "euler a", "k_euler_a", "euler_a_k", "ddpm", "EulerAncestralDiscreteScheduler", "DDPMScheduler"
)  # fmt: skip
def euler_ancestral(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """First order with fresh noise: DDIM's equation 16 at eta = 1, which is DDPM's posterior step."""
    return _euler(denoise, path, x, times, noise, eta=1.0)


@SAMPLERS.add("heun", "k_heun", "heun_k", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
def heun(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Second order, two evaluations a step but the last (Karras et al. 2022, algorithm 1), in the path's frame."""
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        x = _heun(denoise, path, leg, x, x0)
        yield leg.done(x, x0)


def _heun(denoise: Denoiser, path: Path, leg: Leg, x: Tensor, x0: Tensor) -> Tensor:
    (c, level), (c2, level2) = path.frame(leg.t), path.frame(leg.t2)
    slope = (x / c - x0) / level
    end = x / c + (level2 - level) * slope
    if level2 > 0:
        slope = (slope + (end - denoise(c2 * end, leg.t2)) / level2) / 2
        end = x / c + (level2 - level) * slope
    return c2 * end


@SAMPLERS.add("heunpp2", "heun++2", "heun++")
def heunpp2(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Heun with a look at the step after, later slopes weighing by their level over the first one's; three evaluations.

    Two in the last step but one, one in the last (ComfyUI's heunpp2, after Carzit's samplers for webui).
    """
    top = path.frame(times[0])[1]
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        (c, level), (c2, _) = path.frame(leg.t), path.frame(leg.t2)
        start = x / c
        slopes, levels = [(start - x0) / level], [level]
        ahead = start
        for t in times[leg.i + 1 : min(leg.i + 3, leg.n)]:  # stations that an evaluation is spent on, but the end
            c_there, there = path.frame(t)
            ahead = ahead + (there - levels[-1]) * slopes[-1]
            slopes.append((ahead - denoise(c_there * ahead, t)) / there)
            levels.append(there)
        shares = [there / (len(levels) * top) for there in levels[1:]]
        slope = (1 - sum(shares)) * slopes[0]
        for share, other in zip(shares, slopes[1:], strict=True):
            slope = slope + share * other
        x = c2 * (start + (path.frame(leg.t2)[1] - level) * slope)
        yield leg.done(x, x0)


def _dpm2(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise, eta: float) -> Iterator[Step]:
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        kept, fresh = leg.split(eta)
        down = path.time(kept / leg.a2) if fresh else leg.t2  # where x holds as much noise as is kept
        (c, level), (c2, level2) = path.frame(leg.t), path.frame(down)
        if level2 > 0:
            c_half, half = path.frame(t := path.at_level(math.sqrt(level * level2)))
            middle = x / c + (half - level) * (x / c - x0) / level
            slope = (middle - denoise(c_half * middle, t)) / half
            x = leg.a2 / path.a(down) * c2 * (x / c + (level2 - level) * slope)
        else:
            x = leg.a2 * x0
        if fresh:
            x = x + fresh * noise.like(x)
        yield leg.done(x, x0)


@SAMPLERS.add("dpm2", "dpm_2", "k_dpm_2", "kdpm_2", "kdpm_2_k", "KDPM2DiscreteScheduler")
def dpm2(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Second order by the slope at the geometric middle of the levels, two evaluations a step but the last.

    Karras et al. 2022 with the midpoint of DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927), as k-diffusion.
    """
    return _dpm2(denoise, path, x, times, noise, eta=0.0)


@SAMPLERS.add(
    "dpm2_ancestral", "dpm2 a", "dpm_2_ancestral", "k_dpm_2_a", "kdpm_2_a", "kdpm_2_a_k",
    "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
def dpm2_ancestral(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Dpm2 down to the noise that is kept, then fresh noise."""
    return _dpm2(denoise, path, x, times, noise, eta=1.0)


@SAMPLERS.add("dpmpp_2s_ancestral", "dpm++ 2s a", "dpm++2s_a", "k_dpmpp_2s_a", "dpmpp_2s_a")
def dpmpp_2s_ancestral(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2S) at r = 1/2 down to the noise that is kept, then fresh noise (arXiv 2211.01095, algorithm 1)."""
    for leg in legs(path, times):
        x0 = ahead = denoise(x, leg.t)
        kept, fresh = leg.split()
        if leg.s2 > 0 and kept > 0:
            t = _middle(path, leg, leg.a2, kept)
            ahead = denoise(leg.to(x, x0, path.a(t), path.s(t)), t)
        x = leg.to(x, ahead, leg.a2, kept)
        if fresh:
            x = x + fresh * noise.like(x)
        yield leg.done(x, x0)


def _middle(path: Path, leg: Leg, a: float, s: float) -> float:
    """The time half-way in lambda from t to the level s/a; from pure noise, where lambda is infinite, half-way in t."""
    if math.isfinite(leg.now):
        return path.time(math.exp(-(leg.now + math.log(a / s)) / 2))
    return (leg.t + path.time(s / a)) / 2


@SAMPLERS.add(
    "dpmpp_sde", "dpm++ sde", "k_dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_sde_k", "DPMSolverSDEScheduler"
)  # fmt: skip
def dpmpp_sde(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(2S) at r = 1/2, two evaluations a step but the last (arXiv 2211.01095, appendix D).

    Its two noises a step are one Brownian motion's over the frame's level, as in k-diffusion: they are not independent.
    """
    for leg in legs(path, times):
        x0 = ahead = denoise(x, leg.t)
        kept, fresh = leg.split()
        z: Tensor | float = 0.0
        if leg.s2 > 0:
            half = leg_of(path, leg.t, _middle(path, leg, leg.a2, leg.s2))
            level, middle, level2 = (path.frame(t)[1] for t in (leg.t, half.t2, leg.t2))
            kept_half, fresh_half = half.split()
            first, second = noise.like(x), noise.like(x)
            ahead = denoise(half.to(x, x0, half.a2, kept_half) + fresh_half * first, half.t2)
            share = (level - middle) / (level - level2)
            z = math.sqrt(share) * first + math.sqrt(1 - share) * second
        x = leg.to(x, ahead, leg.a2, kept) + fresh * z
        yield leg.done(x, x0)


@SAMPLERS.add("restart")
def restart(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Heun that goes back up from level 0.1 to 2 with fresh noise (Xu et al. 2023, arXiv 2306.14878).

    From 20 steps on 9 of them, from 36 on half of them, go into the way back; those walk Karras' levels and not the
    times that were asked for, but their ends (AUTOMATIC1111).
    """
    reached = times[0]
    for leg in _with_restarts(path, times):
        if leg.now < path.log_snr(reached) - 1e-9:
            grown = leg.a / path.a(reached)
            x = grown * x + math.sqrt(leg.s**2 - (grown * path.s(reached)) ** 2) * noise.like(x)
        x0 = denoise(x, leg.t)
        x = _heun(denoise, path, leg, x, x0)
        reached = leg.t2
        yield leg.done(x, x0)


def _with_restarts(path: Path, times: list[float]) -> list[Leg]:
    n = len(times) - 1
    again, rounds = (n // 4, 2) if n >= 36 else (9, 1) if n >= 20 else (0, 0)
    high, low = (min(path.sigmas[1], math.exp(-path.log_snr(t))) for t in (times[0], times[-2]))
    levels = _karras(low, high, n - again * rounds)
    walk = [times[0], *(path.time(float(level)) for level in levels[1:]), times[-1]]
    top, bottom = (int(np.abs(levels - level).argmin()) for level in (2.0, 0.1))
    if not rounds or top >= bottom:
        return list(legs(path, times))
    back = [path.time(float(level)) for level in _karras(levels[bottom], levels[top], again + 1)]
    pairs = [*pairwise(walk)]
    pairs[bottom:bottom] = [*pairwise(back)] * rounds
    return [leg_of(path, t, t2, i, n) for i, (t, t2) in enumerate(pairs)]


def _karras(low: float, high: float, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.linspace(high ** (1 / 7), low ** (1 / 7), n) ** 7


@SAMPLERS.add("lcm", "LCMScheduler", "FlowMatchLCMScheduler")
def lcm(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Estimate, then noise anew: for few-step models (Luo et al. 2023, arXiv 2310.04378, algorithm 3)."""
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        x = leg.a2 * x0
        if leg.s2 > 0:
            x = x + leg.s2 * noise.like(x)
        yield leg.done(x, x0)


@SAMPLERS.add("tcd", "TCDScheduler")
def tcd(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """A leap beyond t2, to (1 - 0.3) t2, then noise back up: for trajectory models (arXiv 2402.19159)."""
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        t = 0.7 * leg.t2  # gamma is 0.3, the published default
        if isinstance(path, Discrete):  # on whole stations, the first of which is 0
            t = (math.floor(0.7 * max(0.0, leg.t2 * path.stations - 1) + 1e-9) + 1) / path.stations
        t = min(t, leg.t2)
        x = leg.to(x, x0, path.a(t), path.s(t)) * (leg.a2 / path.a(t))
        up = leg.s2**2 - (path.s(t) * leg.a2 / path.a(t)) ** 2
        if up > 1e-12 and leg.i < leg.n - 1:
            x = x + math.sqrt(up) * noise.like(x)
        yield leg.done(x, x0)

"""Samplers: generators that walk a denoiser down a list of times, on any path.

With D the estimate of x0 and eps = (x - a D) / s, one Euler body is DDIM (variance preserving), k-diffusion's Euler
(variance exploding) and the Euler of flow matching. The others integrate in half the log signal-to-noise ratio,
lambda = log(a/s), where x' = (s'/s) x + a' * integral of exp(u - h) D(lambda + u) du over a step of h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from limner.diffusion.path import Path
from limner.registry import Registry
from limner.rng import Noise
from limner.types import Denoiser, Step

Sampler = Callable[[Denoiser, Path, Tensor, list[float], Noise], Iterator[Step]]
SAMPLERS: Registry[Sampler] = Registry("sampler")


def _euler(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise, eta: float) -> Iterator[Step]:
    n = len(times) - 1
    for i, (t, t2) in enumerate(pairwise(times)):
        x0 = denoise(x, t)
        a, s, a2, s2 = path.a(t), path.s(t), path.a(t2), path.s(t2)
        fresh = min(s2, eta * s2 / (s * a2) * math.sqrt(max(0.0, (s * a2) ** 2 - (s2 * a) ** 2)))
        x = a2 * x0 + math.sqrt(s2 * s2 - fresh * fresh) * path.eps(x, x0, t)
        if fresh:
            x = x + fresh * noise.like(x)
        yield Step(i, n, t2, x, x0)


@SAMPLERS.add("euler", "ddim", "flow euler", "k_euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
def euler(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """First order, deterministic (Song et al. 2020, DDIM, arXiv 2010.02502, equation 12)."""
    return _euler(denoise, path, x, times, noise, eta=0.0)


@SAMPLERS.add("euler_ancestral", "euler a", "k_euler_a", "EulerAncestralDiscreteScheduler")
def euler_ancestral(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """First order with fresh noise: DDIM's equation 16 at eta = 1; DDPM with many steps."""
    return _euler(denoise, path, x, times, noise, eta=1.0)


@SAMPLERS.add("heun", "k_heun", "HeunDiscreteScheduler")
def heun(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Second order, two evaluations a step but the last (Karras et al. 2022, algorithm 1).

    Divided by a + s every path is the straight one from x0 to eps, so the slope is eps - x0 and stays finite.
    """
    n = len(times) - 1
    for i, (t, t2) in enumerate(pairwise(times)):
        x0 = denoise(x, t)
        c, c2 = path.a(t) + path.s(t), path.a(t2) + path.s(t2)
        u, step = x / c, path.s(t2) / c2 - path.s(t) / c
        slope = path.eps(x, x0, t) - x0
        x = c2 * (u + step * slope)
        if path.s(t2) > 0:
            x0 = denoise(x, t2)
            x = c2 * (u + step * (slope + path.eps(x, x0, t2) - x0) / 2)
        yield Step(i, n, t2, x, x0)


@SAMPLERS.add("dpmpp_2m", "dpm++ 2m", "k_dpmpp_2m", "DPMSolverMultistepScheduler")
def dpmpp_2m(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M): second order from the last two estimates (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    n, old, last = len(times) - 1, None, math.inf
    for i, (t, t2) in enumerate(pairwise(times)):
        x0 = denoise(x, t)
        h = path.log_snr(t2) - path.log_snr(t)
        ahead = x0
        if old is not None and math.isfinite(h):
            ahead = x0 + (x0 - old) * (h / last / 2)
        x = path.s(t2) / path.s(t) * x - path.a(t2) * math.expm1(-h) * ahead
        old, last = x0, h
        yield Step(i, n, t2, x, x0)


@SAMPLERS.add("dpmpp_2m_sde", "dpm++ 2m sde", "k_dpmpp_2m_sde")
def dpmpp_2m_sde(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), midpoint kind: the same with fresh noise each step (arXiv 2211.01095, appendix D)."""
    n, old, last = len(times) - 1, None, math.inf
    for i, (t, t2) in enumerate(pairwise(times)):
        x0 = denoise(x, t)
        h = path.log_snr(t2) - path.log_snr(t)
        ahead = x0
        if old is not None and math.isfinite(h):
            ahead = x0 + (x0 - old) * (h / last / 2)
        x = path.s(t2) / path.s(t) * math.exp(-h) * x - path.a(t2) * math.expm1(-2 * h) * ahead
        if path.s(t2) > 0:
            x = x + path.s(t2) * math.sqrt(-math.expm1(-2 * h)) * noise.like(x)
        old, last = x0, h
        yield Step(i, n, t2, x, x0)


@SAMPLERS.add("dpmpp_3m", "dpm++ 3m", "res_multistep_3")
def dpmpp_3m(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Third-order exponential multistep: the integral of the parabola through the last three estimates, exactly.

    Hochbruck and Ostermann 2010, section 2.5, in the data prediction of DPM-Solver++ (arXiv 2211.01095).
    """
    n = len(times) - 1
    past: list[tuple[float, Tensor]] = []  # (lambda, x0), newest first
    for i, (t, t2) in enumerate(pairwise(times)):
        x0 = denoise(x, t)
        now, h = path.log_snr(t), path.log_snr(t2) - path.log_snr(t)
        past = [(now, x0), *((where, d) for where, d in past if math.isfinite(where))][:3]
        weights = _exponential_weights([where - now for where, _ in past], h) if math.isfinite(h) else [-math.expm1(-h)]
        ahead = sum((w * d for w, (_, d) in zip(weights, past, strict=False)), torch.zeros_like(x))
        x = path.s(t2) / path.s(t) * x + path.a(t2) * ahead
        yield Step(i, n, t2, x, x0)


def _exponential_weights(nodes: list[float], h: float) -> list[float]:
    """The integral of exp(u - h) L_k(u) du over [0, h] for each Lagrange polynomial of the nodes."""
    moments = [-math.expm1(-h)]  # of u^0, u^1, ... under exp(u - h), by parts
    for k in range(1, len(nodes)):
        moments.append(h**k - k * moments[-1])
    powers = np.vander(np.array(nodes), increasing=True).T  # row k: nodes to the k
    return [float(w) for w in np.linalg.solve(powers, np.array(moments))]


@SAMPLERS.add("lcm", "LCMScheduler")
def lcm(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Estimate, then noise anew: for few-step models (Luo et al. 2023, arXiv 2310.04378, algorithm 3)."""
    n = len(times) - 1
    for i, (t, t2) in enumerate(pairwise(times)):
        x0 = denoise(x, t)
        x = path.a(t2) * x0
        if path.s(t2) > 0:
            x = x + path.s(t2) * noise.like(x)
        yield Step(i, n, t2, x, x0)

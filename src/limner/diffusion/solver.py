"""What samplers share: their registry, one step of a walk, and the weights of interpolated integrals.

With D the estimate of x0 and eps = (x - a D) / s, the step that holds D still goes to a2 D + s2 eps. Higher orders
interpolate what is known: in half the log signal-to-noise ratio, lambda = log(a/s), or in the path's frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from limner.diffusion.path import Path
from limner.registry import Registry
from limner.rng import Noise
from limner.types import Denoiser, Step

Sampler = Callable[[Denoiser, Path, Tensor, list[float], Noise], Iterator[Step]]
SAMPLERS: Registry[Sampler] = Registry("sampler")


class Leg(NamedTuple):
    """One step of a walk: from t, where x = a x0 + s eps, to t2."""

    i: int
    n: int
    t: float
    t2: float
    a: float
    s: float
    a2: float
    s2: float
    now: float  # lambda at t
    h: float  # lambda at t2 less that at t; infinite where either end is

    def to(self, x: Tensor, x0: Tensor, a: float, s: float) -> Tensor:
        """x carried to other scales with its x0 and its eps: DDIM (Song et al. 2020, arXiv 2010.02502, equation 12)."""
        return a * x0 + s * ((x - self.a * x0) / max(self.s, 1e-12))

    def split(self, eta: float = 1.0) -> tuple[float, float]:
        """s2 as what is kept of the noise and what is drawn afresh (the same, equation 16)."""
        lost = math.sqrt(max(0.0, (self.s * self.a2) ** 2 - (self.s2 * self.a) ** 2))
        fresh = min(self.s2, eta * self.s2 / (self.s * self.a2) * lost)
        return math.sqrt(self.s2 * self.s2 - fresh * fresh), fresh

    def done(self, x: Tensor, x0: Tensor) -> Step:
        return Step(self.i, self.n, self.t2, x, x0)


def leg_of(path: Path, t: float, t2: float, i: int = 0, n: int = 1) -> Leg:
    now, then = path.log_snr(t), path.log_snr(t2)
    return Leg(i, n, t, t2, path.a(t), path.s(t), path.a(t2), path.s(t2), now, then - now)


def legs(path: Path, times: list[float]) -> Iterator[Leg]:
    for i, (t, t2) in enumerate(pairwise(times)):
        yield leg_of(path, t, t2, i, len(times) - 1)


def lagrange(nodes: list[float], moments: list[float]) -> list[float]:
    """What each node's value weighs in an integral of the polynomial through them; moments: those of u^0, u^1, ..."""
    powers = np.vander(np.array(nodes), increasing=True).T  # row k: nodes to the k
    return [float(w) for w in np.linalg.solve(powers, np.array(moments))]


def weighed(weights: list[float], values: list[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total

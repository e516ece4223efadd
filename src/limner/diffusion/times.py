"""Schedules: the times that a sampler stops at, from 1 (noise) to 0 (picture). `times(n)` gives n + 1 of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from limner.diffusion.path import Path, Straight
from limner.errors import BadInput
from limner.registry import Registry

Array = np.ndarray[Any, np.dtype[np.float64]]
Schedule = Callable[[int, Path], Array]  # n -> n descending times in (0, 1]; the final 0 is added by `times`
SCHEDULES: Registry[Schedule] = Registry("schedule")
GRID = 1000  # stations of the tables that the field's discrete schedules pick from


def times(n: int, schedule: str = "uniform", path: Path | None = None, start: float = 1.0) -> list[float]:
    """n + 1 descending times; `start` below 1 keeps the last share of a longer walk (image to image)."""
    if n < 1:
        raise BadInput(f"{n} steps were asked for; at least 1 is needed")
    if not 0 < start <= 1:
        raise BadInput(f"a walk from t = {start} was asked for; it starts above 0 and at most at 1")
    path = path or Straight()
    found = SCHEDULES[schedule](n, path) * start
    shift = getattr(path, "shift", 1.0)
    found = shift * found / (1 + (shift - 1) * found)
    return [*(float(t) for t in found), 0.0]


@SCHEDULES.add("uniform", "trailing", "linear")
def uniform(n: int, path: Path) -> Array:
    """Evenly from 1 to 0."""
    return np.linspace(1, 0, n + 1)[:-1]


@SCHEDULES.add("sgm_uniform", "sgm")
def sgm_uniform(n: int, path: Path) -> Array:
    """Evenly from 1 to the last station of the table, which is left out (Stability's generative-models)."""
    return np.linspace(1, 1 / GRID, n + 1)[:-1]


@SCHEDULES.add("simple")
def simple(n: int, path: Path) -> Array:
    """Every GRID/n-th station of the table."""
    if n > GRID:
        raise BadInput(f"{n} steps were asked for; the simple schedule picks from {GRID} stations")
    return np.array([(GRID - int(i * GRID / n)) / GRID for i in range(n)])


@SCHEDULES.add("karras")
def karras(n: int, path: Path) -> Array:
    """Evenly in the seventh root of the noise level (Karras et al. 2022, equation 5)."""
    low, high = (sigma ** (1 / 7) for sigma in path.sigmas)
    return _levels(path, np.linspace(high, low, n) ** 7)


@SCHEDULES.add("exponential")
def exponential(n: int, path: Path) -> Array:
    """Evenly in the logarithm of the noise level."""
    low, high = np.log(path.sigmas)
    return _levels(path, np.exp(np.linspace(high, low, n)))


@SCHEDULES.add("beta")
def beta(n: int, path: Path) -> Array:
    """The quantiles of a Beta(0.6, 0.6): denser at both ends (arXiv 2407.12173)."""
    edges = np.linspace(0, 1, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = np.concatenate([[0], np.cumsum(middles**-0.4 * (1 - middles) ** -0.4)])
    return np.interp(np.linspace(1, 0, n + 1)[:-1], mass / mass[-1], edges)


def _levels(path: Path, sigmas: Array) -> Array:
    return np.array([path.time(float(sigma)) for sigma in sigmas]).clip(0, 1)

"""Schedules: the times that a sampler stops at, from noise to picture. `times(n)` gives n + 1 of them.

A schedule that is even in time is moved by the path's shift, once; one that speaks of noise levels s/a is not, for
levels already say where on the path they lie. Published tables count stations: index k of 1000 is t = (k + 1) / 1000.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from limner.diffusion.path import Discrete, Path, Straight
from limner.errors import BadInput
from limner.registry import Registry

Array = np.ndarray[Any, np.dtype[np.float64]]
Schedule = Callable[[int, Path], Array]  # n -> n + 1 descending times on the path; most end at 0
SCHEDULES: Registry[Schedule] = Registry("schedule")
GRID = 1000  # stations of the tables that the field's discrete schedules pick from


def times(
    n: int, schedule: str = "uniform", path: Path | None = None, start: float = 1.0, discard: bool = False
) -> list[float]:
    """n + 1 descending times; `start` below 1 keeps the last n steps of a walk of n / start (image to image).

    discard: leave out the last time but one of a walk that is a step longer, as AUTOMATIC1111 and ComfyUI do for
    dpm2, dpm2 a and unipc, which spend an evaluation in the middle of the last step.
    """
    if n < 1:
        raise BadInput(f"{n} steps were asked for; at least 1 is needed")
    if not 0 < start <= 1:
        raise BadInput(f"a walk from t = {start} was asked for; it starts above 0 and at most at 1")
    longer = int(n / start + 1e-9) + discard
    found = SCHEDULES[schedule](longer, path or Straight())
    if discard:
        found = np.delete(found, -2)
    return [float(t) for t in found[-n - 1 :]]


@SCHEDULES.add("uniform", "trailing", "linear", "ddim_trailing")
def uniform(n: int, path: Path) -> Array:
    """Evenly from 1 to 0, on whole stations where the path is a table (diffusers' `trailing`)."""
    return _even(path, _whole(path, GRID - np.arange(n, dtype=np.float64) * (GRID / n)) / GRID)


@SCHEDULES.add("leading", "ddim_uniform")
def leading(n: int, path: Path) -> Array:
    """Every (GRID // n)-th station from the second on, as SD1, SD2 and SDXL were released; then 0."""
    return _even(path, _leading(n))


@SCHEDULES.add("ddim", "plms")
def ddim(n: int, path: Path) -> Array:
    """Leading, but it ends on the first station and not on 0: DDIM and PLMS as SD1 was released."""
    return _even(path, _leading(n), end=1 / GRID)


@SCHEDULES.add("linspace", "normal", "discrete", "automatic", "flow_linspace")
def linspace(n: int, path: Path) -> Array:
    """Evenly from the last station to the first, then 0: k-diffusion's default, AUTOMATIC1111's Uniform.

    On a path with a shift the first station is shifted before and after, as ComfyUI and diffusers' FlowMatch do.
    """
    return _even(path, np.linspace(1, path.shifted(1 / GRID), n))


@SCHEDULES.add("sgm_uniform", "sgm")
def sgm_uniform(n: int, path: Path) -> Array:
    """Linspace of one more, whose last station is left out (Stability's generative-models)."""
    return _even(path, np.linspace(1, path.shifted(1 / GRID), n + 1)[:-1])


@SCHEDULES.add("multistep_linspace")
def multistep_linspace(n: int, path: Path) -> Array:
    """Sgm uniform on whole stations: `linspace` as diffusers' DPM-Solver, UniPC, DEIS and SA-Solver read it."""
    return _even(path, (_whole(path, np.linspace(GRID - 1, 0, n + 1)[:-1]) + 1) / GRID)


@SCHEDULES.add("multistep_leading")
def multistep_leading(n: int, path: Path) -> Array:
    """Every (GRID // (n + 1))-th station after the second: `leading` as diffusers' multistep solvers read it."""
    _at_most(GRID - 2, n)
    return _even(path, (np.arange(n, 0, -1) * (GRID // (n + 1)) + 2) / GRID)


@SCHEDULES.add("simple")
def simple(n: int, path: Path) -> Array:
    """Every GRID/n-th station of the table."""
    _at_most(GRID, n)
    return _even(path, np.array([GRID - int(i * GRID / n) for i in range(n)]) / GRID)


@SCHEDULES.add("lcm")
def lcm(n: int, path: Path) -> Array:
    """Of the 50 stations that latent consistency models were distilled at, n (Luo et al. 2023, arXiv 2310.04378)."""
    _at_most(50, n)
    return _even(path, 1 - np.floor(np.arange(n) * (50 / n)) / 50)


@SCHEDULES.add("karras", "k")
def karras(n: int, path: Path) -> Array:
    """Evenly in the seventh root of the noise level (Karras et al. 2022, equation 5)."""
    low, high = (sigma ** (1 / 7) for sigma in path.sigmas)
    return _levels(path, np.linspace(high, low, n) ** 7)


@SCHEDULES.add("exponential", "polyexponential")
def exponential(n: int, path: Path) -> Array:
    """Evenly in the logarithm of the noise level, which polyexponential with its rho of 1 is too."""
    low, high = np.log(path.sigmas)
    return _levels(path, np.exp(np.linspace(high, low, n)))


@SCHEDULES.add("kl_optimal")
def kl_optimal(n: int, path: Path) -> Array:
    """Evenly in the arc tangent of the noise level (Sabour et al. 2024, arXiv 2404.14507)."""
    low, high = np.arctan(path.sigmas)
    return _levels(path, np.tan(np.linspace(high, low, n)))


@SCHEDULES.add("align_your_steps", "ays", "align_your_steps_sd15", "StableDiffusionTimesteps")
def align_your_steps(n: int, path: Path) -> Array:
    """The levels that were optimised for SD 1.5 (Sabour et al. 2024, arXiv 2404.14507)."""
    return _aligned(n, path, [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029])


@SCHEDULES.add("align_your_steps_xl", "ays_xl", "align_your_steps_sdxl", "StableDiffusionXLTimesteps")
def align_your_steps_xl(n: int, path: Path) -> Array:
    """The levels that were optimised for SDXL, whose path is the same: so it has a name of its own."""
    return _aligned(n, path, [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029])


@SCHEDULES.add("beta")
def beta(n: int, path: Path) -> Array:
    """The quantiles of a Beta(0.6, 0.6): denser at both ends (arXiv 2407.12173)."""
    edges = np.linspace(0, 1, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    mass = np.concatenate([[0], np.cumsum(middles**-0.4 * (1 - middles) ** -0.4)])
    found = np.interp(np.linspace(1, 0, n + 1)[:-1], mass / mass[-1], edges)
    return _even(path, (_whole(path, found * (GRID - 1)) + 1) / GRID if isinstance(path, Discrete) else found)


@SCHEDULES.add("linear_quadratic")
def linear_quadratic(n: int, path: Path) -> Array:
    """Half of the steps take off 1/40 of the noise evenly, the rest goes ever faster (arXiv 2410.13720).

    Of the noise that is s on a straight path, whatever its shift, and the level s/a on the others.
    """
    slow, off = n // 2, 0.025 if n > 1 else 0.0
    fast = n - slow
    slope = off * fast / slow if slow else 1.0  # the curve leaves as steeply as the line arrives
    done = np.arange(fast) / fast
    gone = np.append(np.arange(slow) * (off / max(slow, 1)), off + done * (slope + (1 - off - slope) * done))
    return np.append(1 - gone, 0) if isinstance(path, Straight) else _levels(path, (1 - gone) * path.sigmas[1])


def _leading(n: int) -> Array:
    _at_most(GRID - 1, n)
    return (np.arange(n - 1, -1, -1) * (GRID // n) + 2) / GRID


def _at_most(most: int, n: int) -> None:
    if n > most:
        raise BadInput(f"{n} steps were asked for; this schedule picks from {most} stations")


def _whole(path: Path, stations: Array) -> Array:
    """The nearest whole stations, where the path is a table and they stay apart."""
    nearest = np.round(np.round(stations, 9))  # halves to even, as theirs, whatever the last bits say
    return nearest if isinstance(path, Discrete) and all(k > k2 for k, k2 in pairwise(nearest)) else stations


def _even(path: Path, found: Array, end: float = 0.0) -> Array:
    return np.array([path.shifted(float(t)) for t in (*found, end)])


def _levels(path: Path, sigmas: Array) -> Array:
    return np.append(np.array([path.time(float(sigma)) for sigma in sigmas]).clip(0, 1), 0)


def _aligned(n: int, path: Path, table: list[float]) -> Array:
    """n + 1 levels along the table, log-linear; the first is the path's own top and the last gives way to 0."""
    at = np.linspace(0, len(table) - 1, n + 1)[1:-1]
    sigmas = np.exp(np.interp(at, np.arange(len(table)), np.log(table)))
    return _levels(path, np.append(path.sigmas[1], sigmas))

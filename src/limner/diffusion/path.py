"""Paths from picture to noise: x_t = a(t) x0 + s(t) eps, with t = 1 noise.

The target a network learns and the way back from its answer stand side by side, so training and sampling cannot
drift: `path.x0(x, path.target(x0, eps, t), t) == x0` wherever the path is not pure noise, and for x0 and flow
predictions everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Prediction = Literal["eps", "v", "flow", "x0"]


@dataclass(frozen=True)
class Path:
    """The base: a path says `a`, `s` and the time of a noise level; the rest follows. Times are float64 in Python."""

    prediction: Prediction = "x0"

    def a(self, t: float) -> float:
        raise NotImplementedError

    def s(self, t: float) -> float:
        raise NotImplementedError

    def time(self, sigma: float) -> float:
        """The t at which s/a is sigma."""
        raise NotImplementedError

    @property
    def sigmas(self) -> tuple[float, float]:
        """The least and the greatest s/a that schedules of noise levels span."""
        raise NotImplementedError

    def clock(self, t: float) -> float:
        """What the network wants to be told."""
        return t

    def shifted(self, t: float) -> float:
        """Where a schedule that is even in time stops instead of t."""
        return t

    def frame(self, t: float) -> tuple[float, float]:
        """(c, level): x / c moves by (x / c - x0) / level for each unit of level, evenly if x0 stays what it is.

        Here level is s/a and the slope eps, as in k-diffusion; a straight path is its own frame.
        """
        a = self.a(t)
        return a, self.s(t) / a

    def at_level(self, level: float) -> float:
        """The t at which the frame's level is this."""
        return self.time(level)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Training times: uniform, but for a path that says otherwise."""
        return torch.rand(count, generator=rng)

    def scales(self, t: float | Tensor, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """a and s at one time, or at a time for each row of x, shaped to multiply x."""
        if not isinstance(t, Tensor):
            return self.a(t), self.s(t)
        both = torch.tensor([(self.a(one), self.s(one)) for one in t.tolist()], dtype=x.dtype, device=x.device)
        a, s = both.view(len(t), 2, *[1] * (x.ndim - 1)).unbind(1)  # B 1 ... each
        return a, s

    def noisy(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        a, s = self.scales(t, x0)
        return a * x0 + s * eps

    def target(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        """What the network should answer."""
        a, s = self.scales(t, x0)
        match self.prediction:
            case "x0":
                return x0
            case "eps":
                return eps
            case "v":  # Salimans and Ho 2022, arXiv 2202.00512, section 2
                return a * eps - s * x0
            case "flow":  # Lipman et al. 2022, arXiv 2210.02747
                return eps - x0

    def x0(self, x: Tensor, answer: Tensor, t: float) -> Tensor:
        """The inverse of `target`: the finished picture that an answer at x means."""
        a, s = self.a(t), self.s(t)
        match self.prediction:
            case "x0":
                return answer
            case "eps":
                return (x - s * answer) / max(a, 1e-8)
            case "v":
                return (a * x - s * answer) / (a * a + s * s)
            case "flow":
                return (x - s * answer) / (a + s)

    def eps(self, x: Tensor, x0: Tensor, t: float) -> Tensor:
        """The noise that is in x if x0 is the picture."""
        return (x - self.a(t) * x0) / max(self.s(t), 1e-12)

    def log_snr(self, t: float) -> float:
        """Half the logarithm of the signal-to-noise ratio: log(a/s); infinite at the ends of some paths."""
        a, s = self.a(t), self.s(t)
        return math.inf if s == 0 else -math.inf if a == 0 else math.log(a / s)


@dataclass(frozen=True)
class Straight(Path):
    """a = 1 - t, s = t: rectified flow (Liu et al. 2022, arXiv 2209.03003)."""

    shift: float = 1.0  # above 1: schedules spend more of their steps on noise (SD3, arXiv 2403.03206, section 5.3.2)
    mean: float = 0.0  # of the logit of training times
    spread: float = 1.0  # of the logit of training times
    uniform: float = 0.0  # share of training times drawn uniformly
    scale: float = 1.0  # of the network's clock: SD3 counts to 1000

    def a(self, t: float) -> float:
        return 1 - t

    def s(self, t: float) -> float:
        return t

    def time(self, sigma: float) -> float:
        return sigma / (1 + sigma)

    @property
    def sigmas(self) -> tuple[float, float]:
        return 0.02, 1000.0

    def frame(self, t: float) -> tuple[float, float]:
        return 1.0, t

    def at_level(self, level: float) -> float:
        return level

    def clock(self, t: float) -> float:
        return t * self.scale

    def shifted(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Logit-normal (SD3, section 3.1), a share of it uniform."""
        logit = torch.sigmoid(torch.randn(count, generator=rng) * self.spread + self.mean)
        flat = torch.rand(count, generator=rng)
        return torch.where(torch.rand(count, generator=rng) < self.uniform, flat, logit)


@dataclass(frozen=True)
class VariancePreserving(Path):
    """a^2 + s^2 = 1 with the linear-beta SDE (Song et al. 2020, arXiv 2011.13456, appendix C): DDPM's in the limit."""

    prediction: Prediction = "eps"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def a(self, t: float) -> float:
        return math.exp(-0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)

    def s(self, t: float) -> float:
        return math.sqrt(-math.expm1(2 * math.log(self.a(t)))) if t > 0 else 0.0

    def time(self, sigma: float) -> float:
        rise, log_a = self.beta_max - self.beta_min, 0.5 * math.log1p(sigma * sigma)  # -log a
        return (math.sqrt(self.beta_min**2 + 4 * rise * log_a) - self.beta_min) / rise

    @property
    def sigmas(self) -> tuple[float, float]:
        return 0.01, self.s(1) / self.a(1)


@dataclass(frozen=True)
class VarianceExploding(Path):
    """a = 1, s from 0 to sigma_max: Karras et al. 2022, arXiv 2206.00364."""

    prediction: Prediction = "eps"
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def a(self, t: float) -> float:  # noqa: ARG002  a constant of time
        return 1.0

    def s(self, t: float) -> float:
        return self.sigma_max * t**7 if t > 0 else 0.0

    def time(self, sigma: float) -> float:
        return (sigma / self.sigma_max) ** (1 / 7)

    @property
    def sigmas(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max


@dataclass(frozen=True)
class Discrete(Path):
    """The table of noise levels that SD1, SD2 and SDXL were trained on, read at any time between its stations.

    Station k stands at t = (k + 1) / stations; log(s/a) is linear between stations, and s/a is linear in t from 0 to
    the first. a^2 + s^2 = 1, so x is what the network eats (Ho et al. 2020, arXiv 2006.11239, equation 4).
    """

    prediction: Prediction = "eps"
    beta_start: float = 0.00085  # variance added at the first station; betas are even in their square root
    beta_end: float = 0.012  # and at the last
    stations: int = 1000
    zero_snr: bool = False  # the last station is pure noise (Lin et al. 2023, arXiv 2305.08891, algorithm 1)
    whole: bool = False  # tell the network the nearest station, as ComfyUI and DPM-Solver do; else between two

    def a(self, t: float) -> float:
        return 1 / math.hypot(1, self._sigma(t))

    def s(self, t: float) -> float:
        sigma = self._sigma(t)
        return sigma / math.hypot(1, sigma)

    def time(self, sigma: float) -> float:
        levels = self._levels()
        if sigma < self.sigmas[0]:
            return sigma / self.sigmas[0] / self.stations
        return (float(np.interp(math.log(sigma), levels, np.arange(self.stations))) + 1) / self.stations

    @property
    def sigmas(self) -> tuple[float, float]:
        levels = self._levels()
        return math.exp(levels[0]), math.exp(levels[-1])

    def clock(self, t: float) -> float:
        station = max(0.0, t * self.stations - 1)
        return float(round(station)) if self.whole else station

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """A station of the table."""
        return (torch.randint(self.stations, (count,), generator=rng) + 1) / self.stations

    def _sigma(self, t: float) -> float:
        station = t * self.stations - 1
        if station < 0:
            return t * self.stations * self.sigmas[0]
        return math.exp(float(np.interp(station, np.arange(self.stations), self._levels())))

    def _levels(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return _table(self.beta_start, self.beta_end, self.stations, self.zero_snr)


@lru_cache
def _table(start: float, end: float, stations: int, zero_snr: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """log(s/a) at each station."""
    kept = np.cumprod(1 - np.linspace(start**0.5, end**0.5, stations) ** 2)  # a^2, the paper's alpha bar
    if zero_snr:
        a = np.sqrt(kept)
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
        kept = np.append(a[:-1] ** 2, 2.0**-24)  # not 0, so that s/a is finite: 4096
    return 0.5 * np.log((1 - kept) / kept)

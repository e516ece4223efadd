"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from limner.diffusion.path import Path
from limner.diffusion.thrift import AHEAD, Memory, Thrift
from limner.errors import BadInput
from limner.types import Denoiser

Interval = tuple[float, float]  # low <= t <= high


@dataclass(frozen=True)
class Worse:
    """The positives by a network that is made worse, from which the estimate turns away where the interval holds."""

    denoiser: Denoiser
    scale: float
    interval: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Guided:
    """A guided denoiser that can be asked for the unguided estimate too, as the samplers of CFG++ must."""

    positives: tuple[tuple[Denoiser, float], ...]  # each with its weight
    negative: Denoiser
    scale: float
    interval: Interval = (0.0, 1.0)
    rescale: float = 0.0
    worse: tuple[Worse, ...] = ()
    memory: Memory | None = None  # of the difference that the negative makes; None: it is asked at every step

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self._estimate(x, t, self.scale != 1 and _within(self.interval, t))[0]

    def pair(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The guided estimate and the negative's; the same one twice where there is no guidance."""
        return self._estimate(x, t, _within(self.interval, t))

    def _estimate(self, x: Tensor, t: float, guide: bool) -> tuple[Tensor, Tensor]:
        rest = 1 - sum(weight for _, weight in self.positives)
        told, away = self._both(x, t) if guide or rest else (self._toward(x, t),) * 2
        toward = told + rest * away if rest else told
        x0 = away + self.scale * (toward - away) if guide else toward
        for worse in self.worse:
            if _within(worse.interval, t):
                x0 = x0 + worse.scale * (told - worse.denoiser(x, t))
        if self.rescale and guide:
            every = tuple(range(1, x.ndim))
            ratio = toward.std(every, keepdim=True) / x0.std(every, keepdim=True).clamp(min=1e-6)
            x0 = x0 * (1 + self.rescale * (ratio - 1))
        return x0, away if guide else x0

    def _both(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """What the positives say, and the negative, or what it said before."""
        if self.memory is None:
            return self._at_once(x, t)
        found: list[Tensor] = []

        def difference() -> Tensor:
            toward, away = self._at_once(x, t)
            found.append(toward)
            return toward - away

        change = self.memory(x, t, difference)
        toward = found[0] if found else self._toward(x, t)
        return toward, toward - change

    @cached_property
    def _toward(self) -> Denoiser:
        return mixed(self.positives)

    @cached_property
    def _at_once(self) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
        """Both asked, in one batch where the first knows how to be asked with the other."""
        first, weight = self.positives[0]
        paired = getattr(first, "paired", None) if len(self.positives) == 1 and weight == 1 else None
        both = paired(self.negative) if paired else None
        return both or (lambda x, t: (self._toward(x, t), self.negative(x, t)))


@dataclass(frozen=True)
class Carried:
    """A denoiser that is asked at whole steps alone; at the others what it said is carried over.

    Along a smooth walk that is the network's own answer: the noise, where it tells the noise. Where noise is drawn
    afresh no answer but the picture stays what it is.
    """

    denoiser: Denoiser
    path: Path  # what its prediction says is carried over
    memory: Memory

    @classmethod
    def over(cls, denoiser: Denoiser, path: Path, thrift: Thrift, noisy: bool = False) -> Carried:
        """noisy: the sampler draws noise on its way."""
        if noisy or path.prediction == "x0":
            return cls(denoiser, replace(path, prediction="x0"), Memory(thrift))
        return cls(denoiser, path, Memory(thrift, AHEAD))

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.path.x0(x, self.memory(x, t, lambda: self._told(x, self.denoiser(x, t), t)), t)

    def pair(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        both = self.memory(x, t, lambda: torch.stack([self._told(x, x0, t) for x0 in pair(self.denoiser, x, t)]))
        return self.path.x0(x, both[0], t), self.path.x0(x, both[1], t)

    def _told(self, x: Tensor, x0: Tensor, t: float) -> Tensor:
        return self.path.target(x0, self.path.eps(x, x0, t), t)


def pair(denoiser: Denoiser, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The guided estimate and the unguided one; of a denoiser that has none, the same one twice."""
    if isinstance(denoiser, Guided | Carried):
        return denoiser.pair(x, t)
    x0 = denoiser(x, t)
    return x0, x0


def mixed(parts: Sequence[tuple[Denoiser, float]]) -> Denoiser:
    """What several denoisers estimate, each by its weight."""

    def one(x: Tensor, t: float, denoiser: Denoiser, weight: float) -> Tensor:
        return denoiser(x, t) if weight == 1 else weight * denoiser(x, t)

    return lambda x, t: sum((one(x, t, *part) for part in parts[1:]), one(x, t, *parts[0]))


def guided(
    positive: Denoiser,
    negative: Denoiser,
    scale: float,
    interval: Interval = (0.0, 1.0),
    rescale: float = 0.0,
) -> Guided:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), in x0: negative + scale (positive - negative).

    interval: guide only at times low <= t <= high (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    rescale: how far to bring the deviation back to the unguided one (Lin et al. 2023, arXiv 2305.08891, section 3.4).
    """
    return Guided(((positive, 1.0),), negative, scale, interval, rescale)


def composed(
    positives: Sequence[tuple[Denoiser, float]],
    negative: Denoiser,
    scale: float,
    interval: Interval = (0.0, 1.0),
    rescale: float = 0.0,
) -> Guided:
    """Several prompts at once, each with its weight (Liu et al. 2022, arXiv 2206.01714).

    In x0: negative + scale * sum of weight (positive - negative).
    """
    if not positives:
        raise BadInput("no prompt was given to compose; at least 1 is needed")
    return Guided(tuple(positives), negative, scale, interval, rescale)


def skip_layer(inner: Guided, skipped: Denoiser, scale: float, interval: Interval = (0.0, 1.0)) -> Guided:
    """Guidance away from the network with some layers left out: x0 + scale (positive - skipped) within the interval.

    Stability's SD3.5 reference; Hyung et al. 2024, arXiv 2411.18664.
    """
    return replace(inner, worse=(*inner.worse, Worse(skipped, scale, interval)))


def perturbed(inner: Guided, alone: Denoiser, scale: float, interval: Interval = (0.0, 1.0)) -> Guided:
    """Guidance away from the network whose attention sees each place alone: x0 + scale (positive - alone).

    Perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377, equation 16). A scale of 0 is none.
    """
    return replace(inner, worse=(*inner.worse, Worse(alone, scale, interval))) if scale else inner


def instructed(positive: Denoiser, negative: Denoiser, blank: Denoiser, scale: float, image_scale: float) -> Denoiser:
    """Guidance of checkpoints that edit a picture as they are told (Brooks et al. 2023, arXiv 2211.09800, equation 3).

    negative sees the picture without the words, blank neither: blank + image_scale (negative - blank) + scale
    (positive - negative).
    """

    def denoise(x: Tensor, t: float) -> Tensor:
        away = negative(x, t)
        plain = blank(x, t)
        return plain + image_scale * (away - plain) + scale * (positive(x, t) - away)

    return denoise


def staged(stages: Sequence[tuple[float, Denoiser]]) -> Denoiser:
    """One denoiser after another: each holds until its time, the times descend, the last holds to the end."""
    until = [t for t, _ in stages]
    if not stages or until != sorted(until, reverse=True):
        raise BadInput(f"stages that end at {until} were given; at least 1 is needed, with times that descend")

    def denoise(x: Tensor, t: float) -> Tensor:
        now = next((stage for end, stage in stages if t > end), stages[-1][1])
        return now(x, t)

    return denoise


def _within(interval: Interval, t: float) -> bool:
    return interval[0] <= t <= interval[1]

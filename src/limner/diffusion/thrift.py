"""Steps that are not computed whole: what changes slowly from step to step is carried over.

What the network answers changes slowly, so between two steps at which it is asked its answer can be carried forward,
while the sampler still goes its small steps (forecasting: Liu et al. 2025, arXiv 2503.06923). After DeepCache (Ma et
al. 2023, arXiv 2312.00858) the deep layers alone are carried, and the outer ones asked. The same goes for the
difference that guidance makes. What the early steps decide is seen in the whole picture, so all of those are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAN = 0.5  # of the way that a straight line through the last two whole steps would go; 0 and 1 were both worse
AHEAD = 1.0  # the same of the noise or the velocity that a network answers with


@dataclass(frozen=True)
class Thrift:
    """Which steps of a walk are whole: all down to the time `late`, from there every `every`-th.

    Where it eases in, the first of these comes after 2 steps, the next after 3, and so on up to `every`: what changes
    slowly at the end still changes fast where late steps begin.
    """

    stations: tuple[float, ...]
    every: int
    late: float
    eases: bool = False

    @classmethod
    def over(cls, stations: Sequence[float], every: int, late: float, eases: bool = False) -> Thrift | None:
        """None where every step is whole."""
        return cls(tuple(sorted(stations, reverse=True)), every, late, eases) if every > 1 else None

    def whole(self, t: float) -> bool:
        """Whether the step at t is; times between two stations belong to the one before."""
        early = sum(station > self.late for station in self.stations)
        left = sum(station >= t for station in self.stations) - early  # 1 at the first late step
        gap = 2 if self.eases else self.every
        while left > gap:
            left, gap = left - gap, min(gap + 1, self.every)
        return t > self.late or left == gap


class Memory:
    """What was computed at the last two whole steps, for one denoiser.

    Windows, rows and second looks of a step are told apart by their order in it. Where a walk goes back to noise,
    everything is computed anew. lean: see `carried`.
    """

    def __init__(self, thrift: Thrift, lean: float = LEAN) -> None:
        self.thrift, self.lean = thrift, lean
        self._found: dict[tuple[int, torch.Size], list[tuple[float, Tensor]]] = {}  # (t, value), the newest last
        self._t, self._order = -1.0, 0

    def __call__(self, x: Tensor, t: float, compute: Callable[[], Tensor]) -> Tensor:
        """The value at t for input x: computed, or carried over from the last whole steps."""
        self._order = self._order + 1 if t == self._t else 0
        if t > self._t:
            self._found.clear()
        self._t = t
        found = self._found.setdefault((self._order, x.shape), [])
        if found and not self.thrift.whole(t):
            return carried(found, t, self.lean)
        value = compute()
        found[:] = [*found[-1:], (t, value)]
        return value


def carried(found: Sequence[tuple[float, Tensor]], t: float, lean: float = LEAN) -> Tensor:
    """The newest value, going this share of the way to where a straight line through the last two would be at t."""
    now, value = found[-1]
    if len(found) < 2:
        return value
    before, older = found[-2]
    return value + (value - older) * (lean * (t - now) / (now - before))

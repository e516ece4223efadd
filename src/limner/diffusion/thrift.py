"""Steps that are not computed whole: what changes slowly from step to step is carried over.

What the network answers changes slowly, so between two steps at which it is asked its answer can be carried forward,
while the sampler still goes its small steps (forecasting: Liu et al. 2025, arXiv 2503.06923). After DeepCache (Ma et
al. 2023, arXiv 2312.00858) the deep layers alone are carried, and the outer ones asked. The same goes for the
difference that guidance makes. What the early steps decide is seen in the whole picture, so all of those are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEAN = 0.5  # of the way that a straight line through the last two whole steps would go; 0 and 1 were both worse
AHEAD = 1.0  # the same of the noise or the velocity that a network answers with
LEAST = 2  # steps from one that is whole to the next, where late ones are carried over


@dataclass(frozen=True)
class Thrift:
    """Which steps of a walk are whole: all down to the time `late`, from there every `every`-th, or those `apart`.

    Where it eases in, the first gaps are shorter: 2 steps, then 3, and so on up to `every`; or a half of `apart`, then
    three quarters. What changes slowly at the end still changes fast where late steps begin.
    """

    stations: tuple[float, ...]
    every: int
    late: float
    eases: bool = False
    apart: float = 0.0  # the time from one to the next, to the nearest station, but 2 steps at least; 0: `every` counts

    @classmethod
    def over(
        cls, stations: Sequence[float], every: int, late: float, eases: bool = False, apart: float = 0.0
    ) -> Thrift | None:
        """None where every step is whole."""
        ordered = tuple(sorted(stations, reverse=True))
        return cls(ordered, every, late, eases, apart) if every > 1 or apart else None

    def whole(self, t: float) -> bool:
        """Whether the step at t is; times between two stations belong to the one before."""
        return t > self.late or sum(station >= t for station in self.stations) - 1 in self._late

    @cached_property
    def _late(self) -> frozenset[int]:
        """The whole ones among late steps, as numbers of stations."""
        at = sum(station > self.late for station in self.stations) - 1
        found: list[int] = []
        while at < len(self.stations) - 1:
            at += self._gap(at, len(found))
            found.append(at)
        return frozenset(found)

    def _gap(self, at: int, done: int) -> int:
        """Steps from one that is whole to the next; done: gaps that were."""
        if not self.apart:
            return min(LEAST + done, self.every) if self.eases else self.every
        if at < 0:
            return LEAST
        share = min(1.0, 0.5 + done / 4) if self.eases else 1.0
        aim = self.stations[at] - self.apart * share
        return max(LEAST, min(range(1, len(self.stations) - at), key=lambda n: abs(self.stations[at + n] - aim)))


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

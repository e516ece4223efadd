"""A network that was told something: a function from (x, t) to x0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from limner.diffusion.path import Path
from limner.diffusion.thrift import Memory
from limner.place import Place
from limner.types import Cond, Steer

REHEARSAL = 8  # steps


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A denoiser whose conditions are given; what it is asked of fewer rows than x has serves x over and over."""

    net: Callable[[], nn.Module]
    place: Place
    path: Path
    cond: Cond
    steer: Steer | None = None  # what is told besides at each step
    memory: Memory | None = None  # of the deep layers, where they are carried over
    wishes: Mapping[str, Any] = field(default_factory=dict)  # of the network

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return asked([self], x, t)[0]

    def paired(self, other: object) -> Callable[[Tensor, float], tuple[Tensor, Tensor]] | None:
        """This one and another asked at once, in one batch; None where that does not pay or they are not alike.

        It pays where the pictures of a batch are computed alone, and on a card. Where they are computed alone each asks
        its two rows so, whatever batch it is in, and stays the same alone and among others.
        """
        if not (self.place.pairs and isinstance(other, Conditioned) and self.wishes == other.wishes):
            return None
        if self.net is not other.net or self.steer is not other.steer or not _alike(self.cond, other.cond):
            return None
        if (self.memory is None) != (other.memory is None):
            return None

        def both(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
            mine, theirs = asked([self, other], x, t)
            return mine, theirs

        return both


@torch.inference_mode()
def asked(told: Sequence[Conditioned], x: Tensor, t: float) -> list[Tensor]:
    """What each of these, alike but for what they were told, says of x."""
    first = told[0]
    x = x.contiguous()  # one layout: in bf16 another one is another product, and another picture
    every = [one.cond if len(one.cond) == len(x) else one.cond.again(len(x) // len(one.cond)) for one in told]
    size = 1 if first.place.one_by_one else len(x)
    clock = torch.full((size,), first.path.clock(t), device=x.device)
    net, answers = first.net(), []
    with first.place.autocast():
        for i in range(0, len(x), size):
            part, conds = x[i : i + size], [cond.row(i) if size < len(x) else cond for cond in every]
            if first.steer:
                conds = [first.steer(part, clock, cond, t) for cond in conds]
            deep = {"deep": _remembered(told, part, t)} if first.memory else {}
            answer = net(part, clock, _joined(conds), **first.wishes, **deep)  # part serves each of them
            answers.append(answer.float().chunk(len(told)))
    return [first.path.x0(x, torch.cat(rows).contiguous(), t) for rows in zip(*answers, strict=True)]


def rehearse(told: Conditioned, shape: Sequence[int]) -> None:
    """Walks from noise to a picture in few steps, so that who looks at the network sees what its layers read.

    shape: C h w. Each condition walks for itself, by the plain step of DDIM (arXiv 2010.02502, equation 12). Latents
    are about as wide as noise; where a network is not trained, and x would grow beyond, it is brought back.
    """
    times = [1 - i / REHEARSAL for i in range(REHEARSAL)]
    noise = torch.randn(len(told.cond), *shape, generator=torch.Generator().manual_seed(0))
    x = told.path.s(times[0]) * noise.to(told.place.device)
    for t, after in pairwise([*times, 0.0]):
        x0 = told(x, t)
        x = told.path.a(after) * x0 + told.path.s(after) * told.path.eps(x, x0, t)
        x = x / x.std().clamp(min=1)


def _remembered(told: Sequence[Conditioned], x: Tensor, t: float) -> Callable[[Callable[[], Tensor]], Tensor]:
    """What deep layers give, each row block from the memory of who asks; those agree on when it is computed."""

    def deep(inner: Callable[[], Tensor]) -> Tensor:
        found: list[Tensor] = []

        def share(i: int) -> Tensor:
            found[:] = found or inner().chunk(len(told))
            return found[i]

        return torch.cat([one.memory(x, t, lambda i=i: share(i)) for i, one in enumerate(told) if one.memory])  # type: ignore[misc]

    return deep


def _alike(a: Cond, b: Cond) -> bool:
    """Whether rows of two conditions can be one batch: of as many tokens, or with a mask that hides what is filled."""
    try:
        return len(_joined([a.row(0), b.row(0)])) == 2
    except (ValueError, RuntimeError):
        return False


def _joined(conds: Sequence[Cond]) -> Cond:
    """The rows of all, tokens filled with hidden ones to the longest."""
    most = max(cond.tokens.shape[1] for cond in conds)
    return functools.reduce(Cond.cat, (cond.filled(most) for cond in conds))

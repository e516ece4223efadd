"""Norms that torch has not in the form that published networks need, and the gates that go with them.

On the CPU, where nothing is learned, a large state is passed over in strips, so that what lies between one operation
and the next stays in the caches: then memory is read and written once and not at each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP = 2**18  # values that are computed at a time: 1 MiB in fp32


def _strips(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Parts of x, B N ..., of about STRIP values: the row, and which of the N."""
    some = max(1, STRIP // x[0, 0].numel())
    return product(range(len(x)), (slice(first, first + some) for first in range(0, x.shape[1], some)))


def _by_strips(x: Tensor) -> bool:
    """By the size of a row, so that a row is the same in every batch."""
    learns, traced = torch.is_grad_enabled(), torch.jit.is_tracing()  # type: ignore[attr-defined]
    return x.device.type == "cpu" and x[0].numel() > STRIP and not learns and not traced


def _read_as(x: Tensor) -> torch.dtype:
    """The type in which products read x here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """A norm whose shift and scale are told: adaLN (Peebles and Xie 2022, arXiv 2212.09748, section 3.2).

    x: B T D; shift and scale: B 1 D. What comes out is for products, and may be rounded already as they read it.
    """
    if not _by_strips(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    y, scale = torch.empty_like(x, dtype=_read_as(x)), 1 + scale
    for b, here in _strips(x):
        y[b, here] = F.layer_norm(x[b, here], x.shape[-1:], scale[b, 0], shift[b, 0], 1e-6)
    return y


def joined(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y: B T D, with a gate of B 1 D."""
    if not _by_strips(x):
        return x + gate * y
    sums = torch.empty_like(x)
    for b, here in _strips(x):
        torch.addcmul(x[b, here], gate[b], y[b, here].to(x.dtype), out=sums[b, here])
    return sums


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32 whatever comes in (Zhang and Sennrich 2019, arXiv 1910.07467).

    x: B N ... D. What comes out has the dtype of what came in; torch's own wants the weight in that dtype too.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if not _by_strips(x):
            return self._norm(x).to(x.dtype)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for b, here in _strips(x):
            y[b, here] = self._norm(x[b, here])
        return y

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps)

"""Embeddings of time and place, and tables of them that are looked up where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)
TABLE = 2**22  # values of an embedding from which on it is not copied; places and buckets have fewer


def timestep_embedding(t: Tensor, width: int, period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of t at geometric frequencies: B -> B D (Vaswani et al. 2017, section 3.5; fp32)."""
    half = width // 2
    rates = torch.exp(-math.log(period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotary_2d(h: int, w: int, width: int, device: torch.device, period: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each T E, for `rotate`: half of a head turns with the row, half with the column.

    Positions are those of the grid itself (RoPE, Su et al. 2021, arXiv 2104.09864, on two axes).
    """
    quarter = width // 4
    rates = period ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    rows = torch.arange(h, device=device).repeat_interleave(w)[:, None] * rates  # T E/4
    columns = torch.arange(w, device=device).repeat(h)[:, None] * rates
    angles = torch.cat([rows, rows, columns, columns], dim=1)  # T E
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of x (B K T E) by the angles of `rotary_2d`."""
    a, b, c, d = x.chunk(4, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a, -d, c], dim=-1) * sin.to(x.dtype)


class Table(nn.Module):
    """A large embedding whose values stay in their file: the rows that are looked up become fp32, the same bits."""

    def __init__(self, values: Tensor, release: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._values, self._release = [values], release  # in a list: nobody brings them to another place

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self._values[0]).float()
        self._release(self._values[0])
        return rows

    def __deepcopy__(self, _: Any) -> Table:
        return Table(self._values[0], self._release)


def is_table(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding) and layer.weight.numel() >= TABLE


def tabled(net: Net, release: Callable[[Tensor], object]) -> Net:
    """The network itself, its large embeddings looked up where they lie.

    release: gives the pages of a tensor back to the system.
    """
    for layer in list(net.modules()):
        for name, child in list(layer.named_children()):
            if is_table(child):
                setattr(layer, name, Table(child.weight.data, release))  # type: ignore[arg-type]
    return net

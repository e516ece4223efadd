"""Embeddings of time and place."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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

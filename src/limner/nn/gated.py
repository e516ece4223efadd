"""A linear layer whose second half opens the first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202): ... I to ... O."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)  # ... O each
        return value * F.gelu(gate)

"""Linear layers, and what is done with their answers while they are still at hand, by oneDNN itself.

For painting on the CPU in bf16. What lies between is neither written to memory nor rounded. The weights stay those of
the plain layers, row by row, so who streams or packs layers need not know.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


class GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020, arXiv 2002.05202): ... I to ... M."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)  # B T M each
        return value * F.gelu(gate)


class FusedGated(nn.Module):
    """The same in two products, the second of which multiplies its answers by those of the first."""

    def __init__(self, plain: GatedLinear) -> None:
        super().__init__()
        hidden = plain.proj.out_features // 2
        self.value = FusedLinear(plain.proj, slice(hidden))
        self.gate = FusedLinear(plain.proj, slice(hidden, None), gelu="none")

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x, times=self.gate(x))


class FusedLinear(nn.Linear):
    """A linear layer: ... I to ... O, and its GELU, if any, or its product with `times`, which is ... O.

    rows: of the plain layer's weight, which are its own. gelu: torch's word for the approximation; "": none.
    """

    def __init__(self, plain: nn.Linear, rows: slice = slice(None), gelu: str = "") -> None:
        weight = plain.weight.data[rows]
        super().__init__(plain.in_features, len(weight), bias=plain.bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if plain.bias is not None:
            self.bias = nn.Parameter(plain.bias.data[rows], requires_grad=False)
        self.gelu = gelu

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        return product(x.to(self.weight.dtype), self.weight, self.bias, self.gelu, times)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str = "", times: Tensor | None = None) -> Tensor:
    """x: ... I times a weight O I, plain or packed, then GELU or times another: ... O."""
    pointwise = torch.ops.mkldnn._linear_pointwise
    if times is not None:
        return pointwise.binary(x, times, weight, bias, "mul")
    return pointwise(x, weight, bias, "gelu" if gelu else "none", [], gelu)


def fusing(net: Net) -> Net:
    """The network itself, with each GatedLinear, and each linear layer that a GELU follows, fused."""
    for layer in list(net.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, GatedLinear):
                setattr(layer, name, FusedGated(child))
        if isinstance(layer, nn.Sequential):
            for (name, child), (after, gelu) in pairwise(list(layer.named_children())):
                if type(child) is nn.Linear and isinstance(gelu, nn.GELU):
                    setattr(layer, name, FusedLinear(child, gelu=gelu.approximate))
                    setattr(layer, after, nn.Identity())
    return net

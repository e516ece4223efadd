"""Linear layers that multiply in floats of 8 bits, on cards that have them, for painting only.

Weights are e4m3 (Micikevicius et al. 2022, arXiv 2209.05433) with a scale for each output channel, once and for all;
what comes in is so with a scale for each row, as it comes. So nothing is calibrated, and a row of a batch stays the one
that it is alone. Sums and what goes out are wide. Convolutions stay wide, too: torch has none of this kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from limner.nn import int8
from limner.nn.packed import exchanged

KIND = torch.float8_e4m3fn
REACH = torch.finfo(KIND).max  # 448, to either side of 0
EVEN = 16  # the card's products want sides that are multiples of it
Net = TypeVar("Net", bound=nn.Module)


def in_fp8(net: Net, dtype: torch.dtype, device: torch.device, release: Callable[[Tensor], object]) -> Net:
    """The network itself, with its large linear layers exchanged for layers of fp8 on the device, that answer in dtype.

    release: is given each tensor that is no longer needed.
    """

    def small(name: str, layer: nn.Module) -> Fp8Linear | None:
        return Fp8Linear(layer, dtype, device) if eligible(name, layer) else None  # type: ignore[arg-type]

    return exchanged(net, small, release)


def eligible(name: str, layer: nn.Module) -> bool:
    """Whether a layer of a network, by its name in it, is one that multiplies in fp8."""
    if not isinstance(layer, nn.Linear) or not int8.eligible(name, layer):
        return False
    return not any(side % EVEN for side in layer.weight.shape)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x, N I, as fp8 and its scales, N 1: x is about the one times the other."""
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / REACH
    return (x.float() / scale).clamp(-REACH, REACH).to(KIND), scale


class Fp8Linear(nn.Module):
    """A linear layer in fp8: ... I to ... O. Its weights are no parameters, for nobody is to cast them."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        small, scales = rounded(layer.weight.data.to(device))
        self.small, self.scales = small.t(), scales.t()  # I O, columns beside one another; 1 O
        self.bias = None if layer.bias is None else layer.bias.data.to(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()  # the card's product takes rows that lie one after another
        small, scale = rounded(rows)
        y = torch._scaled_mm(small, self.small, scale, self.scales, out_dtype=self.dtype)  # no public name in torch 2.9
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

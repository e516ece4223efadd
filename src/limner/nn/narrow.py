"""Norms and enlargements whose answers are as wide as what they read, for painting on a card.

Autocast has a card compute them in fp32, and then all that follows until the next product: twice the memory is read and
written, and each product casts it back. Inside, torch sums in fp32 either way. A processor leaves them as they are.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.upsample import Upsample

Net = TypeVar("Net", bound=nn.Module)


def narrowed(net: Net) -> Net:
    """The network itself, each of these exchanged for its narrow kind; weights stay as they are."""
    for layer in net.modules():
        if kind := KINDS.get(type(layer)):
            layer.__class__ = kind
    return net


class NarrowGroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


class NarrowLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = (value if value is None else value.to(input.dtype) for value in (self.weight, self.bias))
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class NarrowUpsample(Upsample):
    def enlarged(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().enlarged(x, size)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: NarrowGroupNorm, nn.LayerNorm: NarrowLayerNorm, Upsample: NarrowUpsample,
}  # fmt: skip

"""Linear layers and convolutions that multiply in 8 bits through oneDNN, on the CPU, for painting only.

Weights are int8 with a scale for each output channel, once and for all. What comes in becomes u8 around 128 as it
comes, with a scale for each row of a linear layer and for each picture of a convolution: nothing is calibrated, and a
picture in a batch stays the one that it is alone (vector-wise quantisation: Dettmers et al. 2022, arXiv 2208.07339,
section 2.1). What goes out is in the type that the rest of the network computes in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from limner.nn.packed import LEAST, StandIn, convolves_plainly, exchanged
from limner.place import has_vnni

MIDDLE = 128  # what 0 becomes
REACH = 127  # of what comes in, to either side of it
FULL, EXACT = 127, 64  # of a weight, to either side of 0
PART = 2**20  # values that are rounded at a time
WIDE = re.compile(r"(^|[._])(time|label|emb|embed|embedder|modulation|words|phrase|patch|last|head|final)([._]|$)")
Net = TypeVar("Net", bound=nn.Module)


def weight_reach() -> int:
    """The greatest magnitude of a weight in 8 bits here.

    A processor without VNNI adds pairs of products in 16 bits, which saturate: 2 * 255 * 64 is the most that fits.
    There weights have 7 bits, and the sums are exact.
    """
    return FULL if has_vnni() else EXACT


def in_int8(net: Net, dtype: torch.dtype, release: Callable[[Tensor], object]) -> Net:
    """The network itself, with its large layers exchanged for layers of 8 bits whose answers are in `dtype`.

    The first and last layers, what reads times, labels and words, and what has few channels stay as they are.
    release: is given each tensor that is no longer needed.
    """
    return exchanged(net, lambda name, layer: _small(layer, dtype) if eligible(name, layer) else None, release)


def _small(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    return Int8Linear(layer, dtype) if isinstance(layer, nn.Linear) else Int8Conv2d(cast(nn.Conv2d, layer), dtype)


def eligible(name: str, layer: nn.Module) -> bool:
    """Whether a layer of a network, by its name in it, is one that multiplies in 8 bits."""
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or WIDE.search(name):
        return False
    if isinstance(layer, nn.Conv2d) and not convolves_plainly(layer):
        return False
    return min(layer.weight.shape[:2]) >= LEAST


def rounded(x: Tensor, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x as u8 and its scale, one for all values along the sides `over`: x is about scale * (u8 - 128)."""
    most = torch.maximum(x.amax(over, keepdim=True), -x.amin(over, keepdim=True)).float().clamp_(min=1e-12)
    small = torch.addcmul(torch.tensor(MIDDLE + 0.5), x.float(), REACH / most)  # cutting off rounds
    return small.to(torch.uint8), most / REACH


def small_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and fp32 O: a weight O ... is about the one times the other, symmetric, for each output channel."""
    rows, reach = weight.flatten(1), weight_reach()
    small, scales = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows), 1)
    for here in _parts(rows):
        wide = rows[here].float()
        scale = torch.maximum(wide.amax(1, keepdim=True), -wide.amin(1, keepdim=True)).clamp_(min=1e-12)
        small[here], scales[here] = (wide * (reach / scale)).round_(), scale / reach
    return small.view(weight.shape), scales.flatten()


def _parts(rows: Tensor) -> Iterator[slice]:
    """Rows that are taken together, so that what is computed of them stays in the processor's cache."""
    step = max(1, PART // rows.shape[1])
    return (slice(first, first + step) for first in range(0, len(rows), step))


class Int8Linear(nn.Module):
    """A linear layer in 8 bits: ... I to ... O."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        small, self.scales = small_weight(layer.weight.data)
        self.packed = torch.ops.onednn.qlinear_prepack(small, None)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.data.float()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        small, scale = torch.empty(rows.shape, dtype=torch.uint8), torch.empty(len(rows), 1)
        for here in _parts(rows):
            small[here], scale[here] = rounded(rows[here], (1,))
        y = torch.ops.onednn.qlinear_pointwise(
            small, 1.0, MIDDLE, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale, out=y)
        return y.to(self.dtype).view(*x.shape[:-1], self.out_features)


class Int8Conv2d(StandIn):
    """A convolution in 8 bits."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        small, self.scales = small_weight(layer.weight.data)
        self.packed = torch.ops.onednn.qconv_prepack(
            small, self.scales, 1.0, 0, self.stride, self.padding, self.dilation, 1, None
        )
        self.zeros = torch.zeros(len(self.scales), dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.data.float()[:, None, None]

    def padded(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        small, scale = rounded(x.contiguous(memory_format=torch.channels_last), (1, 2, 3))
        y = torch.ops.onednn.qconv_pointwise(
            small, 1.0, MIDDLE, self.packed, self.scales, self.zeros, None, self.stride, padding, self.dilation, 1,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        y = y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale, out=y)
        return y.to(self.dtype)

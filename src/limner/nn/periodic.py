"""Networks on a torus: convolutions that go around the borders, so that what they make joins with itself."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.int8 import Int8Conv2d
from limner.nn.packed import PackedConv2d, StandIn

Net = TypeVar("Net", bound=nn.Module)


class PeriodicConv2d(nn.Conv2d):
    """A convolution whose padding comes from the other side, along x, y or both; along the rest it stays zero.

    A convolution that has no padding and yet more width than stride has been padded by who called it, with zeros at
    the right and below (the autoencoder's way to halve): there what was padded is taken from the left and above.
    """

    around: tuple[bool, bool]  # x, y

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, zeros = _wrapped(self, input)
        return F.conv2d(input, weight, bias, self.stride, zeros, self.dilation, self.groups)


class PeriodicStandIn(StandIn):
    """The same for what stands for a convolution."""

    around: tuple[bool, bool]

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(*_wrapped(self, x))


class PeriodicInt8Conv2d(PeriodicStandIn, Int8Conv2d):
    """In 8 bits."""


class PeriodicPackedConv2d(PeriodicStandIn, PackedConv2d):
    """With packed weights."""


GOES_AROUND: dict[type, type] = {
    nn.Conv2d: PeriodicConv2d, Int8Conv2d: PeriodicInt8Conv2d, PackedConv2d: PeriodicPackedConv2d,
}  # fmt: skip


def _wrapped(layer: PeriodicConv2d | PeriodicStandIn, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What a convolution reads, with what lies beyond its borders, and how many zeros rows and columns still lack."""
    pad = [0, 0]
    for axis, goes in ((-1, layer.around[0]), (-2, layer.around[1])):
        cells, beyond = int(layer.padding[axis]), layer.kernel_size[axis] - layer.stride[axis]
        if not goes:
            pad[axis] = cells
        elif cells:
            last = input.narrow(axis, input.shape[axis] - cells, cells)
            input = torch.cat([last, input, input.narrow(axis, 0, cells)], dim=axis)  # keeps the memory's layout
        elif beyond > 0:
            inside = input.narrow(axis, 0, input.shape[axis] - beyond)
            input = torch.cat([inside, inside.narrow(axis, 0, beyond)], dim=axis)
    return input, (pad[0], pad[1])


def periodic(net: Net, x: bool, y: bool) -> Net:
    """A copy of the network that goes around along x, y or both; weights are shared, the network stays as it is.

    Norms over all places and attention without positions know no borders and need nothing, so a UNet and an
    autoencoder become exact: what is rolled by a multiple of their stride comes out rolled. Positions of a transformer
    are left as they are.
    """
    if not (x or y):
        return net
    twin = copy.copy(net)
    twin._modules = {name: child and periodic(child, x, y) for name, child in net._modules.items()}
    if type(twin) in GOES_AROUND and twin.padding_mode == "zeros" and max(twin.kernel_size) > 1:  # type: ignore
        vars(twin)["around"] = (x, y)
        object.__setattr__(twin, "__class__", GOES_AROUND[type(twin)])
    return twin

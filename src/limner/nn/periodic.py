"""Networks on a torus: convolutions that go around the borders, so that what they make joins with itself."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


class PeriodicConv2d(nn.Conv2d):
    """A convolution whose padding comes from the other side, along x, y or both; along the rest it stays zero.

    A convolution that has no padding and yet more width than stride has been padded by who called it, with zeros at
    the right and below (the autoencoder's way to halve): there what was padded is taken from the left and above.
    """

    around: tuple[bool, bool]  # x, y

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pad = [0, 0]  # of zeros: rows, columns
        for axis, goes in ((-1, self.around[0]), (-2, self.around[1])):
            cells, beyond = int(self.padding[axis]), self.kernel_size[axis] - self.stride[axis]
            if not goes:
                pad[axis] = cells
            elif cells:
                last = input.narrow(axis, input.shape[axis] - cells, cells)
                input = torch.cat([last, input, input.narrow(axis, 0, cells)], dim=axis)  # keeps the memory's layout
            elif beyond > 0:
                inside = input.narrow(axis, 0, input.shape[axis] - beyond)
                input = torch.cat([inside, inside.narrow(axis, 0, beyond)], dim=axis)
        return F.conv2d(input, weight, bias, self.stride, tuple(pad), self.dilation, self.groups)


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
    if isinstance(twin, nn.Conv2d) and twin.padding_mode == "zeros" and max(twin.kernel_size) > 1:
        vars(twin)["around"] = (x, y)
        object.__setattr__(twin, "__class__", PeriodicConv2d)
    return twin

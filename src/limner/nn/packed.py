"""Linear layers and convolutions whose weights lie as oneDNN wants them, on the CPU, for painting only.

PyTorch brings weights into that order anew at every call, which in bf16 takes as long as the products where pictures
are small and channels are many. The products are the same, but that another kernel may sum them in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from limner.nn.fused import FusedLinear, product

Net = TypeVar("Net", bound=nn.Module)
LEAST = 32  # channels in and out from which on a layer gains
FEW = 16**3  # products below which PyTorch does not ask oneDNN


def packed(net: Net, dtype: torch.dtype, release: Callable[[Tensor], object]) -> Net:
    """The network itself, with its large layers exchanged for packed ones that compute in `dtype`.

    release: is given each tensor that is no longer needed.
    """
    return exchanged(net, lambda _, layer: _pack(layer, dtype), release)


def exchanged(
    net: Net, other: Callable[[str, nn.Module], nn.Module | None], release: Callable[[Tensor], object]
) -> Net:
    """The network itself, each layer exchanged for what `other` makes of it by name; None leaves it as it is."""
    for name, layer in list(net.named_modules()):
        if made := other(name, layer):
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, made)
            release(cast(Tensor, layer.weight).data)
    return net


def _pack(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    if not isinstance(layer, (nn.Linear, nn.Conv2d)) or min(layer.weight.shape[:2]) < LEAST:
        return None
    if isinstance(layer, FusedLinear):
        return PackedFused(layer, dtype)
    if isinstance(layer, nn.Linear):
        return PackedLinear(layer, dtype) if layer.weight.numel() > FEW else None
    if not convolves_plainly(layer):
        return None
    return PackedPointwise(layer, dtype) if _is_pointwise(layer) else PackedConv2d(layer, dtype)


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)


def convolves_plainly(layer: nn.Conv2d) -> bool:
    """Whether every channel sees every other, with zeros around."""
    return layer.groups == 1 and layer.padding_mode == "zeros"


class PackedLinear(nn.Module):
    """A linear layer: ... I to ... O."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        weight = layer.weight.data.flatten(1).to(dtype)  # O I
        self.out_features, self.in_features, self.dtype = *weight.shape, dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if layer.bias is None else layer.bias.data.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return product(x.to(self.dtype), self.packed, self.bias)


class PackedFused(PackedLinear):
    """One that does itself what is done with its answers."""

    def __init__(self, layer: FusedLinear, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        self.gelu = layer.gelu

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        return product(x.to(self.dtype), self.packed, self.bias, self.gelu, times)


class PackedPointwise(PackedLinear):
    """A convolution that sees one place at a time: B I h w to B O h w.

    As a linear layer over channels: oneDNN's packed convolution of this kind has 9 to 250 GFLOP/s where AMX is not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StandIn(nn.Module):
    """What stands for a convolution, with its shape: B I h w to B O h' w'."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self.padding_mode, self.dilation, self.dtype = layer.padding_mode, layer.dilation, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.padded(x, cast(tuple[int, int], self.padding))

    def padded(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """With zeros of rows and columns around, so many."""
        raise NotImplementedError


class PackedConv2d(StandIn):
    """A convolution with packed weights."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        plain = layer.weight.data.to(dtype).contiguous().to_mkldnn()
        how: Any = [self.padding, self.stride, self.dilation, 1, None]
        self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *how)
        self.bias = None if layer.bias is None else layer.bias.data.to(dtype)

    def padded(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        x = x.to(self.dtype, memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, padding, self.stride, self.dilation, 1, "none", [], ""
        )

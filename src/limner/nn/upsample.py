"""Twice the sides and a convolution, and how the two are one convolution of the small picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.conv import conv3
from limner.nn.periodic import periodic

Net = TypeVar("Net", bound=nn.Module)
FALLS = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # corner, place, tap: which is read where


class Upsample(nn.Module):
    """Each place four times, then a 3x3 convolution: B C h w to B C 2h 2w, or to a `size` of a row or a column less."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    @property
    def values(self) -> int:
        """How many a folded one has."""
        out, channels = self.conv.weight.shape[:2]
        return 4 * out * (4 * channels + 1)  # four corners, each of 2x2 places and a bias

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(self.enlarged(x, size))

    def enlarged(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        return F.interpolate(x, size=size or _doubled(x), mode="nearest")


class FoldedUpsample(nn.Module):
    """The same for painting only, in 4/9 of the products.

    Three neighbours in the large picture are two places of the small one. So a 2x2 convolution of it, whose weights are
    sums of the 3x3's, gives the four answers that lie around each corner between its places.
    """

    def __init__(self, plain: Upsample) -> None:
        super().__init__()
        self._plain = [plain.conv]  # in a list: its weights stay where they are, and are none of ours
        out, channels = plain.conv.weight.shape[:2]
        self.conv = nn.Conv2d(channels, 4 * out, 2, padding=1, device="meta")
        for name in ("weight", "bias"):
            setattr(self.conv, name, nn.Parameter(torch.empty(0), requires_grad=False))

    @property
    def empty(self) -> bool:
        """Whether its weights were not summed yet."""
        return isinstance(self.conv, nn.Conv2d) and not self.conv.weight.numel()

    def fill(self) -> Tensor:
        """Sums the weights; gives those that were summed."""
        weight, bias = (value.data for value in self._plain[0].parameters())
        self.conv.weight.data, cast(Tensor, self.conv.bias).data = folded(weight), bias.repeat(4)
        return weight

    def reveal(self) -> None:
        """Makes the plain convolution one of its modules after all, for who must find every value that is read."""
        self.plain = self._plain[0]

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size not in (None, _doubled(x)):
            return self._as_it_was(x, size)
        return _laid_out(self.conv(x).permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))).permute(0, 3, 1, 2)  # B C 2h 2w

    def _as_it_was(self, x: Tensor, size: tuple[int, int] | None) -> Tensor:
        conv = periodic(self._plain[0], *getattr(self.conv, "around", (False, False)))
        weight, bias = (value.to(x.dtype) for value in conv.parameters())
        return conv._conv_forward(F.interpolate(x, size=size, mode="nearest"), weight, bias)


def _laid_out(corners: Tensor) -> Tensor:
    """What four places around each corner answered, B h+1 w+1 2 2 C, in their places: B 2h 2w C."""
    B, h, w, C = corners.shape[0], corners.shape[1] - 1, corners.shape[2] - 1, corners.shape[-1]
    if torch.jit.is_tracing():  # type: ignore[attr-defined]  # the view below is dear elsewhere
        rows = [[corners[:, a : a + h, b : b + w, a, b] for b in (0, 1)] for a in (0, 1)]
        return torch.stack([torch.stack(row, 3).flatten(2, 3) for row in rows], 2).flatten(1, 2)
    picture, row, column, down, right, channel = corners.stride()
    steps = (picture, row, row + down, column, column + right, channel)
    return corners.as_strided((B, h, 2, w, 2, C), steps).reshape(B, 2 * h, 2 * w, C)


def folded(weight: Tensor) -> Tensor:
    """The weight of a convolution after doubling, O I 3 3, to that of the small picture: 4O I 2 2, by corners, fp32."""
    out, channels = weight.shape[:2]
    with torch.autocast("cpu", enabled=False):  # the sums themselves are not rounded
        falls = torch.einsum("apy,bqx->abpqyx", FALLS, FALLS).reshape(16, 9)
        summed = falls @ weight.float().reshape(-1, 9).T  # abpq OI
    return summed.view(4, 2, 2, out, channels).permute(0, 3, 4, 1, 2).reshape(4 * out, channels, 2, 2)


def folding(net: Net, fill: bool, release: Callable[[Tensor], object]) -> Net:
    """The network itself, each Upsample in it folded. fill: at once; else who streams its weights does it.

    release: is given each weight that is no longer needed.
    """
    for name, layer in list(net.named_modules()):
        if isinstance(layer, Upsample):
            parent, _, last = name.rpartition(".")
            made = FoldedUpsample(layer)
            if fill:
                release(made.fill())
            setattr(net.get_submodule(parent), last, made)
    return net


def _doubled(x: Tensor) -> tuple[int, int]:
    return 2 * x.shape[2], 2 * x.shape[3]

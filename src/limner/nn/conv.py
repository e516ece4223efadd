"""Convolutional blocks without norms, and resampling with shortcuts that carry no weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution starting at zero, so that a new block is the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3(channels, channels)
        self.conv2 = conv3(channels, channels)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))  # B C h w


class Down(nn.Module):
    """Halves the sides: convolution and space-to-channel, beside a shortcut of averaged channels.

    The residual autoencoding of DC-AE (Chen et al. 2024, arXiv 2410.10733, section 3.1).
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.groups = channels_in * 4 // channels_out  # how many unshuffled channels one output averages
        if channels_in * 4 != self.groups * channels_out:
            raise ValueError(f"{channels_in} x 4 channels cannot be averaged evenly into {channels_out}")
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        short = F.pixel_unshuffle(x, 2)  # B 4C h/2 w/2
        short = short.unflatten(1, (-1, self.groups)).mean(2)  # B C' h/2 w/2
        return self.conv(x) + short


class Up(nn.Module):
    """Doubles the sides: convolution and channel-to-space, beside a shortcut of repeated channels (DC-AE)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.repeats = -(-channels_out * 4 // channels_in)
        self.channels = channels_out * 4
        self.conv = conv3(channels_in, channels_out * 4)

    def forward(self, x: Tensor) -> Tensor:
        short = x.repeat_interleave(self.repeats, dim=1)[:, : self.channels]  # B 4C' h w
        return F.pixel_shuffle(self.conv(x) + short, 2)  # B C' 2h 2w

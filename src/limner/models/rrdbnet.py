"""Networks that enlarge pictures: ESRGAN's (Wang et al. 2018, arXiv 1809.00219) and Real-ESRGAN's (arXiv 2107.10833).

Module names are those of Real-ESRGAN; `weights/names/rrdbnet.py` knows the older ones. Pictures are RGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.conv import conv3

SLOPE = 0.2  # of every leaky rectifier
SCALES = (1, 2, 4, 8)  # that are published; a file that tells another would fill the memory
RESIDUE = 0.2  # how much of a block is added to what came in (arXiv 1809.00219, section 3.1)


@dataclass(frozen=True)
class RrdbConfig:
    channels: int = 3  # of the picture
    width: int = 64
    growth: int = 32  # channels that each convolution of a dense block adds
    blocks: int = 23
    doublings: int = 2
    unshuffle: int = 1  # side of the squares of pixels that become channels first (arXiv 2107.10833, section 3.4)


@dataclass(frozen=True)
class CompactConfig:
    channels: int = 3
    width: int = 64
    blocks: int = 16  # convolutions between the first and the last
    scale: int = 4


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> RrdbConfig:
    width, taken, *_ = shapes["conv_first.weight"]
    channels = shapes["conv_last.weight"][0]
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("body.")})
    doublings = len([name for name in shapes if name.startswith("conv_up") and name.endswith(".weight")])
    growth = shapes["body.0.rdb1.conv1.weight"][0]
    unshuffle = math.isqrt(taken // channels)
    if 2**doublings not in [unshuffle * scale for scale in SCALES]:
        raise ValueError(f"a scale of 2^{doublings} / {unshuffle}, where {SCALES} are known,")
    return RrdbConfig(channels, width, growth, blocks, doublings, unshuffle)


def compact_config_of(shapes: Mapping[str, tuple[int, ...]]) -> CompactConfig:
    width, channels, *_ = shapes["body.0.weight"]
    last = max(int(name.split(".")[1]) for name in shapes)
    scale = math.isqrt(shapes[f"body.{last}.weight"][0] // channels)
    if not 1 <= scale <= SCALES[-1]:
        raise ValueError(f"a scale of {scale}, where 1 to {SCALES[-1]} are known,")
    return CompactConfig(channels, width, last // 2 - 1, scale)


class DenseBlock(nn.Module):
    """Five convolutions, each told what came in and what all before it made."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (conv3(width + i * growth, growth) for i in range(4))
        self.conv5 = conv3(width + 4 * growth, width)

    def forward(self, x: Tensor) -> Tensor:
        made = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            made = torch.cat([made, F.leaky_relu(conv(made), SLOPE)], dim=1)  # B D+iG h w
        return x + RESIDUE * self.conv5(made)  # B D h w


class Rrdb(nn.Module):
    """Residual in residual: three dense blocks."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUE * self.rdb3(self.rdb2(self.rdb1(x)))


class RrdbNet(nn.Module):
    def __init__(self, config: RrdbConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_first = conv3(config.channels * config.unshuffle**2, width)
        self.body = nn.Sequential(*(Rrdb(width, config.growth) for _ in range(config.blocks)))
        self.conv_body = conv3(width, width)
        for i in range(config.doublings):
            self.add_module(f"conv_up{i + 1}", conv3(width, width))
        self.conv_hr = conv3(width, width)
        self.conv_last = conv3(width, config.channels)

    @property
    def scale(self) -> float:
        """How many times its picture is larger: 1, 2, 4, 8."""
        return 2**self.config.doublings / self.config.unshuffle

    def forward(self, x: Tensor) -> Tensor:
        """B 3 H W to B 3 sH sW; H and W are multiples of `config.unshuffle`."""
        x = self.conv_first(F.pixel_unshuffle(x, self.config.unshuffle))  # B D h w
        x = x + self.conv_body(self.body(x))
        for i in range(self.config.doublings):
            up = self.get_submodule(f"conv_up{i + 1}")
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), SLOPE)  # B D 2h 2w
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))  # B 3 sH sW


class CompactNet(nn.Module):
    """Real-ESRGAN's small network (for video and anime): a chain of convolutions that corrects repeated pixels."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        width, made = config.width, config.channels * config.scale**2
        self.body = nn.Sequential(conv3(config.channels, width), nn.PReLU(width))
        for _ in range(config.blocks):
            self.body.extend([conv3(width, width), nn.PReLU(width)])
        self.body.append(conv3(width, made))

    @property
    def scale(self) -> float:
        return float(self.config.scale)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.body(x), self.config.scale)  # B 3 sH sW
        return y + F.interpolate(x, scale_factor=float(self.config.scale), mode="nearest")

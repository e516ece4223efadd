"""T2I-Adapter (Mou et al. 2023, arXiv 2302.08453), full, light and for SDXL, with the names of the original files.

It reads a picture once, not at every step, and gives one map of features a level of the UNet (section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from limner.types import Tensors


@dataclass(frozen=True)
class T2iAdapterConfig:
    picture: int = 3  # channels of the picture: 1 for sketches and edges
    factor: int = 8  # pixels a side of what one feature sees at first; 16 in SDXL's
    widths: tuple[int, ...] = (320, 640, 1280, 1280)  # of the features, a level each
    blocks: int = 2  # a level
    light: bool = False  # narrow blocks between two 1x1 convolutions, no first convolution

    @property
    def halves(self) -> tuple[bool, ...]:
        """Whether each level halves the sides; SDXL's does so once, for its UNet has features of two sizes."""
        levels = range(len(self.widths))
        return tuple(level == 2 if self.factor == 16 else level > 0 for level in levels)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> T2iAdapterConfig:
    """What names and shapes say of an adapter; where all levels are equally wide, two blocks a level are assumed."""
    light = "body.0.out_conv.weight" in shapes
    count = len({name.split(".")[1] for name in shapes if name.startswith("body.")})
    inputs = shapes["body.0.in_conv.weight" if light else "conv_in.weight"][1]
    factor = 16 if inputs in (16**2, 3 * 16**2) else 8
    if light:
        blocks = len({name.split(".")[3] for name in shapes if name.startswith("body.0.body.")})
        widths = tuple(shapes[f"body.{i}.out_conv.weight"][0] for i in range(count))
    else:
        blocks = next((i for i in range(count) if f"body.{i}.in_conv.weight" in shapes), 2)
        widths = tuple(shapes[f"body.{i}.block1.weight"][0] for i in range(0, count, blocks))
    return T2iAdapterConfig(inputs // factor**2, factor, widths, blocks, light)


class Block(nn.Module):
    """x + conv(relu(conv(x))), before it the halving and the widening of a level's first block."""

    def __init__(self, channels: int, out: int, halve: bool = False, kernel: int = 1) -> None:
        super().__init__()
        self.halve = halve
        self.in_conv = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.block1 = nn.Conv2d(out, out, 3, padding=1)
        self.block2 = nn.Conv2d(out, out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(halved(x) if self.halve else x)  # B D h w
        return x + self.block2(F.relu(self.block1(x)))


class Extractor(nn.Module):
    """A level of the light kind: blocks of a quarter of the width."""

    def __init__(self, channels: int, out: int, blocks: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.in_conv = nn.Conv2d(channels, out // 4, 1)
        self.body = nn.Sequential(*(Block(out // 4, out // 4, kernel=3) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(out // 4, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(halved(x) if self.halve else x)))


def halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True)  # odd sides round up, as the UNet's do


class T2iAdapter(nn.Module):
    def __init__(self, config: T2iAdapterConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.picture * config.factor**2
        if not config.light:
            self.conv_in = nn.Conv2d(channels, config.widths[0], 3, padding=1)
            channels = config.widths[0]
        body: list[nn.Module] = []
        for width, halve in zip(config.widths, config.halves, strict=True):
            if config.light:
                body.append(Extractor(channels, width, config.blocks, halve))
            else:
                body += [Block(channels, width, halve), *(Block(width, width) for _ in range(config.blocks - 1))]
            channels = width
        self.body = nn.ModuleList(body)

    def forward(self, picture: Tensor) -> Tensors:
        """B 3 H W, or B 1 H W, in [0, 1] to what cond.hints takes, B C h w each."""
        factor = self.config.factor
        h, w = picture.shape[2:]
        y = F.pad(picture, (0, -w % factor, 0, -h % factor), mode="replicate")
        y = F.pixel_unshuffle(y, factor)  # B 3*factor^2 h w
        y = y if self.config.light else self.conv_in(y)
        levels, step = [], 1 if self.config.light else self.config.blocks
        for i, block in enumerate(self.body):
            y = block(y)  # B D h w
            if i % step == step - 1:
                levels.append(y)
        return tuple(levels)

"""The eye: pictures and texts to one space, where what belongs together lies together.

A small residual network on RGBA beside a projection of frozen text states, trained contrastively (CLIP, Radford et
al. 2021, arXiv 2103.00020). It reranks, describes and searches; another one of its kind, trained apart, judges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.conv import Down, ResBlock, conv3


@dataclass(frozen=True)
class EyeConfig:
    pixels: int = 64  # side that pictures are reduced to
    widths: tuple[int, ...] = (32, 64, 128, 256)  # at a half, a quarter, an eighth and a sixteenth of that side
    blocks: tuple[int, ...] = (1, 1, 2, 1)
    text: int = 384  # width of the pooled text states
    space: int = 192  # width of the common space
    styles: int = 8


class Eye(nn.Module):
    def __init__(self, config: EyeConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = nn.Sequential(nn.PixelUnshuffle(2), conv3(16, config.widths[0]))
        for i, (width, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            self.trunk.extend(ResBlock(width) for _ in range(count))
            if i + 1 < len(config.widths):
                self.trunk.append(Down(width, config.widths[i + 1]))
        last = config.widths[-1] * (config.pixels >> len(config.widths)) ** 2  # each width stands at half the last side
        self.picture_out = nn.Linear(last, config.space)
        self.text_out = nn.Linear(config.text, config.space)
        self.style_out = nn.Linear(last, config.styles)
        self.scale = nn.Parameter(torch.tensor(2.7))  # log of the inverse temperature

    def features(self, pictures: Tensor) -> Tensor:
        """B 4 H W in [0, 1], premultiplied, to B F."""
        side = self.config.pixels
        small = pictures if pictures.shape[-2:] == (side, side) else F.adaptive_avg_pool2d(pictures, side)
        return F.layer_norm(F.silu(self.trunk(small * 2 - 1)).flatten(1).float(), [self.picture_out.in_features])

    def see(self, pictures: Tensor) -> Tensor:
        """B 4 H W to unit vectors B S."""
        return F.normalize(self.picture_out(self.features(pictures)).float(), dim=1)

    def read(self, pooled: Tensor) -> Tensor:
        """Pooled text states B P to unit vectors B S."""
        return F.normalize(self.text_out(F.layer_norm(pooled, pooled.shape[-1:])).float(), dim=1)

"""ControlNet (Zhang et al. 2023, arXiv 2302.05543) for the UNets, with the names of the original checkpoints.

A second trunk of the UNet sees a picture beside x; what its steps and its middle give, each through a convolution that
began at zero, is added to what the UNet keeps on its way down and to its middle (figure 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, repeat

from torch import Tensor, nn

from limner.models.unet import Told, Trunk, UnetConfig, trunk_of
from limner.types import Cond, Tensors


@dataclass(frozen=True)
class ControlNetConfig(UnetConfig):
    out: int = 0  # a trunk ends in its middle
    picture: int = 3  # channels of the picture that is seen
    hint: tuple[int, ...] = (
        16,
        32,
        96,
        256,
    )  # channels on its way to the latents' size; each next one halves the sides


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> ControlNetConfig:
    """What names and shapes say; the number of heads goes with the projections, as in the UNet."""
    seen = [shapes[f"input_hint_block.{i}.weight"] for i in range(0, 64, 2) if f"input_hint_block.{i}.weight" in shapes]
    widths = tuple(shape[0] for shape in seen[:-1:2])  # the first and every widening; the last goes to the UNet's width
    return ControlNetConfig(**vars(trunk_of(shapes)), picture=seen[0][1], hint=widths)


class ControlNet(Trunk):
    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = [nn.Conv2d(config.picture, config.hint[0], 3, padding=1), nn.SiLU()]
        for width, wider in pairwise(config.hint):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers, nn.Conv2d(config.hint[-1], config.width, 3, padding=1))
        self.zero_convs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1)) for width in self.kept)
        self.middle_block_out = nn.Sequential(nn.Conv2d(self.kept[-1], self.kept[-1], 1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond, hint: Tensor) -> Tensors:
        """x, t and cond as the UNet's; hint: B 3 8h 8w in [0, 1]. Gives what cond.control takes, B C h w each.

        Of cond only words, pooled text and sizes are told; x comes without what an inpainting UNet has beside it.
        """
        if x.shape[1] != self.config.channels:
            raise ValueError(f"this ControlNet takes {self.config.channels} channels, not {x.shape[1]}")
        seen = self.input_hint_block(hint)  # B D h w
        kept, y = self.down(x, Told(self.told(t, cond), cond.tokens), repeat(()), first=seen)
        sides = [zero(k) for zero, k in zip(self.zero_convs, kept, strict=True)]
        return *sides, self.middle_block_out(y)

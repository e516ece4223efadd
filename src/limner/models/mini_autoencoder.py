"""The mini autoencoder: RGBA pictures with premultiplied colour to latents of an eighth of their side, and back.

Convolutions only, no norms and no attention, so it takes any size; shaped after TAESD (Bohan 2023) with the
weightless shortcuts of DC-AE (arXiv 2410.10733). `encode` gives latents of mean 0 and deviation 1 per channel over
the training pictures: the two vectors that do this travel inside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.conv import Down, ResBlock, Up, conv3


@dataclass(frozen=True)
class MiniAutoencoderConfig:
    channels: int = 8  # of the latents
    encoder: tuple[int, ...] = (48, 96, 192)  # widths at a half, a quarter and an eighth of the side
    encoder_blocks: tuple[int, ...] = (1, 2, 3)
    decoder: tuple[int, ...] = (192, 112, 64)  # widths at an eighth, a quarter and a half of the side
    decoder_blocks: tuple[int, ...] = (3, 3, 2)


class MiniAutoencoder(nn.Module):
    factor = 8

    def __init__(self, config: MiniAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths, blocks = config.encoder, config.encoder_blocks
        self.encoder = nn.Sequential(nn.PixelUnshuffle(2), conv3(16, widths[0]))
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.encoder.extend(ResBlock(width) for _ in range(count))
            if i + 1 < len(widths):
                self.encoder.append(Down(width, widths[i + 1]))
        self.encoder.append(conv3(widths[-1], config.channels))

        widths, blocks = config.decoder, config.decoder_blocks
        self.decoder = nn.Sequential(conv3(config.channels, widths[0]))
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.decoder.extend(ResBlock(width) for _ in range(count))
            if i + 1 < len(widths):
                self.decoder.append(Up(width, widths[i + 1]))
        self.decoder.extend([nn.SiLU(), conv3(widths[-1], 16), nn.PixelShuffle(2)])

        self.register_buffer("mean", torch.zeros(config.channels))
        self.register_buffer("std", torch.ones(config.channels))
        self.mean: Tensor
        self.std: Tensor

    def encode_raw(self, picture: Tensor) -> Tensor:
        """B 4 H W in [0, 1] to B C h w, before normalisation; bounded softly to [-3, 3]."""
        z = self.encoder(picture * 2 - 1)  # B C h w
        return 3 * torch.tanh(z / 3)

    def encode(self, picture: Tensor) -> Tensor:
        """B 4 H W in [0, 1], premultiplied, to B C h w of mean 0 and deviation 1 per channel."""
        return (self.encode_raw(picture).float() - self.mean[:, None, None]) / self.std[:, None, None]

    def decode_raw(self, z: Tensor) -> Tensor:
        """B C h w to B 4 H W, about [0, 1] but not clamped."""
        return self.decoder(3 * torch.tanh(z / 3)) * 0.5 + 0.5

    def decode(self, z: Tensor) -> Tensor:
        """B C h w to B 4 H W in [0, 1], premultiplied: no colour exceeds its alpha."""
        picture = self.decode_raw(z * self.std[:, None, None] + self.mean[:, None, None]).float()
        alpha = picture[:, 3:].clamp(0, 1)
        alpha = alpha * (alpha * 255 / 4 - 1).clamp(0, 1)  # no haze around the figure: from 8 to 4 of 255 it fades to 0
        return torch.cat([torch.minimum(picture[:, :3].clamp(min=0), alpha), alpha], dim=1)


def laplacian(x: Tensor, levels: int) -> list[Tensor]:
    """The details of x at `levels` scales, finest first, then what is left."""
    bands = []
    for _ in range(levels):
        small = F.avg_pool2d(x, 2)
        bands.append(x - F.interpolate(small, scale_factor=2, mode="nearest"))
        x = small
    return [*bands, x]

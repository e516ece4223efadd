"""TAESD, the tiny autoencoder for Stable Diffusion (Bohan 2023, github.com/madebyollin/taesd), named as in diffusers.

Its latents are those that the denoiser knows: scale and shift of the large autoencoder are learned in, so previews
take x0 as it stands. Convolutions only, so it takes any size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TinyVAEConfig:
    channels: int = 4  # of the latents; 16 for SD3
    width: int = 64  # of every layer
    blocks: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks of the encoder at each scale; the decoder mirrors them
    halves: tuple[str, ...] = ("encoder", "decoder")  # the original files hold one each


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> TinyVAEConfig:
    """What names and shapes say of a tiny autoencoder: blocks stand between plain convolutions."""
    halves = tuple(half for half in ("encoder", "decoder") if f"{half}.layers.0.weight" in shapes)
    weights = [name.split(".") for name in shapes if name.startswith(f"{halves[0]}.layers.") and name[-6:] == "weight"]
    blocks: list[int] = []
    layers = sorted({(int(part[2]), len(part) == 4) for part in weights})
    for _, plain in layers:
        if plain:
            blocks.append(0)
        else:
            blocks[-1] += 1
    first, last = shapes[f"{halves[0]}.layers.0.weight"], shapes[f"{halves[0]}.layers.{layers[-1][0]}.weight"]
    channels = last[0] if halves[0] == "encoder" else first[1]
    order = blocks[:-1] if halves[0] == "encoder" else blocks[-2::-1]  # none behind the last convolution
    return TinyVAEConfig(channels, first[0], tuple(order), halves)


def conv(channels: int, out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=bias)


class Block(nn.Module):
    """relu(x + conv(relu(conv(relu(conv(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + x).relu()  # B 64 h w


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TinyVAE(nn.Module):
    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        width, first, *rest = config.width, *config.blocks
        down: list[nn.Module] = [conv(3, width), *(Block(width) for _ in range(first))]
        up: list[nn.Module] = [*(Block(width) for _ in range(first)), conv(width, 3)]
        for count in rest:
            down += [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(count))]
            steps = [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
            up = [*(Block(width) for _ in range(count)), *steps, *up]
        if "encoder" in config.halves:
            self.encoder = Layers(*down, conv(width, config.channels))
        if "decoder" in config.halves:
            self.decoder = Layers(conv(config.channels, width), nn.ReLU(), *up)

    def encode(self, picture: Tensor) -> Tensor:
        """B 3 H W in [0, 1] to latents B C h w, fp32."""
        return self.encoder(picture).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Latents B C h w, bounded softly to [-3, 3], to B 3 H W, fp32: about [0, 1] but not clamped."""
        return self.decoder(torch.tanh(latent / 3) * 3).float()

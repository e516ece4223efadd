"""The autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752), with its first checkpoint's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.attention import attend
from limner.nn.upsample import Upsample


@dataclass(frozen=True)
class VaeConfig:
    channels: int = 4  # C of the latents
    width: int = 128  # of the first level
    multiples: tuple[int, ...] = (1, 2, 4, 4)  # of the width, a level each; every level but the last halves the sides
    blocks: int = 2  # a level; the decoder has one more
    quant: bool = True  # 1x1 convolutions around the latents; SD3 has none
    groups: int = 32  # of the norms


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> VaeConfig:
    """What names and shapes say of an autoencoder."""
    width = shapes["encoder.conv_in.weight"][0]
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
    tops = [shapes[f"encoder.down.{i}.block.0.conv2.weight"][0] // width for i in range(levels)]
    blocks = len({name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")})
    channels = shapes["decoder.conv_in.weight"][1]
    return VaeConfig(channels, width, tuple(tops), blocks, "quant_conv.weight" in shapes, min(32, width))


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x), inplace=True))  # B C' h w
        y = self.conv2(F.silu(self.norm2(y), inplace=True))
        y += self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return y


class AttnBlock(nn.Module):
    """Every place attends to every other, in one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)  # B C h w
        q, k, v = (layer(y).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # B 1 T C
        y = attend(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])  # B C h w
        return x + self.proj_out(y)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # B C h/2 w/2


def _middle(channels: int, groups: int) -> nn.ModuleDict:
    block = ResnetBlock(channels, channels, groups)
    return nn.ModuleDict(
        {"block_1": block, "attn_1": AttnBlock(channels, groups), "block_2": ResnetBlock(channels, channels, groups)}
    )


def _level(channels: int, out: int, blocks: int, groups: int) -> nn.ModuleDict:
    first = [ResnetBlock(channels, out, groups)]
    return nn.ModuleDict({"block": nn.ModuleList(first + [ResnetBlock(out, out, groups) for _ in range(blocks - 1)])})


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multiples]
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList(
            _level(before, width, config.blocks, config.groups)
            for before, width in zip([config.width, *widths], widths, strict=False)
        )
        for level, width in list(zip(self.down, widths, strict=True))[:-1]:
            level["downsample"] = Downsample(width)  # type: ignore[operator]
        self.mid = _middle(widths[-1], config.groups)
        self.norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)  # B width H W
        for level in self.down:
            for layer in (*level["block"], *([level["downsample"]] if "downsample" in level else [])):  # type: ignore
                x = layer(x)
        for layer in self.mid.values():
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # B 2C h w


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multiples]
        self.conv_in = nn.Conv2d(config.channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], config.groups)
        self.up = nn.ModuleList(
            _level(before, width, config.blocks + 1, config.groups)
            for before, width in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        for level, width in list(zip(self.up, widths, strict=True))[1:]:
            level["upsample"] = Upsample(width)  # type: ignore[operator]
        self.norm_out = nn.GroupNorm(config.groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)  # B 4*width h w
        for layer in self.mid.values():
            x = layer(x)
        for level in reversed(self.up):
            for layer in (*level["block"], *([level["upsample"]] if "upsample" in level else [])):  # type: ignore
                x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # B 3 H W


class Vae(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.quant:
            self.quant_conv = nn.Conv2d(2 * config.channels, 2 * config.channels, 1)
            self.post_quant_conv = nn.Conv2d(config.channels, config.channels, 1)

    def encode(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """B 3 H W in [-1, 1] to mean and logarithm of the variance of the latents, B C h w each, unscaled."""
        moments = self.encoder(picture)
        moments = self.quant_conv(moments) if self.config.quant else moments
        mean, log = moments.float().chunk(2, dim=1)
        return mean, log.clamp(-30, 20)

    def decode(self, latent: Tensor) -> Tensor:
        """B C h w, unscaled, to B 3 H W of about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latent) if self.config.quant else latent).float()

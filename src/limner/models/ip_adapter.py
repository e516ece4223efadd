"""IP-Adapter: a picture as a prompt (Ye et al. 2023, arXiv 2308.06721), in the names of the published files.

`image_proj` makes a few tokens of what CLIP's image tower gives; `ip_adapter` holds, for every cross-attention of a
UNet, a second key and value that read these tokens (equation 5). Three kinds of projection are published:
    plain  the picture's vector, by one linear layer: 4 tokens
    plus   the states before the tower's last layer, by a resampler (Alayrac et al. 2022, arXiv 2204.14198): 16 tokens
    full   the same states, each by a small perceptron: 257 tokens (faces)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from limner.errors import BadInput, BadWeights
from limner.models.unet import UnetConfig
from limner.nn.attention import attend, join_heads, split_heads

HEAD = 64  # width of a head of the resampler, in every published file


@dataclass(frozen=True)
class IpAdapterConfig:
    kind: Literal["plain", "plus", "full"]
    seen: int  # width of the vector, or of the states, that it is given
    context: int  # width of the tokens
    tokens: int  # how many it makes; of the full kind: as many as there are states
    runs: tuple[tuple[int, int], ...]  # width and number of the UNet's cross-attentions, as they lie in the file
    width: int = 0  # of the resampler
    layers: int = 0
    heads: int = 0

    @property
    def widths(self) -> list[int]:
        return [width for width, count in self.runs for _ in range(count)]


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> IpAdapterConfig:
    """What names and shapes say. Those that need the vectors of a face recogniser (FaceID) are refused."""
    if {"image_proj.norm.weight", "image_proj.proj.0.weight"} <= shapes.keys() or any("_lora." in n for n in shapes):
        raise BadWeights("this IP-Adapter (FaceID) needs the vectors of a face recogniser, which are not made here")
    numbers = sorted(int(name.split(".")[1]) for name in shapes if name.endswith(".to_k_ip.weight"))
    widths = [shapes[f"ip_adapter.{i}.to_k_ip.weight"][0] for i in numbers]
    context = shapes[f"ip_adapter.{numbers[0]}.to_k_ip.weight"][1]
    runs = tuple((width, len(list(run))) for width, run in groupby(widths))
    if "image_proj.proj.weight" in shapes:
        rows, seen = shapes["image_proj.proj.weight"]
        return IpAdapterConfig("plain", seen, context, rows // context, runs)
    if "image_proj.proj.3.weight" in shapes:
        return IpAdapterConfig("full", shapes["image_proj.proj.0.weight"][1], context, 0, runs)
    _, tokens, width = shapes["image_proj.latents"]
    layers = len({name.split(".")[2] for name in shapes if name.startswith("image_proj.layers.")})
    heads = shapes["image_proj.layers.0.0.to_q.weight"][0] // HEAD
    return IpAdapterConfig("plus", shapes["image_proj.proj_in.weight"][1], context, tokens, runs, width, layers, heads)


class LinearProjection(nn.Module):
    def __init__(self, config: IpAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = nn.Linear(config.seen, config.tokens * config.context)
        self.norm = nn.LayerNorm(config.context)

    def forward(self, vector: Tensor) -> Tensor:
        return self.norm(self.proj(vector).unflatten(1, (self.tokens, -1)))  # B N D


class FullProjection(nn.Module):
    def __init__(self, config: IpAdapterConfig) -> None:
        super().__init__()
        first, last = nn.Linear(config.seen, config.seen), nn.Linear(config.seen, config.context)
        self.proj = nn.Sequential(first, nn.GELU(), last, nn.LayerNorm(config.context))

    def forward(self, states: Tensor) -> Tensor:
        return self.proj(states)  # B N D


class PerceiverAttention(nn.Module):
    """Latents that ask the states and one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.norm1(x), self.norm2(latents)  # B T D, B N D
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=2)  # B T+N D each
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(latents), k, v))  # B K N|T+N E
        return self.to_out(join_heads(attend(q, k, v)))  # B N D


class Resampler(nn.Module):
    def __init__(self, config: IpAdapterConfig) -> None:
        super().__init__()
        width = config.width
        self.latents = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.proj_in = nn.Linear(config.seen, width)
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            first, last = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
            feed = nn.Sequential(nn.LayerNorm(width), first, nn.GELU(), last)
            self.layers.append(nn.ModuleList([PerceiverAttention(width, config.heads), feed]))
        self.proj_out = nn.Linear(width, config.context)
        self.norm_out = nn.LayerNorm(config.context)

    def forward(self, states: Tensor) -> Tensor:
        x, latents = self.proj_in(states), self.latents.expand(len(states), -1, -1)  # B T D, B N D
        for layer in self.layers:
            latents = latents + layer[0](x, latents)  # type: ignore[index]
            latents = latents + layer[1](latents)  # type: ignore[index]
        return self.norm_out(self.proj_out(latents))  # B N D


PROJECTIONS = {"plain": LinearProjection, "plus": Resampler, "full": FullProjection}


class IpAdapter(nn.Module):
    def __init__(self, config: IpAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = PROJECTIONS[config.kind](config)
        self.ip_adapter = nn.ModuleDict()
        for i, width in enumerate(config.widths):
            pair = {name: nn.Linear(config.context, width, bias=False) for name in ("to_k_ip", "to_v_ip")}
            self.ip_adapter[str(2 * i + 1)] = nn.ModuleDict(pair)  # even numbers are self-attentions, without weights

    def tokens(self, seen: Tensor) -> Tensor:
        """What CLIP's image tower gives, the vector B P (plain) or the states B T D, to tokens B N D."""
        return self.image_proj(seen)

    def keys_and_values(self, tokens: Tensor, unet: UnetConfig, strength: float = 1.0) -> tuple[Tensor, ...]:
        """Key, value, key, value ... of each cross-attention as a UNet walks, B N D each; values carry the strength."""
        pairs = [(pair["to_k_ip"], pair["to_v_ip"]) for pair in self.ip_adapter.values()]  # type: ignore[index]
        walked = [pairs[i] for i in self.order_in(unet)]
        return tuple(made for key, value in walked for made in (key(tokens), strength * value(tokens)))

    def order_in(self, unet: UnetConfig) -> list[int]:
        """Which pair serves each cross-attention as a UNet walks; BadInput where it was made for another UNet."""
        ours, order, theirs = self.config, walking_order(unet), widths_of(unet)
        if ours.context != unet.context:
            raise BadInput(
                f"this IP-Adapter is made for a UNet of context {ours.context}, the model's has {unet.context}"
            )
        if len(order) != len(ours.widths) or [ours.widths[i] for i in order] != theirs:
            raise BadInput(
                f"this IP-Adapter is made for a UNet with {len(ours.widths)} cross-attentions of widths "
                f"{sorted(set(ours.widths))}, the model's has {len(theirs)} of {sorted(set(theirs))}"
            )
        return order


def walking_order(unet: UnetConfig) -> list[int]:
    """Where in a file each cross-attention lies that a UNet walks through: files keep the middle last."""
    down, up = unet.blocks * sum(unet.depths), (unet.blocks + 1) * sum(unet.depths)
    return [*range(down), *range(down + up, down + up + unet.middle), *range(down, down + up)]


def widths_of(unet: UnetConfig) -> list[int]:
    """The width of each cross-attention, as the UNet walks."""
    levels = [(unet.width * multiple, depth) for multiple, depth in zip(unet.multiples, unet.depths, strict=True)]
    down = [width for width, depth in levels for _ in range(unet.blocks * depth)]
    up = [width for width, depth in reversed(levels) for _ in range((unet.blocks + 1) * depth)]
    return [*down, *[levels[-1][0]] * unet.middle, *up]

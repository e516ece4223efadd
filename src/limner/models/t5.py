"""The encoder of T5 v1.1 (Raffel et al. 2019, arXiv 1910.10683), SD3's third text encoder, named as in transformers.

Its norms only scale, its attention does not divide by the root of the width, and it knows places by a bias on the
scores alone, which the first block holds for all (section 2.1). The feed-forward is gated (Shazeer 2020, arXiv
2002.05202).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.attention import attend, join_heads, split_heads
from limner.nn.norm import RMSNorm

FARTHEST = 128  # tokens; all distances from here on share a bucket


@dataclass(frozen=True)
class T5Config:
    vocabulary: int = 32128
    width: int = 4096
    layers: int = 24
    heads: int = 64
    head: int = 64  # width of a head; heads together may be wider than the states
    hidden: int = 10240  # of the feed-forward
    buckets: int = 32  # of distances: half look back, half ahead


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> T5Config:
    """What names and shapes say of an encoder."""
    first = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shapes[f"{first}.relative_attention_bias.weight"]
    layers = len({name.split(".")[2] for name in shapes if name.startswith("encoder.block.")})
    hidden = shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0]
    vocabulary, width = shapes["shared.weight"]
    return T5Config(vocabulary, width, layers, heads, shapes[f"{first}.q.weight"][0] // heads, hidden, buckets)


def bucket(offset: Tensor, buckets: int) -> Tensor:
    """The bucket of key place minus query place: near ones have one each, farther ones share by their logarithm."""
    half = buckets // 2
    near, distance = half // 2, offset.abs()
    far = (distance.float().clamp(min=1) / near).log() / math.log(FARTHEST / near) * (half - near)
    far = (near + far.long()).clamp(max=half - 1)
    return torch.where(distance < near, distance, far) + half * (offset > 0)


class SelfAttention(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head
        self.q, self.k, self.v = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.buckets, config.heads)

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))  # B K L E
        return self.o(join_heads(attend(q, k, v, mask, bias, scale=1.0)))  # B L D


class FeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.width, config.hidden, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))  # B L D


class Block(nn.Module):
    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        parts = {"SelfAttention": SelfAttention(config, first)}, {"DenseReluDense": FeedForward(config)}
        self.layer = nn.ModuleList(nn.ModuleDict({**part, "layer_norm": RMSNorm(config.width)}) for part in parts)

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor) -> Tensor:
        words, each = self.layer
        x = x + words["SelfAttention"](words["layer_norm"](x), mask, bias)  # type: ignore[index]
        return x + each["DenseReluDense"](each["layer_norm"](x))  # type: ignore[index]


class T5(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocabulary, config.width)
        blocks = nn.ModuleList(Block(config, first=i == 0) for i in range(config.layers))
        self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": RMSNorm(config.width)})

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids: B L, int64; mask: B L, True where a token stands; SD3 gives none. Gives the states: B L D, fp32."""
        blocks, place = self.encoder["block"], torch.arange(ids.shape[1], device=ids.device)
        table = blocks[0].layer[0]["SelfAttention"].relative_attention_bias  # type: ignore[index]
        bias = table(bucket(place - place[:, None], self.config.buckets)).permute(2, 0, 1)[None].float()  # 1 K L L
        x = self.shared(ids).float()  # B L D
        for block in blocks:  # type: ignore[attr-defined]
            x = block(x, mask, bias)
        return self.encoder["final_layer_norm"](x)

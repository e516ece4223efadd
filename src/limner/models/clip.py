"""CLIP's text tower (Radford et al. 2021, arXiv 2103.00020), as in Stable Diffusion 1 to 3.

Module names are those of the published text encoders. OpenCLIP's towers (ViT-H in SD2, bigG in SDXL) are the same
network with another activation; `weights/names/clip.py` knows their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.attention import attend, join_heads, split_heads


@dataclass(frozen=True)
class ClipConfig:
    vocabulary: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 77
    projection: int = 0  # width of the pooled vector; 0: none is made
    quick: bool = True  # x sigmoid(1.702 x), OpenAI's activation; OpenCLIP's is the exact GELU


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> ClipConfig:
    """What names and shapes say of a tower; the activation goes with the width, heads are always 64 wide."""
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    layers = len({name.split(".")[3] for name in shapes if name.startswith("text_model.encoder.layers.")})
    hidden = shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0]
    positions = shapes["text_model.embeddings.position_embedding.weight"][0]
    projection = shapes.get("text_projection.weight", (0,))[0]
    return ClipConfig(vocabulary, width, layers, max(1, width // 64), hidden, positions, projection, quick=width <= 768)


class SelfAttention(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))  # B K L E
        return self.out_proj(join_heads(attend(q, k, v, bias=bias)))  # B L D


class Mlp(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.quick = config.quick
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)  # B L M
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class Clip(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text_model = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(
                    {
                        "token_embedding": nn.Embedding(config.vocabulary, width),
                        "position_embedding": nn.Embedding(config.positions, width),
                    }
                ),
                "encoder": nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.layers))}),
                "final_layer_norm": nn.LayerNorm(width),
            }
        )
        self.text_projection = nn.Linear(width, config.projection, bias=False) if config.projection else None

    def embed(self, ids: Tensor) -> Tensor:
        """Token vectors without their places: B L -> B L D; textual inversion writes into them."""
        return self.text_model["embeddings"]["token_embedding"](ids)  # type: ignore[index]

    def forward(self, vectors: Tensor, ends: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The states after `layer` layers, not normed: B L D, and the pooled vector: B P (B D without a projection).

        vectors: B L D of `embed`; ends: B, where each text's first end token stands (its state, after every layer and
        the last norm, is what is pooled). layer: 1 .. config.layers.
        """
        if not 1 <= layer <= self.config.layers:
            raise ValueError(f"layer {layer} of a tower of {self.config.layers}")
        length = vectors.shape[1]
        x = vectors + self.text_model["embeddings"]["position_embedding"].weight[:length]  # type: ignore[index]
        bias = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)[None, None]
        states = x
        for i, each in enumerate(self.text_model["encoder"]["layers"]):  # type: ignore[index]
            x = each(x, bias)
            states = x if i + 1 == layer else states
        pooled = self.norm(x)[torch.arange(len(x), device=x.device), ends]  # B D
        return states.float(), (pooled if self.text_projection is None else self.text_projection(pooled)).float()

    def norm(self, states: Tensor) -> Tensor:
        """The last norm, which SD1 and SD2 lay over the layer they take and SDXL and SD3 do not."""
        return self.text_model["final_layer_norm"](states)

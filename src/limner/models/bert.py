"""BERT (Devlin et al. 2018, arXiv 1810.04805) as a text encoder, with the module names of the published checkpoints.

The teacher all-MiniLM-L6-v2 is this network with six layers; the mini family's own text encoder has two, and an
embedding of fewer columns with a projection (ALBERT, arXiv 1909.11942, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.attention import attend, join_heads, split_heads


@dataclass(frozen=True)
class BertConfig:
    vocabulary: int = 30522
    width: int = 384
    layers: int = 2
    heads: int = 12
    hidden: int = 1536
    positions: int = 64  # the longest text, in word pieces
    embedding: int = 128  # columns of the embedding; equal to the width: no projection


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.embedding)
        narrow = config.embedding != config.width
        self.projection = nn.Linear(config.embedding, config.width, bias=False) if narrow else None
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embeddings(ids)  # B L 128
        if self.projection is not None:
            x = self.projection(x)  # B L D
        x = x + self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        return self.LayerNorm(x)


class Layer(nn.Module):
    """One layer; the names inside are the checkpoints' own."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        norm_out = {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(projections), "output": nn.ModuleDict(norm_out)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.hidden)})
        norm_out = {"dense": nn.Linear(config.hidden, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        self.output = nn.ModuleDict(norm_out)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        own, after = self.attention["self"], self.attention["output"]
        q, k, v = (split_heads(own[name](x), self.heads) for name in ("query", "key", "value"))  # type: ignore[index]
        x = after["LayerNorm"](x + after["dense"](join_heads(attend(q, k, v, mask))))  # type: ignore[index]
        y = F.gelu(self.intermediate["dense"](x))  # B L M
        return self.output["LayerNorm"](x + self.output["dense"](y))  # B L D


class Bert(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.layers))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids: B L, int64; mask: B L, True where a piece stands. Gives the states: B L D, fp32."""
        x = self.embeddings(ids)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined]
            x = layer(x, mask)
        return x.float()


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states that stand (Sentence-BERT, arXiv 1908.10084, section 3): B L D -> B D."""
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def student_of(teacher: dict[str, Tensor], config: BertConfig, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """First weights for a smaller encoder: the teacher's chosen layers, and its embedding cut to rank by SVD."""
    own = {name: value.clone() for name, value in teacher.items() if name.startswith("embeddings.")}
    words = own.pop("embeddings.word_embeddings.weight").float()
    own["embeddings.position_embeddings.weight"] = own["embeddings.position_embeddings.weight"][: config.positions]
    own.pop("embeddings.position_ids", None)
    gram = words.T @ words  # D D: its eigenvectors are the right singular vectors
    basis = torch.linalg.eigh(gram).eigenvectors[:, -config.embedding :]  # D 128
    scale = (words @ basis).std()
    own["embeddings.word_embeddings.weight"] = words @ basis / scale
    own["embeddings.projection.weight"] = basis * scale
    for ours, theirs in enumerate(layers):
        mark = f"encoder.layer.{theirs}."
        found = {name: value for name, value in teacher.items() if name.startswith(mark)}
        own |= {f"encoder.layer.{ours}.{name[len(mark) :]}": value.clone() for name, value in found.items()}
    return own

"""The only place that attends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention: q is B K T E, k and v are B K S E, mask is B S with True where a key stands; gives B K T E.

    On the CPU plain products are 1.3 to 3 times faster than the fused kernel, forward and backward.
    """
    keep = None if mask is None else mask[:, None, None, :]  # B 1 1 S
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # B K T S
    if keep is not None:
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # B T D -> B K T E


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # B K T E -> B T D

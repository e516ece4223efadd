"""The only place that attends."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.place import fuses_attention

MOST_SCORES = 2**21  # that plain products hold at once, 4 MiB in bf16, which caches keep; more go by head and block
MOST_LEARNT = 2**26  # that they hold until gradients come back, 128 MiB in bf16
LANES = 16  # columns that oneDNN's products give at a time: 40 take them twice as long as 48
LINE = 32  # scores that a line of the caches holds in bf16: where each row of them begins on one, a tenth is saved


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention: q is B K T E, k and v are B K S E; gives B K T E.

    mask: B S, True where a key stands. bias: B|1 K|1 T S, added to the scores (a causal mask of -inf, T5's positions).
    scale: on the products; E ** -0.5 unless told.

    On the CPU the fused kernel is up to 3 times faster than plain products in fp32, and in bf16 1.5 to 2 times where
    there are AMX tiles; there, too, plain products are 1.5 to 5 times faster where gradients come back. Where there are
    none, plain products in bf16 are 2.3 to 2.8 times faster than it.
    """
    keep = None if mask is None else mask[:, None, None, :]  # B 1 1 S
    B, K, T, S = *q.shape[:3], k.shape[2]
    learns = q.dtype == torch.bfloat16 and q.requires_grad and B * K * T * S <= MOST_LEARNT
    if q.device.type != "cpu" or (fuses_attention(q.dtype) and not learns):
        if keep is not None and bias is not None:
            bias = bias.masked_fill(~keep, float("-inf"))
        added = keep if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    if learns or B * K * T * S <= MOST_SCORES:
        return _attend(q, k, v, keep, bias)
    rows, E, hidden = max(1, MOST_SCORES // S), v.shape[-1], 0
    if keep is None and bias is None:
        hidden = -S % LINE
        k = F.pad(k, (0, 0, 0, hidden))
    v = F.pad(v, (0, -E % LANES, 0, hidden))
    bias = None if bias is None else bias.expand(B, K, -1, -1)
    y = v.new_empty(B, T, K, E)  # as the layer behind it reads it
    for b, h, first in product(range(B), range(K), range(0, T, rows)):
        here = slice(first, first + rows)
        told = (None if keep is None else keep[b, 0], None if bias is None else bias[b, h, here])
        y[b, here, h] = _attend(q[b, h, here], k[b, h], v[b, h], *told, hidden)[:, :E]
    return y.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, bias: Tensor | None, hidden: int = 0) -> Tensor:
    """hidden: of the last keys, which are none."""
    scores = q @ k.transpose(-2, -1)  # ... T S
    if hidden:
        scores[..., -hidden:] = float("-inf")
    if bias is not None:
        scores = scores + bias
    if keep is not None:
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # B T D -> B K T E


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # B K T E -> B T D

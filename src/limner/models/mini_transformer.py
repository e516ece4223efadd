"""The mini denoiser: a transformer over latent patches and words, told the time, the phrase and the style.

After U-ViT (Bao et al. 2022, arXiv 2209.12152: words as tokens, long skips) and DiT (Peebles and Xie 2022,
arXiv 2212.09748: adaptive norms), with one modulation for all blocks plus a table each (PixArt-alpha, arXiv
2310.00426), normalised queries and keys, and a depthwise convolution in the feed-forward (SANA, arXiv 2410.10629).
It predicts x0 on the straight path from latents to noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.attention import attend, join_heads, split_heads
from limner.nn.embed import rotary_2d, rotate, timestep_embedding
from limner.types import Cond, Deep, again


@dataclass(frozen=True)
class MiniTransformerConfig:
    channels: int = 8  # of the latents
    patch: int = 2  # side of a patch, in latents
    width: int = 256
    depth: int = 8  # even: the second half takes long skips from the first
    heads: int = 2
    hidden: int = 704  # of the gated feed-forward
    text: int = 384  # width of the text states, tokens and pooled
    styles: int = 8  # named styles; index 0 is "any"
    dropout: float = 0.0  # in the feed-forward, while training


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202) with a depthwise 3x3 over the image tokens, starting as the identity."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.w_in = nn.Linear(width, 2 * hidden, bias=False)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.w_out = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.dirac_(self.conv.weight, groups=hidden)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        gate, value = self.w_in(x).chunk(2, dim=-1)  # B T+L M
        image, words = value[:, : h * w], value[:, h * w :]
        image = image.transpose(1, 2).unflatten(2, (h, w)).contiguous(memory_format=torch.channels_last)  # B M h w
        image = self.conv(image).flatten(2).transpose(1, 2)  # B T M
        return self.w_out(self.dropout(F.silu(gate) * torch.cat([image, words], dim=1)))  # B T+L D


class Block(nn.Module):
    def __init__(self, config: MiniTransformerConfig, skip: bool) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.skip = nn.Linear(2 * width, width, bias=False) if skip else None
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = nn.LayerNorm(width // config.heads, bias=False)
        self.k_norm = nn.LayerNorm(width // config.heads, bias=False)
        self.feed = FeedForward(width, config.hidden, config.dropout)
        self.table = nn.Parameter(torch.zeros(6, width))  # added to the shared modulation
        nn.init.constant_(self.table[2], 0.3)  # gates start ajar
        nn.init.constant_(self.table[5], 0.3)
        if self.skip is not None:  # the running stream passes, what was kept joins as it is learned
            with torch.no_grad():
                self.skip.weight.zero_().diagonal().fill_(1)  # [I, 0]; torch.eye on meta imports the compiler

    def forward(
        self,
        x: Tensor,
        kept: Tensor | None,
        mod: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor,
        h: int,
        w: int,
        alone: bool = False,
    ) -> Tensor:
        """alone: each token attends to itself and to no other."""
        if self.skip is not None and kept is not None:
            x = self.skip(torch.cat([x, kept], dim=-1))  # B T+L D
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (mod + self.table).to(x.dtype)[:, :, None].unbind(1)
        )  # B 1 D each
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(y).chunk(3, dim=-1))  # B K T+L E
        if not alone:
            q, k = self._turned(self.q_norm(q), turn), self._turned(self.k_norm(k), turn)
            v = attend(q.to(v.dtype), k.to(v.dtype), v, mask)
        x = x + gate1 * self.out(join_heads(v))
        y = F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2
        return x + gate2 * self.feed(y, h, w)

    @staticmethod
    def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        tokens = len(turn[0])  # words have no place on the grid
        return torch.cat([rotate(x[:, :, :tokens], *turn), x[:, :, tokens:]], dim=2)


class MiniTransformer(nn.Module):
    def __init__(self, config: MiniTransformerConfig) -> None:
        super().__init__()
        self.config = config
        if config.depth % 2 or config.width % (4 * config.heads):
            raise ValueError(f"depth {config.depth} must be even and width {config.width} a multiple of 4 x the heads")
        width, patch = config.width, config.channels * config.patch**2
        self.patch_in = nn.Linear(patch, width)
        self.time_in = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.words_in = nn.Sequential(nn.Linear(config.text, width), nn.SiLU(), nn.Linear(width, width))
        self.phrase_in = nn.Sequential(nn.Linear(config.text, width), nn.SiLU(), nn.Linear(width, width))
        self.style_in = nn.Embedding(config.styles + 1, width)
        self.modulation = nn.Linear(width, 6 * width)
        half = config.depth // 2
        self.blocks = nn.ModuleList(Block(config, skip=i >= half) for i in range(config.depth))
        self.last = nn.Linear(width, 2 * width)  # shift and scale before the head
        self.head = nn.Linear(width, patch)
        nn.init.normal_(self.style_in.weight, std=0.02)
        for layer in (self.modulation, self.last, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, deep: Deep | None = None, perturbed: bool = False) -> Tensor:
        """x: B C h w; t: B in [0, 1]; cond: tokens, pooled, mask and style. Gives x0: B C h w, fp32.

        x and t of fewer rows serve cond over and over.
        deep: asks all blocks but the first and the last, or carries over what they gave. perturbed: in the middle half
        of the blocks each token attends to itself alone, for perturbed-attention guidance.
        """
        if cond.pooled is None or cond.mask is None or cond.style is None:
            raise ValueError("the mini denoiser needs tokens, pooled, mask and style")
        p = self.config.patch
        h, w = x.shape[2] // p, x.shape[3] // p
        x, t = again(x, len(cond)), again(t, len(cond))
        image = F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)  # B T C*p*p
        image = self.patch_in(image)  # B T D
        words = self.words_in(F.layer_norm(cond.tokens, cond.tokens.shape[-1:]))  # B L D
        told = self.time_in(timestep_embedding(t * 1000, 256))  # B D
        told = told + self.phrase_in(F.layer_norm(cond.pooled, cond.pooled.shape[-1:])) + self.style_in(cond.style)
        told = F.silu(told)
        mod = self.modulation(told).unflatten(1, (6, -1))  # B 6 D
        y = torch.cat([image, words], dim=1)  # B T+L D
        mask = torch.cat([torch.ones_like(image[:, :, 0], dtype=torch.bool), cond.mask], dim=1)  # B T+L
        turn = rotary_2d(h, w, self.config.width // self.config.heads, x.device)
        first, *inside, last = self.blocks
        half, depth = len(inside) // 2, self.config.depth
        alone = [perturbed and depth // 4 <= i < depth - depth // 4 for i in range(depth)]
        outer = first(y, None, mod, turn, mask, h, w, alone[0])

        def inner() -> Tensor:
            y = outer
            kept: list[Tensor] = []
            for i, block in enumerate(inside):
                y = block(y, kept.pop() if i >= half else None, mod, turn, mask, h, w, alone[i + 1])
                if i < half:
                    kept.append(y)
            return y

        y = last(deep(inner) if deep else inner(), outer, mod, turn, mask, h, w, alone[-1])
        shift, scale = self.last(told)[:, None].chunk(2, dim=-1)  # B 1 D each
        y = F.layer_norm(y[:, : h * w], y.shape[-1:]) * (1 + scale) + shift
        y = self.head(y).float().transpose(1, 2).unflatten(2, (h, w))  # B C*p*p h/p w/p
        return F.pixel_shuffle(y, p)  # B C h w

"""The UNet of Stable Diffusion 1, 2 and XL (arXiv 2112.10752, 2307.01952), with the names of the original checkpoints.

Three lists of steps: `input_blocks` go down and are kept, `middle_block` turns, `output_blocks` come up, each joined
with what was kept. A step is a list of layers: a residual block told the time, a transformer told the words, a
resampling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor, nn

from limner.nn.attention import attend, join_heads, split_heads
from limner.nn.embed import timestep_embedding
from limner.nn.fused import GatedLinear
from limner.nn.upsample import FoldedUpsample, Upsample
from limner.types import Cond, Deep, Tensors, again

EDGE = 1  # steps at either end that are asked anew where the deep ones are carried over (as in arXiv 2312.00858)
MANY = 1024  # places above which `few` thins out what they attend to

Pair = tuple[Tensor, Tensor]  # a key and a value, B S D each
Seen = Iterator[tuple[Pair, ...]]  # for one cross-attention after another: a pair of each picture prompt


@dataclass(frozen=True)
class Told:
    """What every step is told."""

    time: Tensor  # B 4D: the time, and for SDXL pooled text and sizes
    words: Tensor  # B L D
    few: int = 1  # self-attention in large pictures sees every few-th row and column of keys and values
    alone: bool = False  # self-attention sees each place alone


@dataclass(frozen=True)
class UnetConfig:
    channels: int = 4  # of the input: 4 latents; 9 with mask and masked picture, 8 with a picture, 5 with a depth map
    out: int = 4
    width: int = 320  # of the first level
    multiples: tuple[int, ...] = (1, 2, 4, 4)  # of the width, a level each
    blocks: int = 2  # a level on the way down; one more on the way up
    depths: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks in each attention of a level; 0: no attention
    middle: int = 1  # transformer blocks in the middle; 0: a residual block alone
    context: int = 768  # width of the text states
    heads: int = 8  # in every attention; 0: as many as make heads 64 wide
    linear: bool = False  # projections around a transformer are linear and not 1x1 convolutions
    vector: int = 0  # width of the vector beside the time: pooled text and sizes (SDXL)
    guidance: int = 0  # width of the embedding of a guidance scale that is built in (LCM, arXiv 2310.04378)
    groups: int = 32  # of the norms


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> UnetConfig:
    """What names and shapes say of a UNet; the number of heads they leave open, and it goes with the projections."""
    return trunk_of(shapes, shapes["out.2.weight"][0])


def trunk_of(shapes: Mapping[str, tuple[int, ...]], out: int = 0) -> UnetConfig:
    """The same of the way down and the middle alone."""
    first = shapes["input_blocks.0.0.weight"]
    if first[0] % min(32, first[0]):
        raise ValueError(f"a width of {first[0]}, of which norms make no 32 groups,")
    steps = len({name.split(".")[1] for name in shapes if name.startswith("input_blocks.")})
    downs = [i for i in range(steps) if f"input_blocks.{i}.0.op.weight" in shapes]
    blocks = downs[0] - 1 if downs else steps - 1
    levels = [1 + i * (blocks + 1) for i in range(len(downs) + 1)]  # the first step of each
    tops = tuple(shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0] // first[0] for i in levels)
    depths = tuple(_depth(shapes, f"input_blocks.{i}.1") for i in levels)
    keys = [shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    return UnetConfig(
        first[1], out, first[0], tops, blocks, depths, _depth(shapes, "middle_block.1"),
        keys[0][1] if keys else 0, 0 if linear else 8, linear, shapes.get("label_emb.0.0.weight", (0, 0))[1],
        shapes.get("time_embed.cond_proj.weight", (0, 0))[1], min(32, first[0]),
    )  # fmt: skip


def _depth(shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    depth = 0
    while f"{where}.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


class ResBlock(nn.Module):
    def __init__(self, channels: int, out: int, told: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        y = self.in_layers(x) + again(self.emb_layers(told), len(x))[:, :, None, None]  # B C' h w
        return self.skip_connection(x) + self.out_layers(y)


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Identity())

    def forward(self, x: Tensor, context: Tensor, seen: Sequence[Pair] = (), alone: bool = False) -> Tensor:
        """seen: keys and values of picture prompts, attended to beside the context (arXiv 2308.06721, equation 5).

        alone: each place of x attends to itself and to nothing else.
        """
        if alone:
            return self.to_out(self.to_v(x))
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)  # B T D, B L D, B L D
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        y = attend(q, k, v)  # B K T E
        for k, v in seen:
            y = y + attend(q, split_heads(k.to(q.dtype), self.heads), split_heads(v.to(q.dtype), self.heads))
        return self.to_out(join_heads(y))  # B T D


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x: Tensor, words: Tensor, seen: Sequence[Pair] = (), places: Tensor | None = None, alone: bool = False
    ) -> Tensor:
        """places: of the T that x attends to in itself; None: all of them. alone: each of the T sees itself."""
        y = self.norm1(x)
        x = x + self.attn1(y, y if places is None else y[:, places], alone=alone)  # B T D
        x = again(x, len(words))
        x = x + self.attn2(self.norm2(x), words, seen)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, depth: int, config: UnetConfig) -> None:
        super().__init__()
        heads = config.heads or width // 64
        self.linear = config.linear
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if config.linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width, config.context, heads) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if config.linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, told: Told, seen: Seen) -> Tensor:
        places = thinned(x.shape[2], x.shape[3], told.few, x.device) if told.few > 1 else None
        y = self.norm(x)  # B D h w
        y = y if self.linear else self.proj_in(y)
        y = y.permute(0, 2, 3, 1).flatten(1, 2)  # B T D
        y = self.proj_in(y) if self.linear else y
        for block in self.transformer_blocks:
            y = block(y, told.words, next(seen), places, told.alone)
        y = self.proj_out(y) if self.linear else y
        y = y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # B D h w
        return again(x, len(y)) + (y if self.linear else self.proj_out(y))


def thinned(h: int, w: int, few: int, device: torch.device | None = None) -> Tensor:
    """The places of every few-th row and column (Smith et al. 2024, arXiv 2402.13573), or all where they are few."""
    every = torch.arange(h * w, device=device).view(h, w)
    return (every[::few, ::few] if h * w > MANY else every).flatten()


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # B C h/2 w/2


class Trunk(nn.Module):
    """The way down and the middle, which a UNet and its ControlNets have alike."""

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        self.config = config
        told = 4 * config.width
        self.time_embed = nn.Sequential(nn.Linear(config.width, told), nn.SiLU(), nn.Linear(told, told))
        if config.guidance:
            self.time_embed.cond_proj = nn.Linear(config.guidance, config.width, bias=False)
        if config.vector:
            inner = nn.Sequential(nn.Linear(config.vector, told), nn.SiLU(), nn.Linear(told, told))
            self.label_emb = nn.Sequential(inner)
        downs = [nn.ModuleList([nn.Conv2d(config.channels, config.width, 3, padding=1)])]
        self.kept = [config.width]  # channels of each step on the way down
        self.ends: list[int] = []  # the step of each level that an adapter's hint joins
        for i, (multiple, depth) in enumerate(zip(config.multiples, config.depths, strict=True)):
            width = config.width * multiple
            for _ in range(config.blocks):
                downs.append(self.step(self.kept[-1], width, depth))
                self.kept.append(width)
            self.ends.append(len(downs) - 1)
            if i < len(config.multiples) - 1:
                downs.append(nn.ModuleList([Downsample(width)]))
                self.kept.append(width)
                self.ends[-1] += depth == 0  # a level without attention is joined after its downsampling
        self.input_blocks = nn.ModuleList(downs)
        wide = self.kept[-1]
        last = [ResBlock(wide, wide, told, config.groups)] if config.middle else []
        self.middle_block = self.step(wide, wide, config.middle, *last)

    def step(self, channels: int, out: int, depth: int, *more: nn.Module) -> nn.ModuleList:
        """A residual block, a transformer where there is one, and what comes after."""
        layers: list[nn.Module] = [ResBlock(channels, out, 4 * self.config.width, self.config.groups)]
        return nn.ModuleList([*layers, *([SpatialTransformer(out, depth, self.config)] if depth else []), *more])

    def down(
        self, y: Tensor, told: Told, seen: Seen, first: Tensor | None = None, hints: Tensors = ()
    ) -> tuple[list[Tensor], Tensor]:
        """What each step on the way down gives, and the middle.

        first joins the first step (a ControlNet's picture); hints join the levels, and one more the middle.
        """
        joins = self.joins(hints) | ({} if first is None else {0: first})
        kept = self.descend(y, told, seen, range(len(self.input_blocks)), joins)
        return kept, self.middle(kept[-1], told, seen, hints)

    def joins(self, hints: Tensors) -> dict[int, Tensor]:
        return dict(zip(self.ends, hints, strict=False))

    def descend(self, y: Tensor, told: Told, seen: Seen, steps: range, joins: Mapping[int, Tensor]) -> list[Tensor]:
        """What each of these steps on the way down gives, with what joins it."""
        kept: list[Tensor] = []
        for i in steps:
            y = self.walk(self.input_blocks[i], y, told, seen)  # type: ignore[arg-type]
            y = again(y, len(joins[i])) + joins[i] if i in joins else y
            kept.append(y)
        return kept

    def middle(self, y: Tensor, told: Told, seen: Seen, hints: Tensors) -> Tensor:
        return sum(hints[len(self.ends) :], self.walk(self.middle_block, y, told, seen))

    def told(self, t: Tensor, cond: Cond) -> Tensor:
        """The time and, where they are built in, the guidance scale, the pooled text and the sizes: B 4D."""
        time = timestep_embedding(t, self.config.width)  # B D
        first, act, last = self.time_embed[0], self.time_embed[1], self.time_embed[2]
        if self.config.guidance:
            if cond.guidance is None:
                raise ValueError("this UNet needs a guidance scale")
            half = self.config.guidance // 2
            rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=time.device) / (half - 1))
            angles = 1000 * (cond.guidance - 1)[:, None] * rates  # B G/2
            scale = self.time_embed.cond_proj(torch.cat([angles.sin(), angles.cos()], dim=1))  # type: ignore
            time = again(time, len(scale)) + scale
        told = last(act(first(time)))
        return again(told, len(cond)) + self.label_emb(self.vector(cond)) if self.config.vector else told

    def vector(self, cond: Cond) -> Tensor:
        """Pooled text, then each of the sizes as 256 cosines and sines (arXiv 2307.01952, section 2.2): B V."""
        if cond.pooled is None or cond.sizes is None:
            raise ValueError("this UNet needs pooled text and sizes")
        sizes = timestep_embedding(cond.sizes.flatten(), 256).view(len(cond.sizes), -1)  # B 6*256
        return torch.cat([cond.pooled, sizes], dim=1)

    @staticmethod
    def walk(step: nn.ModuleList, x: Tensor, told: Told, seen: Seen, size: tuple[int, int] = (0, 0)) -> Tensor:
        for layer in step:
            match layer:
                case ResBlock():
                    x = layer(x, told.time)
                case SpatialTransformer():
                    x = layer(x, told, seen)
                case Upsample() | FoldedUpsample():
                    x = layer(x, size)
                case _:
                    x = layer(x)
        return x


class Unet(Trunk):
    def __init__(self, config: UnetConfig) -> None:
        super().__init__(config)
        kept, channels, ups = list(self.kept), self.kept[-1], []
        for i, (multiple, depth) in reversed(list(enumerate(zip(config.multiples, config.depths, strict=True)))):
            width = config.width * multiple
            for j in range(config.blocks + 1):
                last = j == config.blocks and i > 0
                ups.append(self.step(channels + kept.pop(), width, depth, *([Upsample(width)] if last else [])))
                channels = width
        self.output_blocks = nn.ModuleList(ups)
        self.out = nn.Sequential(
            nn.GroupNorm(config.groups, channels), nn.SiLU(), nn.Conv2d(channels, config.out, 3, padding=1)
        )

    def forward(
        self, x: Tensor, t: Tensor, cond: Cond, deep: Deep | None = None, few: int = 1, perturbed: bool = False
    ) -> Tensor:
        """x: B C h w; t: B, stations 0 .. 999; cond: tokens, and for SDXL pooled and sizes. Gives B C h w, fp32.

        x and t of fewer rows serve cond over and over; until something tells its rows apart, they are computed once.
        cond.image, B C' h w, is laid beside x: a mask and a masked picture, a picture to edit, a depth map.
        cond.control joins what is kept, cond.hints what each level ends with, cond.seen every attention to the words.
        deep: asks all but the outer steps, or carries over what they gave. few: see `Told`. perturbed: in the middle,
        self-attention sees each place alone, for perturbed-attention guidance.
        """
        told = Told(self.told(t, cond), cond.tokens, few)
        first, inside, last = self._seen(cond.seen)
        y = again(x, len(told.time))
        y = y if cond.image is None else torch.cat([again(y, len(cond.image)), cond.image], dim=1)
        if y.shape[1] != self.config.channels:
            raise ValueError(f"this UNet takes {self.config.channels} channels, not {y.shape[1]}")
        joins = self.joins(cond.hints)
        kept = self.descend(y, told, first, range(EDGE), joins)

        def inner() -> Tensor:
            low = self.descend(kept[-1], told, inside, range(EDGE, len(self.input_blocks)), joins)
            y = self.middle(low[-1], replace(told, alone=perturbed), inside, cond.hints)
            if cond.control:
                y = y + cond.control[-1]
            return self.ascend(y, [*kept, *low], told, inside, self.output_blocks[:-EDGE], cond.control)

        y = deep(inner) if deep else inner()
        y = self.ascend(y, kept, told, last, self.output_blocks[-EDGE:], cond.control)
        return self.out(y).float()  # B C h w

    def ascend(
        self, y: Tensor, kept: list[Tensor], told: Told, seen: Seen, steps: nn.ModuleList, control: Tensors
    ) -> Tensor:
        """The way up over these steps; each takes the last of what is kept, with a ControlNet's part of it."""
        for step in steps:
            i = len(kept) - 1
            side = again(kept[i], len(y))
            side = side + control[i] if control else side
            kept = kept[:i]
            y = torch.cat([y, side], dim=1)
            y = self.walk(step, y, told, seen, kept[-1].shape[-2:] if kept else (0, 0))  # type: ignore[arg-type]
        return y

    def _seen(self, seen: tuple[Tensors, ...]) -> tuple[Seen, Seen, Seen]:
        """What the attentions of the first steps, the deep ones and the last see."""
        if not seen:
            return repeat(()), repeat(()), repeat(())
        pairs = _by_attention(seen)
        first, last = (_attentions(steps) for steps in (self.input_blocks[:EDGE], self.output_blocks[-EDGE:]))
        end = len(pairs) - last
        return iter(pairs[:first]), iter(pairs[first:end]), iter(pairs[end:])


def _attentions(steps: nn.Module) -> int:
    return sum(isinstance(layer, TransformerBlock) for layer in steps.modules())


def _by_attention(seen: tuple[Tensors, ...]) -> list[tuple[Pair, ...]]:
    """For each cross-attention, in walking order, the pair that each picture prompt has for it."""
    pairs = [list(zip(keys[::2], keys[1::2], strict=True)) for keys in seen]
    return list(zip(*pairs, strict=True))

"""The transformer of Stable Diffusion 3 and 3.5, with the names of the published files.

Esser et al. 2024, arXiv 2403.03206: pictures and words keep weights of their own and attend together (section 4,
figure 2). MMDiT-X, of 3.5 medium, lets the picture attend to itself a second time in its first blocks. It predicts the
velocity eps - x0 of the straight path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limner.errors import BadInput
from limner.nn.attention import attend, join_heads
from limner.nn.embed import timestep_embedding
from limner.nn.norm import RMSNorm, joined, modulated
from limner.types import Cond, Deep, again

EDGE = 2  # blocks at either end that are asked anew where the change that the others make is carried over
HEAD = 64  # width of a head in every published network
CLOCK = 256  # width of the embedding of the time


@dataclass(frozen=True)
class MMDiTConfig:
    channels: int = 16  # of the latents, in and out
    patch: int = 2  # side of a patch, in latents
    width: int = 1536  # 64 x depth in every published network
    depth: int = 24  # joint blocks; the words end in the last
    heads: int = 24
    context: int = 4096  # width of the text states
    pooled: int = 2048  # width of the pooled text: CLIP-L and bigG side by side
    positions: int = 192  # side of the stored table of positions, in patches; 384 in 3.5 medium
    qk_norm: str = ""  # "rms": queries and keys are normalised (3.5); "": they are not (3)
    dual: int = 0  # first blocks with a second attention of the picture to itself; 13 in 3.5 medium


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> MMDiTConfig:
    """What names and shapes say of an MMDiT; without norms of queries and keys, heads are taken to be 64 wide."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("joint_blocks.")})
    norm = shapes.get("joint_blocks.0.x_block.attn.ln_q.weight")
    dual = sum(f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes for i in range(depth))
    return MMDiTConfig(
        channels, patch, width, depth, max(1, width // (norm[0] if norm else HEAD)),
        shapes["context_embedder.weight"][1], shapes["y_embedder.mlp.0.weight"][1],
        round(shapes["pos_embed"][1] ** 0.5), "rms" if norm else "", dual,
    )  # fmt: skip


def embedder(width_in: int, width: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))
    return nn.Sequential(OrderedDict(mlp=layers))


def feed_forward(width: int) -> nn.Sequential:
    layers = OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU("tanh"), fc2=nn.Linear(4 * width, width))
    return nn.Sequential(layers)


class Attention(nn.Module):
    """The projections around an attention; `last`: what is attended goes nowhere, so none leads out."""

    def __init__(self, config: MMDiTConfig, last: bool = False) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q = RMSNorm(width // config.heads) if config.qk_norm else nn.Identity()
        self.ln_k = RMSNorm(width // config.heads) if config.qk_norm else nn.Identity()
        self.proj = nn.Identity() if last else nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))  # B T K E each
        return self.ln_q(q).transpose(1, 2), self.ln_k(k).transpose(1, 2), v.transpose(1, 2)  # B K T E


class Stream(nn.Module):
    """The half of a joint block that belongs to the picture, or to the words.

    It is told shift, scale and gate for its attention, the same for its feed-forward and, if dual, for its second
    attention; the last stream of the words is told shift and scale alone, for it ends at the attention.
    """

    def __init__(self, config: MMDiTConfig, last: bool = False, dual: bool = False) -> None:
        super().__init__()
        width = config.width
        self.told = 2 if last else 9 if dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.told * width))
        self.attn = Attention(config, last)
        self.attn2 = Attention(config) if dual else None
        self.mlp = None if last else feed_forward(width)

    def modulation(self, told: Tensor) -> tuple[Tensor, ...]:
        return self.adaLN_modulation(told).float()[:, None].chunk(self.told, dim=-1)  # B 1 D each

    def forward(self, x: Tensor, attended: Tensor, mods: tuple[Tensor, ...]) -> Tensor:
        """What follows the joint attention."""
        if self.mlp is None:
            return x
        y = joined(x, mods[2], self.attn.proj(attended))  # B T D
        if self.attn2 is not None:
            q, k, v = self.attn2(modulated(x, mods[6], mods[7]))
            y = joined(y, mods[8], self.attn2.proj(join_heads(attend(q, k, v))))
        return joined(y, mods[5], self.mlp(modulated(y, mods[3], mods[4])))


class JointBlock(nn.Module):
    def __init__(self, config: MMDiTConfig, last: bool, dual: bool) -> None:
        super().__init__()
        self.context_block = Stream(config, last=last)
        self.x_block = Stream(config, dual=dual)

    def forward(self, image: Tensor, words: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        mods, mods_words = self.x_block.modulation(told), self.context_block.modulation(told)
        parts = (
            self.x_block.attn(modulated(image, *mods[:2])),
            self.context_block.attn(modulated(words, *mods_words[:2])),
        )
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*parts, strict=True))  # B K T+L E
        both = join_heads(attend(q, k, v))  # B T+L D
        parts = both.split([image.shape[1], words.shape[1]], dim=1)
        seen, heard = (part.contiguous() for part in parts)  # else a bias may be added to what was rounded before
        return self.x_block(image, seen, mods), self.context_block(words, heard, mods_words)


class FinalLayer(nn.Module):
    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))
        self.linear = nn.Linear(config.width, config.patch**2 * config.channels)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(told).float()[:, None].chunk(2, dim=-1)  # B 1 D each
        return self.linear(modulated(x, shift, scale))  # B T p*p*C


class MMDiT(nn.Module):
    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        if config.width % config.heads or config.qk_norm not in ("", "rms"):
            raise ValueError(
                f"width {config.width} must be a multiple of the {config.heads} heads, and qk_norm {config.qk_norm!r} "
                "be '' or 'rms'"
            )
        width, patch = config.width, config.patch
        self.x_embedder = nn.Sequential(OrderedDict(proj=nn.Conv2d(config.channels, width, patch, stride=patch)))
        self.t_embedder = embedder(CLOCK, width)
        self.y_embedder = embedder(config.pooled, width)
        self.context_embedder = nn.Linear(config.context, width)
        self.register_buffer("pos_embed", torch.zeros(1, config.positions**2, width))  # the file brings the table
        self.pos_embed: Tensor
        self.joint_blocks = nn.ModuleList(
            JointBlock(config, last=i == config.depth - 1, dual=i < config.dual) for i in range(config.depth)
        )
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, skip: tuple[int, ...] = (), deep: Deep | None = None) -> Tensor:
        """x: B C h w; t: B in 0 .. 1000; cond: tokens and pooled. Gives the velocity: B C h w, fp32.

        x and t of fewer rows serve cond over and over.
        skip: blocks that are left out, for skip-layer guidance. deep: asks all but the outer blocks for what they add
        to picture and words (as Chen et al. 2024, arXiv 2406.01125), or carries it over.
        """
        if cond.pooled is None:
            raise ValueError("the MMDiT needs tokens and pooled")
        p = self.config.patch
        h, w = x.shape[2] // p, x.shape[3] // p
        x, t = again(x, len(cond)), again(t, len(cond))
        image = self.x_embedder(x).flatten(2).transpose(1, 2)  # B T D
        image = image + self.places(h, w)
        words = self.context_embedder(cond.tokens).float()  # B L D
        told = self.t_embedder(timestep_embedding(t, CLOCK)) + self.y_embedder(cond.pooled)  # B D

        def through(both: Tensor, start: int, end: int) -> Tensor:
            image, words = both.split([h * w, both.shape[1] - h * w], dim=1)
            for i in range(start, end):
                if i not in skip:
                    image, words = self.joint_blocks[i](image, words, told)
            return torch.cat([image, words], dim=1)

        end = self.config.depth - EDGE
        both = through(torch.cat([image, words], dim=1), 0, min(EDGE, end))  # B T+L D
        if end > EDGE:
            both = both + deep(lambda: through(both, EDGE, end) - both) if deep else through(both, EDGE, end)
        both = through(both, max(end, 0), self.config.depth)
        y = self.final_layer(both[:, : h * w], told).float()  # B T p*p*C
        y = y.unflatten(2, (p, p, -1)).unflatten(1, (h, w))  # B h/p w/p p p C
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # B C h w

    def places(self, h: int, w: int) -> Tensor:
        """The middle of the table of positions: T D, fp32."""
        side = self.config.positions
        if max(h, w) > side:
            raise BadInput(f"a picture of {h} x {w} patches does not fit the {side} x {side} positions of this network")
        top, left = (side - h) // 2, (side - w) // 2
        table = self.pos_embed[0].unflatten(0, (side, side))
        return table[top : top + h, left : left + w].flatten(0, 1).float()

"""Words to what a denoiser is told, by the text towers of published Stable Diffusion.

A prompt becomes rows of 77 tokens; every tower reads the rows; weights act on the states; the rows stand one after
another. SDXL and SD3 lay the towers side by side; SD3 sets T5's states behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from limner.errors import BadInput
from limner.families import Family, Tower
from limner.models.clip import Clip
from limner.models.mmdit import MMDiT
from limner.models.t5 import T5
from limner.models.text.chunks import Chunks, chunks, line, weigh_a1111, weigh_comfy
from limner.models.text.clip_pieces import ClipPieces
from limner.models.text.inversion import Inversion, vectors_for
from limner.models.text.prompt import Piece, Pieces, parse
from limner.models.text.t5_pieces import T5Pieces
from limner.nets import bare
from limner.types import Cond

Words = str | Pieces


@dataclass(frozen=True)
class Reading:
    """How words are read, and what SDXL is told beside them."""

    syntax: str = "a1111"  # whose arithmetic weights follow: "a1111", "comfy", or "plain" for none
    clip_skip: int = 0  # 1: the last layer of the towers, 2: the one before; 0: what the family was trained with
    negative: bool = False  # what is read is to be kept away from
    size: tuple[int, int] = (1024, 1024)  # width and height of the picture, in pixels
    aesthetic: tuple[float, float] = (6.0, 2.5)  # SDXL's refiner is told a score: that of wanted and unwanted pictures
    learned: tuple[Inversion, ...] = ()  # words of textual inversion


def read_towers(
    family: Family, nets: Mapping[str, nn.Module], t5: T5Pieces | None, prompts: Sequence[Words], how: Reading
) -> Cond:
    """What the denoiser of a published family is told of each prompt."""
    pieces = [parse(p, how.syntax).parts[0].stages[0].pieces if isinstance(p, str) else p for p in prompts]
    blank = [family.zero_negative and how.negative and not _said(each) for each in pieces]
    read = [_tower(cast(Clip, nets[tower.net]), tower, pieces, how) for tower in family.towers]
    states = torch.cat([states for states, _ in read], dim=2)  # B L D
    pooled = read[-1][1]  # B P
    sizes = None
    if "text_3" in family.nets:
        pooled = torch.cat([vector for _, vector in read], dim=1)
        wanted = cast(MMDiT, bare(nets, "denoiser")).config.context
        states = _with_t5(
            states, cast("T5 | None", nets.get("text_3") if t5 else None), t5, pieces, how, wanted, family.pieces
        )
    elif "text_2" in family.nets:
        width, height = how.size
        told: list[float] = [height, width, 0, 0]  # the size it came from, and the corner that was cut off
        refines = "text" not in family.nets
        told += [how.aesthetic[how.negative]] if refines else [height, width]
        sizes = torch.tensor([told] * len(pieces), dtype=torch.float32, device=states.device)
    keep = torch.tensor([not each for each in blank], device=states.device)
    return Cond(states * keep[:, None, None], pooled * keep[:, None], sizes=sizes)


def _said(pieces: Pieces) -> bool:
    return any(isinstance(piece, Piece) and piece.text.strip() for piece in pieces)


def _tower(net: Clip, tower: Tower, prompts: Sequence[Pieces], how: Reading) -> tuple[Tensor, Tensor]:
    """States, B L D with every prompt as long as the longest, and the pooled vector of the first rows, B P."""
    tokens = ClipPieces(tower.pad)
    learned = vectors_for(how.learned, net.config.width)
    rows = [chunks(each, tokens, how.syntax, learned) for each in prompts]
    longest = max(len(each) for each in rows)
    empty = chunks((Piece(""),), tokens, how.syntax)
    layer = _layer(net, tower, how.clip_skip)
    states, pooled = [], []
    for each in rows:
        z, first = _states(net, each, layer, tower.normed)  # N 77 D
        bare = z[:0] if len(each) == longest and how.syntax != "comfy" else _states(net, empty, layer, tower.normed)[0]
        if how.syntax == "comfy":
            z = weigh_comfy(z, each.weights, bare)
        elif how.syntax == "a1111":
            z = weigh_a1111(z, each.weights)
        states.append(torch.cat([z, *[bare] * (longest - len(each))]).flatten(0, 1))  # L D
        pooled.append(first[0])
    return torch.stack(states), torch.stack(pooled)


def _layer(net: Clip, tower: Tower, skip: int) -> int:
    """The layer whose states are taken, counted from 1."""
    layers = net.config.layers
    top = layers + 1 if tower.cut and layers % 2 else layers  # as if the layer that was cut off were there
    layer = top - (skip - 1 if skip else tower.skip)
    if not 1 <= layer <= layers:
        raise BadInput(f"clip_skip {skip} asks for layer {layer} of the {tower.net} tower, which has 1 to {layers}")
    return layer


def _states(net: Clip, rows: Chunks, layer: int, normed: bool) -> tuple[Tensor, Tensor]:
    ids = rows.ids.to(next(net.parameters()).device)
    vectors = net.embed(ids)  # N 77 D
    for row, place, vector in rows.fills:
        vectors[row, place] = vector.to(vectors)
    ends = (ids == ClipPieces.end).int().argmax(1)  # N
    states, pooled = net(vectors, ends, layer)
    return (net.norm(states).float() if normed else states), pooled


def _with_t5(
    states: Tensor, net: T5 | None, t5: T5Pieces | None, prompts: Sequence[Pieces], how: Reading, width: int, long: int
) -> Tensor:
    """CLIP's states padded to the width that is wanted, and T5's behind them, or zeros (arXiv 2403.03206, B.4)."""
    states = nn.functional.pad(states, (0, width - states.shape[2]))  # B L 4096
    if net is None or t5 is None:
        return torch.cat([states, states.new_zeros(len(states), long, width)], dim=1)
    rows = [line(pieces, t5, how.syntax) for pieces in prompts]
    ids = torch.cat([row.ids for row in rows]).to(states.device)  # B 256
    read = net(ids, None)  # padding is read too, as it was in training
    weights = torch.cat([row.weights for row in rows])
    if how.syntax == "comfy":
        read = weigh_comfy(read, weights, net(line((), t5).ids.to(ids), None))
    elif how.syntax == "a1111":
        read = weigh_a1111(read, weights)
    return torch.cat([states, read], dim=1)

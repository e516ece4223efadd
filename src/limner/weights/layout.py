"""Names of weights, theirs and ours: rules that read both ways, and an account that must come out even."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limner.errors import BadWeights

Op = Literal["same", "transpose", "pointwise", "swap"]
Side = str | tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """Their name and ours, with `{}` for an index or any middle part, in the same order on both sides.

    A side of several names is one tensor of the other side, cut along its rows: queries, keys and values, say.
    `ours=None` drops what matches.
    """

    theirs: Side
    ours: Side | None
    op: Op = "same"
    # transpose: a matrix is turned (OpenCLIP's projection)
    # pointwise: their matrix is our 1x1 convolution (diffusers' linear projections)
    # swap: the two halves change places (diffusers keeps scale before shift in the last modulation of SD3)

    def __post_init__(self) -> None:
        counts = {name.count("{}") for name in (*_names(self.theirs), *_names(self.ours))}
        if len(counts) > 1:
            raise ValueError(f"{self.theirs!r} and {self.ours!r} have different numbers of {{}}")
        if len(_names(self.theirs)) > 1 and len(_names(self.ours)) > 1:
            raise ValueError(f"{self.theirs!r} and {self.ours!r}: only one side can be of several names")


def under(rules: Iterable[Rule], theirs: str = "", ours: str = "") -> list[Rule]:
    """The same rules for names that stand behind a prefix on either side."""
    return [
        Rule(_behind(theirs, rule.theirs), None if rule.ours is None else _behind(ours, rule.ours), rule.op)
        for rule in rules
    ]


@dataclass(frozen=True)
class Move:
    """Tensors that become others together."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]  # none: dropped
    op: Op
    back: bool

    def __call__(self, found: Sequence[Tensor]) -> list[Tensor]:
        whole = found[0] if len(found) == 1 else torch.cat(tuple(found))
        match self.op:
            case "transpose":
                whole = whole.transpose(0, 1).contiguous()
            case "pointwise":
                whole = whole.flatten(1) if self.back else whole[:, :, None, None]
            case "swap":
                whole = torch.cat(whole.chunk(2)[::-1])
        return [whole] if len(self.targets) == 1 else list(whole.chunk(len(self.targets)))


def plan(names: Iterable[str], rules: Sequence[Rule], back: bool = False, where: str = "") -> list[Move]:
    """What becomes of each name: the first rule that matches decides. `back`: ours to theirs.

    Raises BadWeights with the first names that no rule matches, when two names become one, and when of names that
    belong together one is missing.
    """
    known, said = list(names), f"{where}: " if where else ""
    sides = [
        (_names(r.ours), _names(r.theirs), r.op) if back else (_names(r.theirs), _names(r.ours), r.op) for r in rules
    ]
    patterns = [
        (source.partition("{}")[0], re.compile(_pattern(source)), sources, targets, op)
        for sources, targets, op in sides
        for source in sources
    ]
    moves: dict[tuple[str, ...], Move] = {}
    lost = []
    for name in known:
        for start, pattern, sources, targets, op in patterns:
            if name.startswith(start) and (match := pattern.fullmatch(name)):
                parts = match.groups()
                group = tuple(_fill(source, parts) for source in sources)
                moves.setdefault(group, Move(group, tuple(_fill(target, parts) for target in targets), op, back))
                break
        else:
            lost.append(name)
    if lost:
        first = f"{', '.join(lost[:3])}{_near(lost[0], rules, back)}"
        raise BadWeights(f"{said}{len(lost)} names match no rule of this layout, the first: {first}")
    there, taken = set(known), dict[str, str]()
    for move in moves.values():
        if gone := [name for name in move.sources if name not in there]:
            raise BadWeights(f"{said}{move.sources[0]!r} and {gone[0]!r} belong together, and one of them is missing")
        for target in move.targets:
            if taken.setdefault(target, move.sources[0]) != move.sources[0]:
                raise BadWeights(f"{said}{taken[target]!r} and {move.sources[0]!r} would both become {target!r}")
    return list(moves.values())


def _near(name: str, rules: Sequence[Rule], back: bool) -> str:
    """A hint for a name that no rule matches: the pattern that it looks most like."""
    known = [each for rule in rules for each in (_names(rule.ours) if back else _names(rule.theirs)) if each != "{}"]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; the nearest that is known is {close[0]}" if close else ""


def translate(
    tensors: Mapping[str, Tensor], rules: Sequence[Rule], back: bool = False, where: str = ""
) -> dict[str, Tensor]:
    """Tensors under their new names; dropped ones are gone. Cuts are views; joins and turns are copies."""
    made: dict[str, Tensor] = {}
    for move in plan(tensors, rules, back, where):
        if move.targets:
            made |= zip(move.targets, move([tensors[name] for name in move.sources]), strict=True)
    return made


def reshaped(
    shapes: Mapping[str, Sequence[int]], rules: Sequence[Rule], back: bool = False, where: str = ""
) -> dict[str, tuple[int, ...]]:
    """The shapes that `translate` would give; nothing is allocated."""
    empty = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    try:
        return {name: tuple(value.shape) for name, value in translate(empty, rules, back, where).items()}
    except (RuntimeError, IndexError, ValueError) as error:  # a tensor of too few axes, or rows that cannot be cut
        raise BadWeights(f"{where}: a tensor has not the axes that this layout has ({error})") from error


def account(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], where: str, partial: bool = False
) -> list[str]:
    """Refuse unless names and shapes agree one to one; the sentence gives the tensor and the nearest name.

    `partial` lets names be over and missing, though not misshapen. Gives the names that are missing.
    """
    over, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if over and not partial:
        close = difflib.get_close_matches(over[0], missing or list(wanted), n=1)
        near = f"; the nearest that is wanted is {close[0]!r}" if close else ""
        raise BadWeights(f"{where}: {len(over)} tensors fill nothing, the first is {over[0]!r}{near}")
    if missing and not partial:
        close = difflib.get_close_matches(missing[0], list(found), n=1)
        near = f"; the nearest in the file is {close[0]!r}" if close else ""
        raise BadWeights(f"{where}: {len(missing)} weights are missing, the first is {missing[0]!r}{near}")
    for name, shape in wanted.items():
        if name in found and tuple(found[name]) != tuple(shape):
            raise BadWeights(f"{where}: {name!r} has shape {list(found[name])} and the config wants {list(shape)}")
    return missing


def _names(side: Side | None) -> tuple[str, ...]:
    return () if side is None else (side,) if isinstance(side, str) else side


def _behind(prefix: str, side: Side) -> Side:
    return prefix + side if isinstance(side, str) else tuple(prefix + name for name in side)


def _pattern(source: str) -> str:
    return "(.+?)".join(re.escape(part) for part in source.split("{}"))


def _fill(target: str, parts: tuple[str, ...]) -> str:
    pieces = target.split("{}")
    return "".join(piece + part for piece, part in zip(pieces, (*parts, ""), strict=True))

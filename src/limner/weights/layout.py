"""Names of weights, theirs and ours: rules that read both ways, and an account that must come out even."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from limner.errors import BadWeights

Op = Literal["same", "transpose"]


@dataclass(frozen=True)
class Rule:
    """Their name and ours, with `{}` for an index or any middle part, in the same order on both sides.

    `ours=None` drops what matches. `transpose` turns a matrix; it is its own inverse.
    """

    theirs: str
    ours: str | None
    op: Op = "same"

    def __post_init__(self) -> None:
        if self.ours is not None and self.theirs.count("{}") != self.ours.count("{}"):
            raise ValueError(f"{self.theirs!r} and {self.ours!r} have different numbers of {{}}")


def rename(names: Iterable[str], rules: Sequence[Rule], back: bool = False) -> dict[str, tuple[str, Op] | None]:
    """For each name what it becomes: the first rule that matches decides, None means dropped. `back`: ours to theirs.

    Raises BadWeights with the first names that no rule matches, and when two names become one.
    """
    pairs = [(r.ours, r.theirs, r.op) if back else (r.theirs, r.ours, r.op) for r in rules]
    patterns = [(re.compile(_pattern(source)), target, op) for source, target, op in pairs if source is not None]
    found: dict[str, tuple[str, Op] | None] = {}
    taken: dict[str, str] = {}
    lost = []
    for name in names:
        for pattern, target, op in patterns:
            if match := pattern.fullmatch(name):
                found[name] = None if target is None else (_fill(target, match.groups()), op)
                if (move := found[name]) and taken.setdefault(move[0], name) != name:
                    raise BadWeights(f"{taken[move[0]]!r} and {name!r} would both become {move[0]!r}")
                break
        else:
            lost.append(name)
    if lost:
        raise BadWeights(f"{len(lost)} names match no rule of this layout, the first: {', '.join(lost[:3])}")
    return found


def _pattern(source: str) -> str:
    return "(.+?)".join(re.escape(part) for part in source.split("{}"))


def _fill(target: str, parts: tuple[str, ...]) -> str:
    pieces = target.split("{}")
    return "".join(piece + part for piece, part in zip(pieces, (*parts, ""), strict=True))


def translate(tensors: Mapping[str, Tensor], rules: Sequence[Rule], back: bool = False) -> dict[str, Tensor]:
    """Tensors under their new names; dropped ones are gone."""
    moves = rename(tensors, rules, back)
    return {
        move[0]: tensors[name].T.contiguous() if move[1] == "transpose" else tensors[name]
        for name, move in moves.items()
        if move is not None
    }


def account(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], where: str) -> None:
    """Refuse unless names and shapes agree one to one; the sentence gives the tensor and the nearest name."""
    over, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if over:
        close = difflib.get_close_matches(over[0], missing or list(wanted), n=1)
        near = f"; the nearest that is wanted is {close[0]!r}" if close else ""
        raise BadWeights(f"{where}: {len(over)} tensors fill nothing, the first is {over[0]!r}{near}")
    if missing:
        close = difflib.get_close_matches(missing[0], list(found), n=1)
        near = f"; the nearest in the file is {close[0]!r}" if close else ""
        raise BadWeights(f"{where}: {len(missing)} weights are missing, the first is {missing[0]!r}{near}")
    for name, shape in wanted.items():
        if tuple(found[name]) != tuple(shape):
            raise BadWeights(f"{where}: {name!r} has shape {list(found[name])} and the config wants {list(shape)}")

"""Weighted pieces of a prompt as the rows of 77 tokens that CLIP reads, and what weights do to the states it answers.

A prompt of more than 75 tokens becomes several rows, each read alone; the states of all stand one after another before
the denoiser. Neither program's way was published in a paper: both are told here as arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from limner.errors import BadInput, UnknownName, nearest
from limner.models.text.prompt import SYNTAXES, Break, Piece

NEAR = 20  # tokens that A1111 looks back for a comma, its setting's default
WORD = 8  # a run of so many tokens is cut where a row ends, in ComfyUI; a shorter one moves to the next row
EMBEDDING = re.compile(r"(?:(?<=\s)|^)embedding:([^\s,<\[]+)")  # how ComfyUI's prompts name a learned word


class Tokens(Protocol):
    """What a tokenizer must have; `ClipPieces` does."""

    pad: int

    @property
    def length(self) -> int: ...
    def ids(self, text: str) -> list[int]: ...
    def row(self, ids: Sequence[int]) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class Chunks:
    ids: Tensor  # N 77 int64
    weights: Tensor  # N 77 float32, 1 where nothing was said
    fills: tuple[tuple[int, int, Tensor], ...]  # row, position, and the vector W that stands there, not the id's

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class _Token:
    id: int
    weight: float
    vector: Tensor | None = None


_Unit = list[_Token]  # tokens that stand together: one of text, or all the vectors of one learned word


def chunks(
    pieces: Iterable[Piece | Break],
    tokenizer: Tokens,
    syntax: str = "a1111",
    embeddings: Mapping[str, Tensor] | None = None,
) -> Chunks:
    """The rows of a prompt. `embeddings` are learned words, n W each, by the name that calls them.

    "plain" folds as A1111 does.
    """
    if syntax not in SYNTAXES:
        raise UnknownName("prompt syntax", syntax, SYNTAXES)
    learned, room = dict(embeddings or {}), tokenizer.length - 2
    if syntax == "comfy":
        rows = _fold_comfy(_units_comfy(pieces, tokenizer, learned), room)
    else:
        rows = _fold_a1111(_units_a1111(pieces, tokenizer, learned, room), room, tokenizer.ids(","))
    weights = torch.ones(len(rows), tokenizer.length)
    for n, row in enumerate(rows):
        weights[n, 1 : 1 + len(row)] = torch.tensor([token.weight for token in row])
    fills = [(n, 1 + i, t.vector) for n, row in enumerate(rows) for i, t in enumerate(row) if t.vector is not None]
    ids = torch.tensor([tokenizer.row([token.id for token in row]) for row in rows], dtype=torch.int64)
    return Chunks(ids, weights, tuple(fills))


def line(pieces: Iterable[Piece | Break], tokenizer: Tokens, syntax: str = "a1111") -> Chunks:
    """The one row that T5 reads, which begins with no token of its own and is cut where it is full."""
    texts = [piece for piece in pieces if isinstance(piece, Piece)]
    if syntax == "comfy":  # learned words are CLIP's alone
        texts = [replace(piece, text=EMBEDDING.sub("", piece.text)) for piece in texts]
    unit = [_Token(token, piece.weight) for piece in texts for token in tokenizer.ids(piece.text)]
    unit = unit[: tokenizer.length - 1]
    weights = torch.ones(1, tokenizer.length)
    weights[0, : len(unit)] = torch.tensor([token.weight for token in unit])
    return Chunks(torch.tensor([tokenizer.row([token.id for token in unit])], dtype=torch.int64), weights, ())


def _learned(vectors: Tensor, weight: float) -> _Unit:
    return [_Token(0, weight, vector) for vector in vectors]


def _units_a1111(
    pieces: Iterable[Piece | Break], tokenizer: Tokens, learned: Mapping[str, Tensor], room: int
) -> Iterator[_Unit | Break]:
    """Learned words are found by their tokens, the longest name first, wherever they stand.

    One that begins or ends with a sign, `<cat-toy>`, is found by its letters: its last token may hold a comma too.
    """
    for name, vectors in learned.items():
        if len(vectors) > room:
            raise BadInput(f"the embedding {name!r} has {len(vectors)} vectors, and a row holds {room} tokens")
    named = sorted(((tokenizer.ids(name), name) for name in learned), key=lambda pair: -len(pair[0]))
    signed = [name for name in learned if name and not (name[0].isalnum() and name[-1].isalnum())]
    apart = re.compile("(" + "|".join(re.escape(name) for name in sorted(signed, key=len, reverse=True)) + ")")
    for piece in pieces:
        if isinstance(piece, Break):
            yield piece
            continue
        for k, text in enumerate(apart.split(piece.text) if signed else [piece.text]):
            if k % 2:
                yield _learned(learned[text], piece.weight)
                continue
            ids, i = tokenizer.ids(text), 0
            while i < len(ids):
                found = ((name, len(key)) for key, name in named if key and ids[i : i + len(key)] == key)
                name, long = next(found, ("", 1))
                yield _learned(learned[name], piece.weight) if name else [_Token(ids[i], piece.weight)]
                i += long


def _fold_a1111(units: Iterable[_Unit | Break], room: int, comma: Sequence[int]) -> list[_Unit]:
    """Rows are filled to the brim, but what follows a comma of the last 20 tokens moves to the next row with it."""
    rows: list[_Unit] = [[]]
    after = 0  # where the row goes on after its last comma; 0 if it has none
    for unit in units:
        if isinstance(unit, Break):
            rows.append([])
            after = 0
            continue
        is_comma = len(unit) == 1 and [unit[0].id] == comma and unit[0].vector is None
        if is_comma:
            after = len(rows[-1]) + 1
        elif len(rows[-1]) == room and after and room - after < NEAR:
            rows.append(rows[-1][after:])
            del rows[-2][after:]
            after = 0
        if len(rows[-1]) + len(unit) > room:
            rows.append([])
            after = 0
        rows[-1] += unit
    return rows if len(rows) == 1 or rows[-1] else rows[:-1]


def _units_comfy(pieces: Iterable[Piece | Break], tokenizer: Tokens, learned: Mapping[str, Tensor]) -> Iterator[_Unit]:
    """A bracket's text is one unit, but for the learned words in it, `embedding:name`."""
    for piece in pieces:
        if isinstance(piece, Break):
            continue
        for i, text in enumerate(EMBEDDING.split(piece.text)):  # text, name, text, name ... text
            if i % 2:
                yield _learned(_called(text, learned), piece.weight)
            elif text:
                yield [_Token(token, piece.weight) for token in tokenizer.ids(text)]


def _called(name: str, learned: Mapping[str, Tensor]) -> Tensor:
    stem = re.sub(r"\.(safetensors|pt|bin)$", "", name)
    if name not in learned and stem not in learned:
        end = nearest(name, sorted(learned)) if learned else "there are none."
        raise BadInput(f"no embedding is called {name!r}: {end}")
    return learned[name if name in learned else stem]


def _fold_comfy(units: Iterable[_Unit], room: int) -> list[_Unit]:
    """A unit of fewer than 8 tokens is not cut but moves to the next row; a longer one is cut where the row ends."""
    rows: list[_Unit] = [[]]
    for unit in units:
        large = len(unit) >= WORD
        while len(rows[-1]) + len(unit) > room:
            left = room - len(rows[-1]) if large else 0
            rows[-1] += unit[:left]
            unit = unit[left:]
            rows.append([])
        rows[-1] += unit
    return rows


def weigh_a1111(states: Tensor, weights: Tensor) -> Tensor:
    """Each token's state times its weight, then the whole row scaled so that its mean is what it was.

    With z the states of one row, w the weights: y = w z; the answer is y mean(z) / mean(y), the means over all
    positions and channels. A row without weights stays as it is, to the bit.
    """
    z = states.float()  # N L D
    y = z * weights.to(z)[..., None]  # N L D
    scale = z.mean((-2, -1), keepdim=True) / y.mean((-2, -1), keepdim=True)  # N 1 1
    said = (weights != 1).any(-1).to(z.device)[..., None, None]  # N 1 1
    return torch.where(said, y * scale, z).to(states.dtype)


def weigh_comfy(states: Tensor, weights: Tensor, empty_states: Tensor) -> Tensor:
    """Each token's state moved from that of the empty prompt, or towards it: e + w (z - e).

    z is a row's states, e (1 L D or L D) the states of the empty prompt at the same positions, w the weights. A token
    of weight 1 stays as it is, to the bit.
    """
    z, e = states.float(), empty_states.float()  # N L D
    w = weights.to(z)[..., None]  # N L 1
    return torch.where(w == 1, z, e + w * (z - e)).to(states.dtype)

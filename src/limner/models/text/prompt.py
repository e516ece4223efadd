"""The languages that prompts are written in: weights, BREAK, AND, edits and alternations; `parse(text, syntax, steps)`.

- "a1111", AUTOMATIC1111's: `(x)` `[x]` `(x:1.2)` `\\(`, BREAK, `x:0.7 AND y`, `[a:b:0.5]` `[b:5]` `[a::5]`, `[a|b]`.
- "comfy", ComfyUI's: `(x)` `(x:1.2)` `\\(`; every other mark is a letter like any other.
- "plain": no marks at all.

A closing bracket that closes nothing is text, for people write `:)`; an opening one that is never closed is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from limner.errors import BadInput, UnknownName

SYNTAXES = ("a1111", "comfy", "plain")
MORE = 1.1  # what a bracket without a number multiplies by, in both programs
DEPTH = 100  # brackets within brackets; nobody writes so many, and each costs a level of Python's stack


@dataclass(frozen=True)
class Piece:
    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Break:
    """The words after it begin a new chunk."""


BREAK = Break()
Pieces = tuple[Piece | Break, ...]


@dataclass(frozen=True)
class Stage:
    until: float  # share of the steps, in (0, 1], at whose end the next stage begins
    pieces: Pieces


@dataclass(frozen=True)
class Part:
    """One prompt of those that AND joins (Liu et al., Compositional Visual Generation, 2022, equation 11)."""

    weight: float
    stages: tuple[Stage, ...]

    def at(self, i: int, n: int) -> Pieces:
        """What is read at step i of n, i from 0."""
        share = (i + 0.5) / n  # the middle of the step, so that no rounding of a stage's end matters
        return next((stage.pieces for stage in self.stages if share < stage.until), self.stages[-1].pieces)


@dataclass(frozen=True)
class Lora:
    """`<lora:name:0.8>`, or `<lora:name:0.5:0.8>` with a weight of its own for the text encoders, the first."""

    name: str
    weight: float = 1.0
    text_weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    parts: tuple[Part, ...]
    loras: tuple[Lora, ...] = ()


def parse(text: str, syntax: str = "a1111", steps: int = 1) -> Prompt:
    """What a prompt says, in one of SYNTAXES, when the picture is painted in so many steps."""
    if syntax not in SYNTAXES:
        raise UnknownName("prompt syntax", syntax, SYNTAXES)
    if steps < 1:
        raise BadInput(f"a prompt is read for 1 step or more, not for {steps}")
    if syntax == "plain":
        return Prompt((Part(1.0, (Stage(1.0, (Piece(text),)),)),))
    reader = _Reader(text, syntax)
    parts = [Part(weight, _stages(nodes, syntax, steps)) for weight, nodes in reader.parts()]
    return Prompt(tuple(parts), tuple(reader.loras))


def fault(text: str, column: int, sentence: str) -> BadInput:
    """A refusal that shows the place: `{at}` in the sentence becomes the column, from 1, and a caret points there."""
    first = max(0, column - 40)
    shown = re.sub(r"\s", " ", text[first : column + 40])
    sentence = sentence.replace("{at}", f"at column {column + 1}")
    return BadInput(f"{sentence}\n    {shown}\n    {' ' * (column - first)}^")


# The tree: a text, a mark (":" or "|", until it is known what its bracket means), a Break, or brackets around more.


@dataclass(frozen=True)
class _Mark:
    sign: str
    column: int


@dataclass(frozen=True)
class _Weighted:
    inside: tuple[_Node, ...]
    weight: float
    fixed: bool = False  # a number in place of 1.1: in ComfyUI it replaces the weights of the brackets around it


@dataclass(frozen=True)
class _Edit:
    before: tuple[_Node, ...]
    after: tuple[_Node, ...]
    when: float
    share: bool  # whether `when` is a share of the steps, or steps


@dataclass(frozen=True)
class _Alternate:
    options: tuple[tuple[_Node, ...], ...]


_Node = str | _Mark | Break | _Weighted | _Edit | _Alternate

TOKENS = {
    "a1111": re.compile(
        r"(?P<lora><lora:[^<>]*>?)|\\(?P<escaped>.?)|(?P<mark>[()\[\]:|]|\b(?:BREAK|AND)\b)"
        r"|(?P<text>(?:(?!<lora:|\b(?:BREAK|AND)\b)[^\\()\[\]:|])+)",
        re.DOTALL,
    ),
    "comfy": re.compile(
        r"(?P<lora><lora:[^<>]*>?)|\\(?P<escaped>[()])|(?P<mark>[():])|(?P<text>(?:(?!<lora:)[^\\():]|\\(?![()]))+)"
    ),
}
NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*", re.ASCII)
SLIP = re.compile(r"[\d\s.,+-]*", re.ASCII)  # what was meant as a number and is none
CLOSES = {"(": ")", "[": "]"}


class _Reader:
    """One prompt on its way to a tree, token by token."""

    def __init__(self, text: str, syntax: str) -> None:
        self.text = text
        self.least = 1 if syntax == "comfy" else 0  # nodes before a weight: ComfyUI reads `(:1.2)` as letters
        self.tokens = list(TOKENS[syntax].finditer(text))
        self.next = 0
        self.open: list[tuple[str, int]] = []  # brackets not yet closed, with their columns
        self.loras: list[Lora] = []

    def parts(self) -> Iterator[tuple[float, tuple[_Node, ...]]]:
        """The prompts that AND joins, each with its weight, `x:0.7`, which counts only where there is an AND."""
        found, joined = [self.sequence()], []
        while self.next < len(self.tokens):  # only AND ends a sequence early where no bracket is open
            joined.append(self.tokens[self.next].start())
            self.next += 1
            found.append(self.sequence())
        for column, before, after in zip(joined, found, found[1:], strict=False):
            if not _says(before) or not _says(after):
                raise fault(self.text, column, "AND {at} joins two prompts, and one of them is empty")
        for nodes in found:
            weighed, weight = self.number(nodes, "of a prompt") if joined else (nodes, None)
            yield 1.0 if weight is None else weight, _texts(weighed)

    def sequence(self) -> tuple[_Node, ...]:
        """Nodes up to the end, to AND, or to the bracket that closes the last one opened, which is left to be read."""
        nodes: list[_Node] = []
        while self.next < len(self.tokens):
            token = self.tokens[self.next]
            if token["mark"] == "AND" and not self.open:
                break
            if token["mark"] in (")", "]") and self.closes(token["mark"], token.start()):
                break
            self.next += 1
            node = self.node(token)
            if node != "":
                nodes.append(node)
        return tuple(nodes)

    def closes(self, sign: str, column: int) -> bool:
        """Whether a closing bracket closes the last one opened; if it closes none at all it is text."""
        if not self.open or sign not in (CLOSES[bracket] for bracket, _ in self.open):
            return False
        bracket, start = self.open[-1]
        if CLOSES[bracket] != sign:
            raise fault(
                self.text, start, f"the {bracket} {{at}} is still open where {sign} stands at column {column + 1}"
            )
        return True

    def node(self, token: re.Match[str]) -> _Node:
        mark, column = token["mark"], token.start()
        if token["lora"]:
            self.loras.append(self.lora(token["lora"], column))
            return ""
        if mark is None:
            return token["text"] or token["escaped"] or ""
        if mark == "AND":
            bracket, start = self.open[-1]
            raise fault(
                self.text, column, f"AND {{at}} joins whole prompts, and the {bracket} at column {start + 1} is open"
            )
        if mark == "BREAK":
            return BREAK
        if mark in CLOSES:
            return self.bracket(mark, column)
        return _Mark(mark, column) if mark in (":", "|") else mark

    def bracket(self, sign: str, column: int) -> _Node:
        if len(self.open) == DEPTH:
            raise fault(self.text, column, f"more than {DEPTH} brackets are open {{at}}")
        self.open.append((sign, column))
        inside = self.sequence()
        if self.next == len(self.tokens):
            raise fault(
                self.text, column, f"the {sign} {{at}} is never closed; a bracket as a letter is written \\{sign}"
            )
        self.next += 1
        self.open.pop()
        return self.round(inside) if sign == "(" else self.square(inside, column)

    def round(self, inside: tuple[_Node, ...]) -> _Node:
        rest, weight = self.number(inside, "of a bracket")
        return _Weighted(_texts(rest), MORE) if weight is None else _Weighted(_texts(rest), weight, fixed=True)

    def square(self, inside: tuple[_Node, ...], column: int) -> _Node:
        options, texts = _split(inside, "|"), _split(inside, ":")
        if len(options) > 1:
            if len(_split(options[-1], ":")) > 1 and NUMBER.fullmatch(_plain(_split(options[-1], ":")[-1]) or ""):
                raise fault(self.text, column, "the [ {at} opens texts that alternate, which take no number")
            return _Alternate(tuple(_texts(option) for option in options))
        if len(texts) > 1 and NUMBER.fullmatch(_plain(texts[-1]) or ""):
            return self.edit(texts, column)
        return _Weighted(_texts(inside), 1 / MORE)

    def edit(self, texts: Sequence[tuple[_Node, ...]], column: int) -> _Edit:
        number = (_plain(texts[-1]) or "").strip()
        when, share = float(number), "." in number
        if len(texts) > 3:
            raise fault(self.text, column, f"the [ {{at}} opens an edit of {len(texts) - 1} texts; it takes one or two")
        if when < 0 or (share and when > 1):
            raise fault(
                self.text, column, f"the [ {{at}} opens an edit at {number}: write a share up to 1.0, or whole steps"
            )
        return _Edit(_texts(texts[0]) if len(texts) == 3 else (), _texts(texts[-2]), when, share)

    def number(self, nodes: tuple[_Node, ...], whose: str) -> tuple[tuple[_Node, ...], float | None]:
        """`x:1.2` as x and 1.2; None if what follows the last colon is a word, for there are titles such as Re:Zero."""
        colon = max((i for i, node in enumerate(nodes) if _mark(node, ":")), default=-1)
        said = _plain(nodes[colon + 1 :])
        if colon < self.least or said is None or not SLIP.fullmatch(said):
            return nodes, None
        if not NUMBER.fullmatch(said) or math.isinf(float(said)):
            column = getattr(nodes[colon], "column", 0)
            found = f"{said.strip()[:20]!r}" if said.strip() else "nothing"
            raise fault(self.text, column, f"the weight {whose} {{at}} is {found}; a number such as 1.2 was expected")
        return nodes[:colon], float(said)

    def lora(self, said: str, column: int) -> Lora:
        name, *numbers = said.removeprefix("<lora:").removesuffix(">").split(":")
        if not said.endswith(">"):
            raise fault(self.text, column, "the < {at} is never closed with >")
        if not name.strip() or len(numbers) > 2 or not all(NUMBER.fullmatch(number) for number in numbers):
            raise fault(self.text, column, f"{said[:60]} {{at}} was expected to read <lora:name:0.8>")
        values = [float(number) for number in numbers] or [1.0]
        if not all(map(math.isfinite, values)):
            raise fault(self.text, column, "the weight of the lora {at} is too large")
        return Lora(name.strip(), values[-1], values[0])


def _mark(node: _Node, sign: str) -> _Mark | None:
    return node if isinstance(node, _Mark) and node.sign == sign else None


def _plain(nodes: Sequence[_Node]) -> str | None:
    """The text of nodes that are nothing else, "" for none; None if there are brackets or marks among them."""
    return None if any(not isinstance(node, str) for node in nodes) else "".join(str(node) for node in nodes)


def _texts(nodes: Iterable[_Node]) -> tuple[_Node, ...]:
    """The nodes once it is known what their brackets mean: marks that are left are letters of the text around them."""
    done: list[_Node] = []
    for node in nodes:
        text = node.sign if isinstance(node, _Mark) else node
        if isinstance(text, str) and done and isinstance(done[-1], str):
            done[-1] += text
        else:
            done.append(text)
    return tuple(done)


def _says(nodes: Sequence[_Node]) -> bool:
    return bool((_plain(nodes) or "").strip()) or any(not isinstance(node, str) for node in nodes)


def _split(nodes: tuple[_Node, ...], sign: str) -> tuple[tuple[_Node, ...], ...]:
    cuts = [i for i, node in enumerate(nodes) if _mark(node, sign)]
    return tuple(nodes[a:b] for a, b in zip([0, *(i + 1 for i in cuts)], [*cuts, len(nodes)], strict=True))


# The tree at one step: a list of pieces.


def _stages(nodes: tuple[_Node, ...], syntax: str, steps: int) -> tuple[Stage, ...]:
    """The pieces of every step, where equal neighbours are one stage."""
    stages: list[Stage] = []
    for end in sorted({steps, *_ends(nodes, steps)}):
        pieces = _tidy(_pieces(nodes, end, steps, (), syntax), syntax)
        if stages and stages[-1].pieces == pieces:
            stages.pop()
        stages.append(Stage(end / steps, pieces))
    return tuple(stages)


def _last(edit: _Edit, steps: int) -> int:
    """The last step, from 1, that reads `before`: a share is rounded down to whole steps."""
    return int(min(steps, edit.when * steps if edit.share else edit.when))


def _ends(nodes: Iterable[_Node], steps: int) -> Iterator[int]:
    """The steps, from 1, after which something may change."""
    for node in nodes:
        if isinstance(node, _Weighted):
            yield from _ends(node.inside, steps)
        elif isinstance(node, _Alternate):
            yield from range(1, steps + 1)
        elif isinstance(node, _Edit):
            yield from (end for end in (_last(node, steps),) if end)
            yield from _ends((*node.before, *node.after), steps)


def _pieces(
    nodes: Iterable[_Node], step: int, steps: int, weights: tuple[float, ...], syntax: str
) -> Iterator[Piece | Break]:
    """What stands at a step, from 1, below brackets of these weights, the outermost first."""
    for node in nodes:
        if isinstance(node, _Weighted):
            around = () if node.fixed and syntax == "comfy" else weights
            yield from _pieces(node.inside, step, steps, (*around, node.weight), syntax)
        elif isinstance(node, _Alternate):
            yield from _pieces(node.options[(step - 1) % len(node.options)], step, steps, weights, syntax)
        elif isinstance(node, _Edit):
            chosen = node.before if step <= _last(node, steps) else node.after
            yield from _pieces(chosen, step, steps, weights, syntax)
        elif isinstance(node, Break):
            yield node
        elif isinstance(node, str):
            yield Piece(node, math.prod(reversed(weights), start=1.0))


def _tidy(found: Iterable[Piece | Break], syntax: str) -> Pieces:
    """Neighbours of one weight become one piece, as in A1111; in ComfyUI each bracket is read by itself."""
    pieces: list[Piece | Break] = []
    for piece in found:
        last = pieces[-1] if pieces and syntax == "a1111" else None
        if isinstance(piece, Piece) and isinstance(last, Piece) and last.weight == piece.weight:
            pieces[-1] = replace(last, text=last.text + piece.text)
        else:
            pieces.append(piece)
    return tuple(pieces) or (Piece(""),)

"""Choices in prompts, made before a prompt is parsed: `{a|b|c}` and `__name__`, a line of a wildcard file.

The k-th choice of a prompt depends on the seed and on k alone, so it stays when words around it change. As the Dynamic
Prompts extension writes them: `{2$$a|b|c}` two different ones, `{1-2$$ and $$a|b|c}` one or two with " and " between,
`{3::a|b}` with a weight. A file has one option a line; lines that begin with # are comments; options nest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from itertools import pairwise

from limner.errors import BadInput, nearest
from limner.models.text.prompt import DEPTH, fault
from limner.rng import seed_of

MOST = 1000  # choices in one prompt: files that call each other could double it at every level
WORDS = re.compile(r"\\(.)|\{|__([A-Za-z0-9][\w\-/. ]*?)__", re.DOTALL)
MARKS = re.compile(r"\\.|[{}|\[\]]", re.DOTALL)
COUNT = re.compile(r"\s*(\d{1,4})(?:-(\d{1,4}))?\$\$(?:([^{}|$]*)\$\$)?")
WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d*)?|\.\d+)::")

_Option = tuple[float, int, int]  # weight, and from where to where in the text


def expand(text: str, seed: int, folder: Traversable | None = None) -> str:
    """The prompt with every choice made, for the picture of this seed.

    The folder, a `pathlib.Path` say, holds the wildcard files: `__animals/cats__` is a line of animals/cats.txt.
    `\\{` and `\\__` are the signs themselves.
    """
    return _Expander(seed, folder).walk(text, 0, len(text), (), 0)


class _Expander:
    def __init__(self, seed: int, folder: Traversable | None) -> None:
        self.seed, self.folder = seed, folder
        self.made = 0  # choices

    def walk(self, text: str, start: int, end: int, trail: tuple[str, ...], depth: int) -> str:
        """text[start:end] expanded; the trail is the wildcards whose lines this stands in, the outermost first."""
        if depth > DEPTH:
            raise fault(text, start, f"choices are nested more than {DEPTH} deep {{at}}")
        done: list[str] = []
        at = start
        while word := WORDS.search(text, at, end):
            done.append(text[at : word.start()])
            at = word.end()
            if word[1]:
                done.append(word[1] if word[1] in "{}_" else word[0])
            elif word[2]:
                done.append(self.line(word[2], text, word.start(), trail, depth))
            else:
                close, bars = _braces(text, word.start(), end)
                done.append(self.braces(text, word.start(), close, bars, trail, depth))
                at = close + 1
        return "".join([*done, re.sub(r"\\(})", r"\1", text[at:end])])

    def braces(self, text: str, start: int, close: int, bars: list[int], trail: tuple[str, ...], depth: int) -> str:
        """What `{...}` from start to close becomes; braces without `|` and `$$` are text."""
        count = COUNT.match(text, start + 1, close)
        if not bars and not count:
            return "{" + self.walk(text, start + 1, close, trail, depth + 1) + "}"
        first = count.end() if count else start + 1
        cuts = [first - 1, *(bar for bar in bars if bar >= first), close]
        options = [_weighed(text, a + 1, b) for a, b in pairwise(cuts)]
        least = int(count[1]) if count else 1
        most = int(count[2]) if count and count[2] else least
        able = sum(weight > 0 for weight, _, _ in options)
        if not least <= most <= able:
            asked = f"{least} to {most}" if most != least else f"{least}"
            raise fault(text, start, f"the {{ {{at}} asks for {asked} of {able} options")
        many = least + int(self.draw(text, start) * (most - least + 1)) if most > least else least
        chosen = [self.walk(text, a, b, trail, depth + 1) for _, a, b in self.choose(options, many, text, start)]
        return (count[3] if count and count[3] is not None else ", ").join(chosen)

    def line(self, name: str, text: str, column: int, trail: tuple[str, ...], depth: int) -> str:
        """A line of the wildcard file of this name, expanded too."""
        if name in trail:
            raise fault(
                text, column, f"the wildcard {name!r} {{at}} leads back to itself: {' > '.join((*trail, name))}"
            )
        lines = [line.strip() for line in self.read(name, text, column).splitlines()]
        options = [(line, *_weighed(line, 0, len(line))) for line in lines if line and not line.startswith("#")]
        options = [option for option in options if option[1] > 0]
        if not options:
            raise fault(text, column, f"the wildcard {name!r} {{at}} has a file without options")
        numbered = [(weight, i, 0) for i, (_, weight, _, _) in enumerate(options)]
        line, _, start, end = options[self.choose(numbered, 1, text, column)[0][1]]
        try:
            return self.walk(line, start, end, (*trail, name), depth + 1)
        except BadInput as error:
            raise BadInput(f"in the wildcard {name!r}: {error}") from error

    def read(self, name: str, text: str, column: int) -> str:
        if self.folder is None:
            raise fault(
                text, column, f"the wildcard {name!r} {{at}} asks for a folder of wildcard files, and none is given"
            )
        parts = name.split("/")
        if any(not part or part.startswith(".") for part in parts):
            raise fault(text, column, f"the wildcard {name!r} {{at}} names no file inside the folder")
        file = self.folder
        for part in (*parts[:-1], f"{parts[-1]}.txt"):
            file = file.joinpath(part)
        if not file.is_file():
            known = sorted(_names(self.folder, ""))
            raise fault(text, column, f"no wildcard {{at}} is called {name!r}: {nearest(name, known)}")
        try:
            return file.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the file of the wildcard {name!r} is not readable as UTF-8: {error}") from error

    def choose(self, options: list[_Option], many: int, text: str, column: int) -> list[_Option]:
        """So many different options, each drawn by its weight among those that are left."""
        left, chosen = [option for option in options if option[0] > 0], []
        for _ in range(many):
            mark = self.draw(text, column) * sum(weight for weight, _, _ in left)
            i = 0
            while i < len(left) - 1 and mark >= left[i][0]:
                mark -= left[i][0]
                i += 1
            chosen.append(left.pop(i))
        return chosen

    def draw(self, text: str, column: int) -> float:
        """A number in [0, 1) of the seed and of how many were drawn before."""
        if self.made == MOST:
            raise fault(text, column, f"the prompt makes more than {MOST} choices; the first too many is {{at}}")
        self.made += 1
        return (seed_of(self.seed, "choice", self.made) >> 10) / 2**53


def _weighed(text: str, start: int, end: int) -> _Option:
    """The weight of an option, `3::a`, 1 if it has none, and where its words stand."""
    weight = WEIGHT.match(text, start, end)
    return (float(weight[1]), weight.end(), end) if weight else (1.0, start, end)


def _braces(text: str, start: int, end: int) -> tuple[int, list[int]]:
    """Where the brace at start closes, and the bars between its options; `[a|b]` inside an option keeps its bar."""
    braces, squares = 0, 0
    bars: list[int] = []
    for mark in MARKS.finditer(text, start, end):
        sign = mark[0]
        braces += (sign == "{") - (sign == "}")
        if braces == 0:
            return mark.start(), bars
        if braces == 1:
            squares = max(0, squares + (sign == "[") - (sign == "]"))
            if sign == "|" and squares == 0:
                bars.append(mark.start())
    raise fault(text, start, "the { {at} is never closed; a brace as a letter is written \\{")


def _names(folder: Traversable, under: str) -> Iterator[str]:
    """The wildcards that a folder has."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            yield from _names(entry, f"{under}{entry.name}/")
        elif entry.name.endswith(".txt"):
            yield under + entry.name.removesuffix(".txt")

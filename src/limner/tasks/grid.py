"""Plots of recipes: any field of a recipe along x and y, and a plot for each value along z.

axes = [parse_axis("cfg=3,5,7", recipe), parse_axis("sampler=euler,dpmpp_2m", recipe)]
plot = grid(recipe, axes)
for cell in plot.cells:
    pictures[cell.at] = ...  # painted from cell.recipe
plot.draw(pictures).save("plot.png")
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from PIL import Image
from pydantic import BaseModel

from limner.board import labelled_grid, side_by_side
from limner.errors import BadInput, UnknownName
from limner.recipe import EFFORTS, Recipe, spent

MOST = 10_000  # cells of a plot, and values of an axis: a slip of the finger should not fill a disk
ALIASES = {  # what people type -> the field
    "cfg": "cfg_scale", "guidance_scale": "cfg_scale", "guidance_rescale": "cfg_rescale", "scheduler": "schedule",
    "sampling_method": "sampler", "num_inference_steps": "steps", "negative_prompt": "negative", "rng": "noise",
    "with": "parts", "vae": "parts", "embedding": "embeddings", "allow_partial": "partial", "taesd": "fast_decode",
    "slg_scale": "skip_scale", "denoising_strength": "strength", "w": "width", "h": "height",
}  # fmt: skip
FAMILIAR = {field: alias for alias, field in (("cfg", "cfg_scale"), ("scheduler", "schedule"))}  # on labels
SEVERAL = {  # a word that says several fields at once
    "size": ("width", "height"),
    "effort": tuple({field: None for fields in EFFORTS.values() for field in fields}),
}
COSTLY = (  # what takes longest to change comes first, and varies slowest
    ("model", "parts", "partial", "prediction", "embeddings", "refiner", "precision", "engine"),
    ("controls", "picture_prompts", "upscaler", "fast_decode", "best_of"),
    ("size", "width", "height", "steps", "sampler", "schedule"),
)
SIZE = re.compile(r"(\d{1,6})(?:\s*[xX×*]\s*(\d{1,6}))?")
RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?")
SWAP = re.compile(r"s/(.+?)/(.+?)/?", re.DOTALL)


@dataclass(frozen=True)
class Axis:
    """One field and the values that it takes."""

    field: str  # of the recipe, or one of SEVERAL
    values: tuple[Any, ...]
    labels: tuple[str, ...]
    swap: str = ""  # words of the prompt which each value replaces: prompt S/R

    def changes(self, i: int, recipe: Recipe) -> dict[str, Any]:
        """The fields that value i changes."""
        value = self.values[i]
        if self.field in SEVERAL:
            return dict(zip(SEVERAL[self.field], value, strict=True))
        if not self.swap:
            return {self.field: value}
        if self.swap not in recipe.prompt:
            raise BadInput(f"the prompt {recipe.prompt!r} holds no {self.swap!r} to replace")
        return {"prompt": recipe.prompt.replace(self.swap, value)}


@dataclass(frozen=True)
class Cell:
    at: tuple[int, ...]  # which value of each axis
    recipe: Recipe


@dataclass(frozen=True)
class Grid:
    """The recipes of a plot, in the order to paint them in: what is costly to change changes least often."""

    axes: tuple[Axis, ...]  # x, y, z
    cells: tuple[Cell, ...]

    def draw(
        self,
        pictures: Mapping[tuple[int, ...], Image.Image],
        title: str = "",
        side: int = 0,
        stacked: bool = False,
        font: Path | None = None,
    ) -> Image.Image:
        """The plot, with labels; cells without a picture stay empty. Plots along z lie side by side, or stacked."""
        x, y, z = (self.axes[i].labels if i < len(self.axes) else ("",) for i in range(3))
        boards = []
        for k, name in enumerate(z):
            at = [[(i, j, k)[: len(self.axes)] for i in range(len(x))] for j in range(len(y))]
            rows = [[pictures.get(cell) for cell in row] for row in at]
            head = ", ".join(part for part in (title, name) if part)
            boards.append(labelled_grid(rows, y, x, head, side, font))
        return side_by_side(boards, stacked) if len(boards) > 1 else boards[0]

    def to_json(self, files: Mapping[tuple[int, ...], str] | None = None) -> str:
        """The axes, and of every cell its place, its recipe and, where it is given, its file."""
        names = "xyz"[: len(self.axes)]
        axes = {name: {"field": axis.field, "labels": axis.labels} for name, axis in zip(names, self.axes, strict=True)}
        cells: list[dict[str, Any]] = []
        for cell in self.cells:
            told: dict[str, Any] = dict(zip(names, cell.at, strict=True))
            if files and cell.at in files:
                told["file"] = files[cell.at]
            cells.append(told | {"id": cell.recipe.id, "recipe": cell.recipe.model_dump(mode="json")})
        return json.dumps({"axes": axes, "cells": cells}, indent=1, ensure_ascii=False)


def grid(recipe: Recipe, axes: Sequence[Axis]) -> Grid:
    """Every recipe that one to three axes span around a recipe, each checked."""
    if not 1 <= len(axes) <= 3:
        raise BadInput(f"a plot has one to three axes, not {len(axes)}")
    count = functools.reduce(lambda product, axis: product * len(axis.values), axes, 1)
    if count > MOST:
        raise BadInput(f"the plot would have {count:,} pictures; at most {MOST:,} are painted")
    kinds = [axis.field if not axis.swap else f"prompt {axis.swap}" for axis in axes]
    changed = [field for kind in kinds for field in SEVERAL.get(kind, (kind,))]
    if len(set(changed)) < len(changed):
        raise BadInput(f"two axes change the same field: {', '.join(kinds)}")
    slow = sorted(range(len(axes)), key=lambda i: (_cheapness(axes[i]), -i))  # the slowest first; of equals, z then y
    cells = []
    for turn in itertools.product(*(range(len(axes[i].values)) for i in slow)):
        at = tuple(turn[slow.index(i)] for i in range(len(axes)))
        cells.append(Cell(at, _changed(recipe, axes, at)))
    return Grid(tuple(axes), tuple(cells))


def _changed(recipe: Recipe, axes: Sequence[Axis], at: Sequence[int]) -> Recipe:
    """The recipe of a cell; words are replaced in the prompt that another axis may have set."""
    plain = [axis.changes(i, recipe) for axis, i in zip(axes, at, strict=True) if not axis.swap]
    made = recipe.but(**{name: value for change in plain for name, value in change.items()})
    for axis, i in zip(axes, at, strict=True):
        if axis.swap:
            made = made.but(**axis.changes(i, made))
    return made


def _cheapness(axis: Axis) -> int:
    return next((i for i, fields in enumerate(COSTLY) if axis.field in fields), len(COSTLY))


def parse_axis(text: str, recipe: Recipe | None = None) -> Axis:
    """An axis from "cfg=3,5,7", "seed=1..8", "steps=4..20:4", "size=128x128,256x128" or "s/red/green,blue/".

    Values are parted by commas, or by | where there is one; prompts by | alone. A range ends with its last number.
    Lists of numbers are written 7+8+9 and intervals 0.1-1; where | parts the values, commas do for both. With
    `s/red/green,blue/` words of the prompt are replaced. The recipe is what each value is checked with.
    """
    base = recipe or Recipe()
    name, equals, told = text.partition("=")
    if (found := SWAP.fullmatch(text.strip())) or (equals and (found := SWAP.fullmatch(told.strip()))):
        if equals and not text.strip().startswith("s/") and field_of(name) != "prompt":
            raise BadInput(f"words are replaced in the prompt alone, not in {name.strip()}")
        words = tuple(_parted(found[2]))
        return Axis("prompt", words, words, found[1])
    if not equals or not told.strip():
        raise BadInput(f"an axis looks like cfg=3,5,7, not {text!r}")
    field = field_of(name)
    texts = _texts(field, told)
    values = tuple(value_of(field, value, base) for value in texts)
    called = "" if field in ("prompt", "negative", "size") else f"{FAMILIAR.get(field, field)} "
    return Axis(field, values, tuple(f"{called}{value or '(none)'}" for value in texts))


def field_of(name: str) -> str:
    """The field of a recipe that a name means, the command line's spelling included, or one of SEVERAL."""
    plain = name.strip().strip("-").lower().replace("-", "_").replace(" ", "_")
    field = ALIASES.get(plain, plain)
    known = {*Recipe.model_fields, *SEVERAL} - {"version"}
    if field not in known:
        raise UnknownName("field of a recipe", name.strip(), known | {*ALIASES})
    return field


def value_of(field: str, text: str, recipe: Recipe | None = None) -> Any:
    """The value of a field from its text, as a recipe takes it; of one of SEVERAL, the values of its fields."""
    text = text.strip()
    if field == "size":
        if not (found := SIZE.fullmatch(text)):
            raise BadInput(f"size should look like 128x128, not {text!r}")
        width, height = int(found[1]), int(found[2] or found[1])
        (recipe or Recipe()).but(width=width, height=height)
        return width, height
    if field == "effort":
        made = Recipe.of({"late": (recipe or Recipe()).late} | spent({"effort": text}))
        return tuple(getattr(made, name) for name in SEVERAL[field])
    value: Any = _read(field, text)
    if field in ("sampler", "schedule"):
        value = _registered(field, value)
    return getattr((recipe or Recipe()).but(**{field: value}), field)


def _read(field: str, text: str) -> Any:
    """What pydantic is given: members of a list one by one, JSON of parts of a recipe, any other text as it stands."""
    if field == "style" and text.lower() in ("any", "none", ""):
        return None
    member = _member(field)
    if member is None:
        return text
    if text.lower() in ("", "none", "[]"):
        return ()
    if issubclass(member, BaseModel):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{field} is written as JSON, such as {_example(member)}, not {text!r}") from error
        return found if isinstance(found, list) else [found]
    parts = re.split(r"[,;]" if member is str else r"[-+,;]", text)
    return [part.strip() for part in parts if part.strip()]


@functools.cache
def _member(field: str) -> type | None:
    """What the tuple of a field holds; None where it is no tuple."""
    kind = Recipe.model_fields[field].annotation
    if get_origin(kind) is not tuple:
        return None
    first = get_args(kind)[0]
    return next((part for part in (first, *get_args(first)) if isinstance(part, type)), str)


def _example(member: type[BaseModel]) -> str:
    return json.dumps({name: "..." for name, field in member.model_fields.items() if field.is_required()})


@functools.cache
def _is_number(field: str) -> bool:
    kind = Recipe.model_fields[field].annotation
    return bool({int, float} & set(get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)))


def _registered(field: str, name: str) -> str:
    from limner.diffusion.samplers import SAMPLERS
    from limner.diffusion.times import SCHEDULES

    return SAMPLERS.name(name) if field == "sampler" else SCHEDULES.name(name)


def _texts(field: str, told: str) -> list[str]:
    """The values of an axis, one by one."""
    texts = _parted(told, "|" if field in ("prompt", "negative", "toward") else "")
    if field in SEVERAL or not _is_number(field):
        return texts
    return [one for text in texts for one in _ranged(text.strip())]


def _parted(text: str, mark: str = "") -> list[str]:
    """The text cut at each mark outside brackets: | where there is one, else the comma."""
    parts = _cut(text, "|")
    if len(parts) == 1 and not mark:
        parts = _cut(text, ",")
    if any(not part.strip() for part in parts) and len(parts) > 1 and not mark:
        raise BadInput(f"there is an empty value in {text!r}")
    if len(parts) > MOST:
        raise BadInput(f"an axis has at most {MOST:,} values, not {len(parts):,}")
    return [part.strip() for part in parts]


def _cut(text: str, mark: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth = max(0, depth + (sign in "([{") - (sign in ")]}"))
        if sign == mark and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _ranged(text: str) -> list[str]:
    """1..8 and 4..20:4 in full, the end included; steps are exact, so 1..2:0.1 has no 1.2000000000000002."""
    if not (found := RANGE.fullmatch(text)):
        return [text]
    start, end, step = Decimal(found[1]), Decimal(found[2]), Decimal(found[3] or "1")
    if not step:
        raise BadInput(f"the step of a range should not be 0, as it is in {text!r}")
    count = int(abs(end - start) / step) + 1
    if count > MOST:
        raise BadInput(f"{text} has {count:,} values; an axis has at most {MOST:,}")
    sign = 1 if end >= start else -1
    return [f"{(start + sign * step * i).normalize():f}" for i in range(count)]

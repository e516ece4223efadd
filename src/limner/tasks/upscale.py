"""A picture made larger, and painted over in tiles that share one field of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from limner.enlarge import enlarge
from limner.errors import BadInput
from limner.image import Original, to_pil
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.tasks.canvas import lay
from limner.tasks.edit import of_size, on_canvas, picture_size
from limner.tasks.task import TASKS, Beside, Prepared, Task, affordable

STRENGTH = 0.3  # details are painted, forms stay


def likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    width, height = picture_size(wishes)
    scale = float(wishes.get("scale", 2.0))
    size = round(width * scale), round(height * scale)
    affordable(*size, f"{width}x{height} times {scale:g}")
    window = min(model.defaults.size)
    return of_size(wishes, *size) | {"scale": scale, "strength": STRENGTH, "window": window}


def prepare(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    boss = recipes[0]
    if beside.original is None:
        raise BadInput("the recipe names no picture to upscale")
    larger = enlarged(beside.original, boss, beside)
    return on_canvas(model, recipes, beside, lay(larger, model), boss.strength)


def enlarged(original: Original, recipe: Recipe, beside: Beside) -> Original:
    """The picture in its new size, in sRGB."""
    picture = enlarge(original.picture, recipe.scale, beside.upscaler)
    return replace(original, picture=picture, image=to_pil(picture).convert(original.image.mode), icc=None)


TASKS.add("upscale")(Task(prepare, likes))

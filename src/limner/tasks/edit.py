"""A picture and words to a picture: image to image (SDEdit), and checkpoints that edit as they are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner.errors import BadInput
from limner.image import open_picture
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.tasks.canvas import Canvas, lay
from limner.tasks.paint import from_latents, from_noise
from limner.tasks.task import TASKS, Beside, Prepared, Task

STRENGTH = 0.6  # enough to follow the words, little enough to keep the composition


def picture_size(wishes: dict[str, Any]) -> tuple[int, int]:
    """Width and height of the picture that a task starts from."""
    if not wishes.get("image"):
        raise BadInput(f"no picture was given to {wishes['task']}")
    return open_picture(Path(str(wishes["image"])).expanduser()).size


def of_size(wishes: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """The fields of a size that follows from the picture, which is no matter of wishes."""
    asked = (wishes.get("width", width), wishes.get("height", height))
    if asked != (width, height):
        task, wanted = wishes["task"], f"{asked[0]}x{asked[1]}"
        raise BadInput(f"the size of {task} follows from its picture: {width}x{height}; {wanted} was asked for")
    return {"width": width, "height": height}


def likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    return of_size(wishes, *picture_size(wishes)) | {"strength": 1.0 if model.variant == "edit" else STRENGTH}


def prepare(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    boss = recipes[0]
    if beside.original is None:
        raise BadInput("the recipe names no picture to edit")
    canvas = lay(beside.original, model)
    return on_canvas(model, recipes, beside, canvas, boss.strength)


def on_canvas(model: Model, recipes: Sequence[Recipe], beside: Beside, canvas: Canvas, strength: float) -> Prepared:
    """The walk that starts from what lies on a canvas."""
    side = model.family.latent.factor
    shape = (model.family.latent.channels, canvas.height // side, canvas.width // side)
    picture = canvas.picture
    depth = beside.depth if model.variant == "depth" else picture
    fill = canvas.fill if canvas.mask is not None else None
    image = model.beside(*shape[1:], picture=depth, mask=fill) if model.variant != "base" else None
    if strength == 1:
        start = from_noise(model, recipes, beside, shape, image)
    else:
        start = from_latents(model, recipes, beside, [model.to_latent(picture)], strength, image)
    return replace(start, canvas=canvas)


TASKS.add("edit", "img2img")(Task(prepare, likes))

"""Parts of a picture painted anew, and pictures that go on beyond their borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.diffusion.wrap import pinned
from limner.errors import BadInput
from limner.image import Original, read_original
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.tasks.canvas import Box, lay, spread
from limner.tasks.edit import of_size, on_canvas, picture_size
from limner.tasks.masks import fill_of
from limner.tasks.task import TASKS, Beside, Prepared, Task, affordable


def inpaint_likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    width, height = picture_size(wishes)
    if not wishes.get("mask"):
        raise BadInput('no mask was given; it is a file, "x,y,w,h" in pixels, or "alpha"')
    mask = fill_of(str(wishes["mask"]), read_original(Path(str(wishes["image"])).expanduser()))
    if not mask.any():
        raise BadInput(f"the mask {wishes['mask']} is empty: nothing is to be painted")
    return of_size(wishes, width, height) | {"feather": max(2, min(width, height) // 32)}


def prepare_inpaint(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    boss = recipes[0]
    if beside.original is None or beside.mask is None:
        raise BadInput("the recipe names no picture, or no mask, to inpaint")
    clear = beside.original.picture[3] * beside.mask == 0  # keeping alpha there would hide all that is painted
    opaque = boss.mask == "alpha" or bool(clear.all())
    return filled(model, recipes, beside, beside.original, beside.mask, _box(beside.mask, boss), opaque=opaque)


def outpaint_likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    width, height = picture_size(wishes)
    left, right, up, down = wishes.get("extend", (0, 0, 0, 0))
    if left + right + up + down == 0:
        raise BadInput("the picture is to be extended nowhere; say how many pixels to the left, right, up or down")
    size = (width + left + right, height + up + down)
    affordable(*size, "the extended picture")
    return of_size(wishes, *size) | {"feather": max(2, min(width, height) // 16)}


def prepare_outpaint(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    boss = recipes[0]
    if beside.original is None:
        raise BadInput("the recipe names no picture to outpaint")
    wider, mask = extended(beside.original, boss.extend)
    return filled(model, recipes, beside, wider, mask, None, soft=False, opaque=True)


def filled(
    model: Model,
    recipes: Sequence[Recipe],
    beside: Beside,
    original: Original,
    mask: Tensor,
    box: Box | None,
    soft: bool = True,
    opaque: bool = False,
) -> Prepared:
    """The walk that fills a mask, H W; with `soft` old and new are blended around it. opaque: what an opaque family
    paints is seen, also where the picture was clear."""
    boss = recipes[0]
    canvas = lay(original, model, box, enlarge=box is not None)
    wide = spread(mask, boss.feather) if soft else mask
    canvas = replace(canvas, mask=wide, feather=boss.feather, alpha=canvas.alpha or opaque)
    start = on_canvas(model, recipes, beside, canvas, boss.strength)
    if model.variant == "inpaint":  # it is told the mask and what is around it
        return start
    known, cells = model.to_latent(canvas.picture), canvas.cells(model.family.latent.factor)
    x = start.x
    if len(start.times) > boss.steps:  # of the whole walk: what is known starts from itself
        t = start.times[0]
        x = torch.where(cells.to(x) > 0, x, model.path.noisy(known, x, t))
    cells = cells.to(x)

    def end(last: Tensor) -> Tensor:  # some schedules end a little before the picture
        return torch.where(cells > 0, last, known)

    return replace(start, x=x, denoiser=pinned(start.denoiser, known, cells), end=end)


def _box(mask: Tensor, recipe: Recipe) -> Box | None:
    """What is around the mask, where only that is to be painted."""
    if not recipe.only_masked:
        return None
    h, w = mask.shape
    rows, columns = mask.amax(1).nonzero()[:, 0], mask.amax(0).nonzero()[:, 0]
    more = recipe.padding + recipe.feather
    top, left = max(0, int(rows[0]) - more), max(0, int(columns[0]) - more)
    return top, left, min(h, int(rows[-1]) + 1 + more) - top, min(w, int(columns[-1]) + 1 + more) - left


def extended(original: Original, extend: tuple[int, int, int, int]) -> tuple[Original, Tensor]:
    """The picture on a larger canvas, its border drawn out, and the mask of what is new, H W."""
    left, right, up, down = extend
    h, w = original.picture.shape[1:]
    picture = F.pad(original.picture[None], (left, right, up, down), mode="replicate")[0]
    pixels = np.pad(np.asarray(original.image), ((up, down), (left, right), (0, 0)), mode="edge")
    image = Image.fromarray(pixels, original.image.mode)
    mask = torch.ones(picture.shape[1:])
    mask[up : up + h, left : left + w] = 0
    return replace(original, picture=picture, image=image), mask


TASKS.add("inpaint")(Task(prepare_inpaint, inpaint_likes))
TASKS.add("outpaint")(Task(prepare_outpaint, outpaint_likes))

"""Seamless textures: the right border goes on at the left, the lower one at the upper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from limner.pipeline import Model
from limner.recipe import Recipe
from limner.tasks.paint import from_noise
from limner.tasks.task import TASKS, Beside, Prepared, Task


def likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    width, height = model.defaults.size
    return {"width": width, "height": height, "seamless": "xy"}


def prepare(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    """UNets go around in their convolutions; transformers, and pictures larger than the family paints whole, are
    painted in windows that go around. The autoencoder goes around in either."""
    boss = recipes[0]
    around = replace(model, around=("x" in boss.seamless, "y" in boss.seamless))
    step, factor = model.family.latent.multiple, model.family.latent.factor
    if boss.width <= model.family.sizes[1] and boss.height <= model.family.sizes[1]:
        shape = model.latent_shape(boss.height, boss.width)
    else:
        model.latent_shape(*(min(side, model.family.sizes[1]) // step * step for side in (boss.height, boss.width)))
        shape = (model.family.latent.channels, boss.height // factor, boss.width // factor)
    return replace(from_noise(around, recipes, beside, shape), model=around)


TASKS.add("tile", "texture")(Task(prepare, likes))

"""Seamless textures: the right border goes on at the left, the lower one at the upper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from limner.errors import BadInput
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.tasks.paint import from_noise
from limner.tasks.task import TASKS, Beside, Prepared, Task, affordable


def likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    width, height = model.defaults.size
    size = wishes.get("width", width), wishes.get("height", height)
    affordable(*size, "the texture")
    _shape(model, *size[::-1])
    return {"width": width, "height": height, "seamless": "xy"}


def prepare(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    """UNets go around in their convolutions; transformers, and pictures larger than the family paints whole, are
    painted in windows that go around. The autoencoder goes around in either."""
    boss = recipes[0]
    around = replace(model, around=("x" in boss.seamless, "y" in boss.seamless))
    return replace(from_noise(around, recipes, beside, _shape(model, boss.height, boss.width)), model=around)


def _shape(model: Model, height: int, width: int) -> tuple[int, int, int]:
    """C h w of a texture's latents, which may be larger than the family paints whole; refuses what is off its grid."""
    most, spec = model.family.sizes[1], model.family.latent
    if max(height, width) > most and (height % spec.multiple or width % spec.multiple):
        raise BadInput(
            f"the sides of a {model.family.name} texture are multiples of {spec.multiple}, not {width}x{height}"
        )
    channels, *_ = model.latent_shape(min(height, most), min(width, most))
    return channels, height // spec.factor, width // spec.factor


TASKS.add("tile", "texture")(Task(prepare, likes))

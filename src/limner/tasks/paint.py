"""Words to pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limner.diffusion.guide import guided
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import SCHEDULES, times
from limner.errors import BadInput
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.rng import Noise
from limner.types import Denoiser, Step

BATCH = 8  # pictures that walk together; more would take memory and save no time


@dataclass(frozen=True)
class Prepared:
    x: Tensor  # B C h w
    denoiser: Denoiser
    times: list[float]
    noise: Noise


@dataclass(frozen=True)
class Painted:
    """One finished picture and the recipe that repeats it alone."""

    recipe: Recipe
    picture: Tensor  # 4 H W in [0, 1], premultiplied
    seed: int  # the recipe's own; with best_of, that of the seeds tried which was kept


def begin(model: Model, /, **wishes: Any) -> Recipe:
    """A recipe with what the model's family likes, where the wishes say nothing; names are brought to one spelling.

    Refuses what this model cannot paint, before anything is painted.
    """
    ours = model.family.defaults
    width, height = ours.size
    likes = {"width": width, "height": height, "steps": ours.steps, "sampler": ours.sampler, "schedule": ours.schedule}
    likes |= {"cfg_scale": ours.cfg_scale, "cfg_interval": ours.cfg_interval}
    recipe = Recipe.of(likes | wishes)
    model.latent_shape(recipe.height, recipe.width)
    model.style_number(recipe.style)
    if recipe.best_of > 1:
        if not recipe.prompt:
            raise BadInput("best_of keeps the picture that is most like the prompt, and the prompt is empty")
        model.eye  # noqa: B018  refuses where there is none
    return recipe.but(sampler=SAMPLERS.name(recipe.sampler), schedule=SCHEDULES.name(recipe.schedule))


def prepare(model: Model, recipe: Recipe, count: int = 1) -> Prepared:
    """The start of `count` pictures of a recipe, with seeds from the recipe's on."""
    noise = Noise(recipe.seed)
    x = noise(count, *model.latent_shape(recipe.height, recipe.width)).to(model.place.device)
    positive = model.denoiser(model.encode([recipe.prompt], recipe.style))
    negative = model.denoiser(model.encode([recipe.negative]))
    scale = recipe.cfg_scale if recipe.prompt or recipe.style or recipe.negative else 1.0
    denoiser = guided(positive, negative, scale, recipe.cfg_interval, recipe.cfg_rescale)
    return Prepared(x, denoiser, times(recipe.steps, recipe.schedule, model.path), noise)


def run(model: Model, recipe: Recipe, count: int = 1) -> Iterator[Step]:
    """The walk of a recipe: progress, previews and cancelling belong to who consumes it."""
    start = prepare(model, recipe, count)
    return SAMPLERS[recipe.sampler](start.denoiser, model.path, start.x, start.times, start.noise)


def walks(recipe: Recipe, count: int = 1) -> list[tuple[Recipe, int]]:
    """How `painting` goes about `count` pictures: recipes with the first seed of each batch, and the batch's size."""
    seeds = count * recipe.best_of
    return [(recipe.but(seed=recipe.seed + i), min(BATCH, seeds - i)) for i in range(0, seeds, BATCH)]


def painting(model: Model, recipe: Recipe, count: int = 1) -> Iterator[Step | list[Painted]]:
    """Every step of every batch, and after each batch the pictures that are finished with it.

    Picture i takes the seed that comes i after the recipe's; with best_of N it tries N seeds, from i * N after on.
    """
    each = recipe.best_of
    tried: list[Tensor] = []
    done = 0
    for start, size in walks(recipe, count):
        for step in run(model, start, size):
            yield step
        tried += model.to_image(step.x)
        finished = []
        while len(tried) >= each:
            own = recipe.but(seed=recipe.seed + done * each)
            kept = best(model, torch.stack(tried[:each]), own.prompt) if each > 1 else 0
            finished.append(Painted(own, tried[kept], own.seed + kept))
            tried, done = tried[each:], done + 1
        yield finished


def best(model: Model, pictures: Tensor, prompt: str) -> int:
    """The number of the picture that the eye finds most like the prompt."""
    return int(model.likeness(pictures, [prompt])[:, 0].argmax())


def paint(model: Model, recipe: Recipe, count: int = 1) -> Tensor:
    """`count` finished pictures, B 4 H W in [0, 1], premultiplied."""
    events = painting(model, recipe, count)
    return torch.stack([one.picture for event in events if isinstance(event, list) for one in event])

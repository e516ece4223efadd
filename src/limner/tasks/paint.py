"""Words to pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.diffusion.guide import guided
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import times
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.rng import Noise
from limner.types import Denoiser, Step


@dataclass(frozen=True)
class Prepared:
    x: Tensor  # B C h w
    denoiser: Denoiser
    times: list[float]
    noise: Noise


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


def finish(model: Model, step: Step) -> Tensor:
    """The picture of a step's latents: B 4 H W in [0, 1], premultiplied."""
    return model.to_image(step.x)


def best(model: Model, pictures: Tensor, prompt: str) -> Sequence[int]:
    """The pictures' numbers, the one that the eye finds most like the prompt first."""
    return model.likeness(pictures, [prompt])[:, 0].argsort(descending=True).tolist()


def paint(model: Model, recipe: Recipe, count: int = 1) -> Tensor:
    """`count` finished pictures, B 4 H W, premultiplied; with best_of, of as many seeds each the best."""
    kept = []
    for number in range(count) if recipe.best_of > 1 else [0]:
        many = recipe.best_of if recipe.best_of > 1 else count
        one = recipe.but(seed=recipe.seed + number * many) if recipe.best_of > 1 else recipe
        *_, last = run(model, one, many)
        pictures = finish(model, last)
        kept.append(pictures[best(model, pictures, recipe.prompt)[:1]] if recipe.best_of > 1 else pictures)
    return torch.cat(kept)

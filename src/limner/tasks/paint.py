"""Words to pictures, and a second pass over an enlarged one (`hires`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from limner.diffusion.guide import staged
from limner.diffusion.times import times
from limner.enlarge import enlarge
from limner.errors import BadInput
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.rng import Noise, stream_of
from limner.tasks.canvas import resized
from limner.tasks.guidance import guidance
from limner.tasks.task import TASKS, Beside, Prepared, Task, affordable


def likes(model: Model, wishes: dict[str, Any]) -> dict[str, Any]:
    width, height = model.defaults.size
    if (factor := float(wishes.get("hires", 1.0))) > 1:
        affordable(factor * wishes.get("width", width), factor * wishes.get("height", height), "the enlarged picture")
    return {"width": width, "height": height}


def prepare(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Prepared:
    """The start of pictures from noise alone."""
    boss = recipes[0]
    start = from_noise(model, recipes, beside, model.latent_shape(boss.height, boss.width))
    if boss.hires == 1:
        return start

    def again(x: Tensor) -> Prepared:
        pictures = model.to_image(x)
        h, w = (_fit(model, side * boss.hires) for side in pictures.shape[2:])
        larger = (enlarge(picture, boss.hires, beside.upscaler)[None] for picture in pictures)
        latents = [model.to_latent(resized(picture, h, w)) for picture in larger]
        return from_latents(model, recipes, beside, latents, boss.hires_strength)

    return replace(start, then=again)


def _fit(model: Model, side: float) -> int:
    step = model.family.latent.multiple
    return max(step, round(side / step) * step)


def noise_of(recipes: Sequence[Recipe]) -> Noise:
    """A stream for each recipe, each leaning to another seed where its recipe says so."""
    streams = [stream_of(recipe.seed, recipe.noise, recipe.subseed, recipe.variation) for recipe in recipes]
    return Noise(recipes[0].seed, recipes[0].noise, streams)


def stations_of(model: Model, recipe: Recipe) -> list[float]:
    return times(recipe.steps, recipe.schedule, model.path)


def from_noise(
    model: Model,
    recipes: Sequence[Recipe],
    beside: Beside,
    shape: tuple[int, int, int],
    image: Tensor | None = None,
    first: int = 0,
) -> Prepared:
    """The whole walk, for latents of a shape C h w; image: what is laid beside x; first: where it will be begun."""
    boss, noise = recipes[0], noise_of(recipes)
    stations = stations_of(model, boss)
    image = model.beside(*shape[1:], picture=beside.depth) if image is None else image
    denoiser = guidance(model, recipes, stations, shape, beside, image, first)
    decoder = None
    if boss.refiner:
        if beside.refiner is None:
            raise BadInput(f"the recipe hands over to {boss.refiner!r}, which is not loaded")
        decoder = replace(beside.refiner, around=model.around)
        alone = replace(beside, controls=(), pictures=())  # those were made for the other UNet
        handover = stations[round(boss.refine_at * boss.steps)]
        denoiser = staged([(handover, denoiser), (0.0, guidance(decoder, recipes, stations, shape, alone))])
    return Prepared(noise(len(recipes), *shape).to(model.place.device), denoiser, stations, noise, model=decoder)


def from_latents(
    model: Model,
    recipes: Sequence[Recipe],
    beside: Beside,
    latents: Sequence[Tensor],
    strength: float,
    image: Tensor | None = None,
) -> Prepared:
    """The end of a walk, from latents (1 C h w for each recipe, or one for all) with the noise of that time.

    A share `strength` of the steps is walked, at least one where it is not 0 (SDEdit: Meng et al. 2021, arXiv
    2108.01073); at 1 nothing of the latents is left.
    """
    shape = tuple(latents[0].shape[1:])
    steps = recipes[0].steps
    walked = recipes[0].walked(strength)
    whole = from_noise(model, recipes, beside, shape, image, steps - walked)  # type: ignore[arg-type]
    if walked == steps:
        return whole
    stations = whole.times[steps - walked :]
    z = latents[0].new_empty(len(recipes), *shape)
    for row, each in zip(z, latents if len(latents) > 1 else [latents[0]] * len(recipes), strict=True):
        row.copy_(each[0])
    x = model.path.noisy(z, whole.x, stations[0])
    return replace(whole, x=x, times=stations)


TASKS.add("paint")(Task(prepare, likes))

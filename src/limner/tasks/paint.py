"""Words to pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limner.diffusion.guide import composed, skip_layer, staged
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import SCHEDULES, times
from limner.errors import BadInput
from limner.models.text.prompt import Part, parse
from limner.pipeline import Model, load
from limner.place import Place
from limner.recipe import Recipe
from limner.rng import Noise
from limner.types import Denoiser, Step
from limner.words import Reading

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


def load_for(recipe: Recipe, place: Place) -> tuple[Model, Model | None]:
    """The model of a recipe, and the one that it hands over to at the end, if it does."""
    model = load(recipe.model, place, recipe.parts, recipe.partial, recipe.prediction, recipe.embeddings)
    return model, load(recipe.refiner, place) if recipe.refiner else None


def begin(model: Model, /, **wishes: Any) -> Recipe:
    """A recipe with what the model's family likes, where the wishes say nothing; names are brought to one spelling.

    Refuses what this model cannot paint, before anything is painted.
    """
    ours = model.defaults
    width, height = ours.size
    likes = {"width": width, "height": height, "steps": ours.steps, "sampler": ours.sampler, "schedule": ours.schedule}
    likes |= {"cfg_scale": ours.cfg_scale, "cfg_interval": ours.cfg_interval}
    likes["syntax"] = "a1111" if model.family.towers else "plain"
    recipe = Recipe.of(likes | wishes)
    model.latent_shape(recipe.height, recipe.width)
    model.style_number(recipe.style)
    if recipe.best_of > 1:
        if not recipe.prompt:
            raise BadInput("best_of keeps the picture that is most like the prompt, and the prompt is empty")
        model.eye  # noqa: B018  refuses where there is none
    for words in (recipe.prompt, recipe.negative):
        if loras := parse(words, recipe.syntax, recipe.steps).loras:
            raise BadInput(f"the prompt asks for the LoRA {loras[0].name!r}; LoRAs are not here yet")
    if len(parse(recipe.negative, recipe.syntax, recipe.steps).parts) > 1:
        raise BadInput("the negative prompt joins several by AND; only the prompt itself can")
    return recipe.but(sampler=SAMPLERS.name(recipe.sampler), schedule=SCHEDULES.name(recipe.schedule))


def prepare(model: Model, recipe: Recipe, count: int = 1, refiner: Model | None = None) -> Prepared:
    """The start of `count` pictures of a recipe, with seeds from the recipe's on."""
    noise = Noise(recipe.seed, recipe.noise)
    shape = model.latent_shape(recipe.height, recipe.width)
    x = noise(count, *shape).to(model.place.device)
    stations = times(recipe.steps, recipe.schedule, model.path)
    denoiser = _guided(model, recipe, shape, stations)
    if recipe.refiner:
        if refiner is None:
            raise BadInput(f"the recipe hands over to {recipe.refiner!r}, which is not loaded")
        handover = stations[round(recipe.refine_at * recipe.steps)]
        denoiser = staged([(handover, denoiser), (0.0, _guided(refiner, recipe, shape, stations))])
    return Prepared(x, denoiser, stations, noise)


def _guided(model: Model, recipe: Recipe, shape: tuple[int, int, int], stations: list[float]) -> Denoiser:
    """The denoiser of a recipe: its prompts, each changing over the steps as it says, against the negative one."""
    extra: dict[str, Any] = {"image": model.beside(*shape[1:])}
    scale = recipe.cfg_scale if recipe.prompt or recipe.style or recipe.negative else 1.0
    if model.guidance_inside:  # it is told the scale, and is evaluated once
        extra["guidance"], scale = torch.tensor([scale], device=model.place.device), 1.0
    how = Reading(recipe.syntax, recipe.clip_skip, size=(recipe.width, recipe.height))

    def told(part: Part, style: str | None, how: Reading, skip: tuple[int, ...] = ()) -> Denoiser:
        stages = []
        for stage in part.stages:
            cond = replace(model.encode([stage.pieces], style, how), **extra)
            stages.append((stations[round(stage.until * recipe.steps)], model.denoiser(cond, skip)))
        return staged(stages) if len(stages) > 1 else stages[0][1]

    wanted = parse(recipe.prompt, recipe.syntax, recipe.steps).parts
    unwanted = parse(recipe.negative, recipe.syntax, recipe.steps).parts[0]
    positives = [(told(part, recipe.style, how), part.weight) for part in wanted]
    negative = told(unwanted, None, replace(how, negative=True))
    found = composed(positives, negative, scale, recipe.cfg_interval, recipe.cfg_rescale)
    if recipe.skip_layers:
        early, late = (stations[round(share * recipe.steps)] for share in recipe.skip_interval)
        skipped = told(wanted[0], recipe.style, how, recipe.skip_layers)
        found = skip_layer(found, skipped, recipe.skip_scale, (late, early))
    return found


def run(model: Model, recipe: Recipe, count: int = 1, refiner: Model | None = None) -> Iterator[Step]:
    """The walk of a recipe: progress, previews and cancelling belong to who consumes it."""
    start = prepare(model, recipe, count, refiner)
    return SAMPLERS[recipe.sampler](start.denoiser, model.path, start.x, start.times, start.noise)


def walks(recipe: Recipe, count: int = 1) -> list[tuple[Recipe, int]]:
    """How `painting` goes about `count` pictures: recipes with the first seed of each batch, and the batch's size."""
    seeds = count * recipe.best_of
    return [(recipe.but(seed=recipe.seed + i), min(BATCH, seeds - i)) for i in range(0, seeds, BATCH)]


def painting(
    model: Model, recipe: Recipe, count: int = 1, refiner: Model | None = None
) -> Iterator[Step | list[Painted]]:
    """Every step of every batch, and after each batch the pictures that are finished with it.

    Picture i takes the seed that comes i after the recipe's; with best_of N it tries N seeds, from i * N after on.
    """
    each = recipe.best_of
    tried: list[Tensor] = []
    done = 0
    for start, size in walks(recipe, count):
        for step in run(model, start, size, refiner):
            yield step
        tried += (refiner or model).to_image(step.x, recipe.fast_decode)
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


def paint(model: Model, recipe: Recipe, count: int = 1, refiner: Model | None = None) -> Tensor:
    """`count` finished pictures, B 4 H W in [0, 1], premultiplied."""
    events = painting(model, recipe, count, refiner)
    return torch.stack([one.picture for event in events if isinstance(event, list) for one in event])

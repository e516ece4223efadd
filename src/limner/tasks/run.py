"""The one loop around every task: recipes in, steps and finished pictures out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

import limner.tasks.edit
import limner.tasks.inpaint
import limner.tasks.tile
import limner.tasks.upscale  # noqa: F401  their imports register them
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import SCHEDULES
from limner.errors import BadInput
from limner.models.text.prompt import parse
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.regions import parse_box
from limner.tasks.canvas import Canvas
from limner.tasks.guidance import tile_of
from limner.tasks.task import TASKS, Beside, Painted, Prepared, digests, fetch
from limner.types import Step

BATCH = 8  # pictures that walk together; more would take memory and save no time
BATCH_PIXELS = 2**21  # of all of them; larger ones walk in fewer
OWN = {"prompt", "negative", "style", "seed", "subseed"}  # what may differ inside a batch


def begin(model: Model, /, **wishes: Any) -> Recipe:
    """A recipe with what the model's family and the task like, where the wishes say nothing; names are brought to one
    spelling. Refuses what this model cannot do, before anything is painted.
    """
    ours = model.defaults
    wishes["task"] = TASKS.name(wishes.get("task", "paint"))
    likes = {"steps": ours.steps, "sampler": ours.sampler, "schedule": ours.schedule}
    likes |= {"cfg_scale": ours.cfg_scale, "cfg_interval": ours.cfg_interval}
    likes["syntax"] = "a1111" if model.family.towers else "plain"
    Recipe.of(likes | wishes)  # what is not even a recipe is told first
    likes |= TASKS[wishes["task"]].likes(model, wishes)
    recipe = Recipe.of(digests(likes | wishes))
    if recipe.task == "paint":
        model.latent_shape(recipe.height, recipe.width)
    model.style_number(recipe.style)
    for region in recipe.regions:
        parse_box(region.box)
    if recipe.window or recipe.overlap:
        tile_of(model, recipe)
    if recipe.few_keys > 1 and not model.convolves:
        raise BadInput(f"few_keys thins out the attention of UNets; {model.family.name} has another denoiser")
    if recipe.precision not in ("", model.place.precision):
        raise BadInput(
            f"the recipe is painted in {recipe.precision}, and the model is loaded for {model.place.precision}"
        )
    if recipe.fast_decode:
        model.tiny  # noqa: B018  refuses where there is none
    if recipe.best_of > 1:
        if not recipe.prompt:
            raise BadInput("best_of keeps the picture that is most like the prompt, and the prompt is empty")
        model.eye  # noqa: B018  refuses where there is none
    _check_words(recipe)
    return recipe.but(sampler=SAMPLERS.name(recipe.sampler), schedule=SCHEDULES.name(recipe.schedule))


def _check_words(recipe: Recipe) -> None:
    said = [recipe.prompt, recipe.toward, *(region.prompt for region in recipe.regions)]
    unsaid = [recipe.negative, *(region.negative for region in recipe.regions)]
    for words in (*said, *unsaid):
        if loras := parse(words, recipe.syntax, recipe.steps).loras:
            raise BadInput(f"the prompt asks for the LoRA {loras[0].name!r}; LoRAs are not here yet")
    if any(len(parse(words, recipe.syntax, recipe.steps).parts) > 1 for words in unsaid):
        raise BadInput("the negative prompt joins several by AND; only the prompt itself can")


def prepare(model: Model, recipes: Recipe | Sequence[Recipe], beside: Beside | None = None) -> Prepared:
    """The start of a recipe's walk, or of several that differ in words and seeds alone."""
    batch = [recipes] if isinstance(recipes, Recipe) else list(recipes)
    return TASKS[batch[0].task].prepare(model, batch, beside or fetch(batch[0], model))


def run(model: Model, recipe: Recipe, beside: Beside | None = None) -> Iterator[Step]:
    """The walk of a recipe: progress, previews and cancelling belong to who consumes it."""
    yield from _walk(model, recipe, prepare(model, recipe, beside))


def _walk(model: Model, recipe: Recipe, start: Prepared) -> Iterator[Step]:
    if len(start.times) > 1:
        yield from SAMPLERS[recipe.sampler](start.denoiser, model.path, start.x, start.times, start.noise)


def several(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipes of `count` pictures: picture i takes the seed that comes i after the recipe's, or i * best_of."""
    recipe.but(seed=recipe.seed + count * recipe.best_of - 1)  # the last seed that is tried is one, too
    return [recipe.model_copy(update={"seed": recipe.seed + i * recipe.best_of}) for i in range(count)]


def walks(recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """How `painting` goes about recipes: which of them, one for each seed that is tried, walk together."""
    tried = [r.model_copy(update={"seed": r.seed + i}) if i else r for r in recipes for i in range(r.best_of)]
    found = []
    for _, alike in groupby(tried, key=_kind):
        group = list(alike)
        area = group[0].width * group[0].height * group[0].hires ** 2
        size = max(1, min(BATCH, int(BATCH_PIXELS // area)))
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found


def _kind(recipe: Recipe) -> tuple[object, ...]:
    """What recipes that may walk together have in common: all but plain words, or the very words, and seeds."""
    words = (recipe.prompt, recipe.negative, recipe.style)
    plain = _plain(recipe.prompt, recipe.syntax, recipe.steps) and _plain(recipe.negative, recipe.syntax, recipe.steps)
    others = (value for name, value in recipe if name not in OWN)
    return (*others, any(words) if plain else words)


@lru_cache(maxsize=1024)
def _plain(words: str, syntax: str, steps: int) -> bool:
    """Whether a prompt says one thing from the first step to the last."""
    parts = parse(words, syntax, steps).parts
    return len(parts) == 1 and len(parts[0].stages) == 1 and parts[0].weight == 1


def painting(
    model: Model, recipes: Recipe | Sequence[Recipe], count: int = 1, beside: Beside | None = None
) -> Iterator[Step | list[Painted]]:
    """Every step of every batch, and after each batch the pictures that are finished with it, in order.

    With best_of N a picture tries N seeds from its own on. beside: what the recipes name beside the model, where it is
    loaded already; it is the same for all of them.
    """
    wanted = several(recipes, count) if isinstance(recipes, Recipe) else list(recipes)
    before: tuple[Recipe, Beside] | None = None
    tried: list[tuple[Recipe, Tensor, Prepared]] = []
    done = 0
    for group in walks(wanted):
        here = beside or fetch(group[0], model, before)
        before = (group[0], here)
        start = prepare(model, group, here)
        while True:
            step = None
            for step in _walk(model, group[0], start):
                yield step
            x = step.x if step else start.x
            x = start.end(x) if start.end else x
            if start.then is None:
                break
            start = start.then(x)
        tried += [(own, picture, start) for own, picture in zip(group, _seen(model, group[0], start, x), strict=True)]
        finished = []
        while done < len(wanted) and len(tried) >= wanted[done].best_of:
            own, many = wanted[done], wanted[done].best_of
            kept = best(model, torch.stack([p for _, p, _ in tried[:many]]), own.prompt) if many > 1 else 0
            tries, picture, end = tried[kept]
            finished.append(Painted(own, picture, tries.seed, _back(end)))
            tried, done = tried[many:], done + 1
        yield finished


def _seen(model: Model, recipe: Recipe, start: Prepared, x: Tensor) -> list[Tensor]:
    """What the walk ended with, as pictures; where nothing was walked, the picture that was there."""
    if start.canvas is not None and len(start.times) == 1:
        return [start.canvas.picture[0]] * len(x)
    return list((start.model or model).to_image(x, recipe.fast_decode))


def _back(end: Prepared) -> Canvas | None:
    """Where a picture goes back to; where nothing was walked, nothing of it is seen."""
    if end.canvas is None or len(end.times) > 1:
        return end.canvas
    return replace(end.canvas, mask=torch.zeros(end.canvas.original.picture.shape[1:]), feather=0)


def best(model: Model, pictures: Tensor, prompt: str) -> int:
    """The number of the picture that the eye finds most like the prompt."""
    return int(model.likeness(pictures, [prompt])[:, 0].argmax())


def paint(model: Model, recipe: Recipe, count: int = 1) -> Tensor:
    """`count` finished pictures, B 4 H W in [0, 1], premultiplied, as the model makes them."""
    events = painting(model, recipe, count)
    return torch.stack([one.picture for event in events if isinstance(event, list) for one in event])

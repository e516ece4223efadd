"""The one loop around every task: recipes in, steps and finished pictures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, islice
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
from limner.recipe import Recipe, spent
from limner.regions import parse_box
from limner.tasks.canvas import Canvas
from limner.tasks.guidance import tile_of
from limner.tasks.task import TASKS, Beside, Painted, Prepared, digests, fetch
from limner.types import Step

BATCH = 8  # pictures that walk together; more would take memory and save no time
BATCH_PIXELS = 2**21  # of all of them; larger ones walk in fewer
EARLY = 0.33  # of the steps: what the eye likes then is what it likes at the end, nearly (docs/performance.md)
OWN = {"prompt", "negative", "style", "seed", "subseed"}  # what may differ inside a batch


def begin(model: Model, /, **wishes: Any) -> Recipe:
    """A recipe with what the model's family and the task like, where the wishes say nothing; names are brought to one
    spelling. Refuses what this model cannot do, before anything is painted.
    """
    ours, wishes = model.defaults, spent(wishes)
    wishes["task"] = TASKS.name(wishes.get("task", "paint"))
    likes = {"steps": ours.steps, "sampler": ours.sampler, "schedule": ours.schedule}
    likes |= {"cfg_scale": ours.cfg_scale, "cfg_interval": ours.cfg_interval}
    likes |= {"pag_scale": ours.pag_scale, "pag_interval": ours.pag_interval, "late": ours.late}
    likes["syntax"] = "a1111" if model.family.towers else "plain"
    if Recipe.of(likes | wishes).best_of > 1:  # what is not even a recipe is told first
        likes["best_after"] = EARLY
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
    if recipe.pag_scale and not model.perturbs:
        raise BadInput(
            f"pag_scale makes attention worse to turn away from it, which {model.family.name} does not know; it knows "
            "skip_layers"
        )
    if recipe.precision not in ("", model.place.precision):
        raise BadInput(
            f"the recipe is painted in {recipe.precision}, and the model is loaded for {model.place.precision}"
        )
    if recipe.engine not in ("", model.place.engine):
        raise BadInput(f"the recipe is painted by {recipe.engine}, and the model is loaded for {model.place.engine}")
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


@dataclass(frozen=True)
class Walk:
    """Recipes that go down the times together, a seed each, and the number of the picture that each is tried for."""

    recipes: list[Recipe]
    pictures: list[int]
    steps: int
    last: bool  # each row ends as its picture, whose seed was kept before; else the eye compares what rows come to


def walks(recipes: Sequence[Recipe]) -> list[Walk]:
    """How `painting` goes about recipes. Which seeds will be kept is not known yet: there the first one stands."""
    found = []
    for _, alike in groupby(enumerate(recipes), key=lambda one: _kind(one[1])):
        group = list(alike)
        first = group[0][1]
        size = max(1, min(BATCH, int(BATCH_PIXELS // (first.width * first.height * first.hires**2))))
        for some in _cut(group, size) if first.glance else [group]:
            tries = [(n, own.model_copy(update={"seed": own.seed + i})) for n, own in some for i in range(own.best_of)]
            steps, last = first.glance or first.length, first.best_of == 1
            found += [Walk([own for _, own in rows], [n for n, _ in rows], steps, last) for rows in _cut(tries, size)]
            if first.glance:
                found.append(Walk([own for _, own in some], [n for n, _ in some], first.length, last=True))
    return found


def _cut(rows: list[tuple[int, Recipe]], size: int) -> list[list[tuple[int, Recipe]]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


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

    With best_of N a picture tries N seeds from its own on, by best_after all to their end or only the one whose early
    steps promise most. beside: what the recipes name beside the model, where it is loaded already; it is the same for
    all of them.
    """
    wanted = several(recipes, count) if isinstance(recipes, Recipe) else list(recipes)
    plan = walks(wanted)
    left = Counter(number for walk in plan for number in walk.pictures)
    leads: dict[int, _Try] = {}
    before: tuple[Recipe, Beside] | None = None
    for walk in plan:
        group = walk.recipes
        if group[0].glance and walk.last:
            seeds = [leads.pop(number).seed for number in walk.pictures]
            group = [own.model_copy(update={"seed": seed}) for own, seed in zip(group, seeds, strict=True)]
        here = beside or fetch(group[0], model, before)
        before = (group[0], here)
        start = prepare(model, group, here)
        early = 0 if walk.last else group[0].glance
        while True:
            step = None
            for step in islice(_walk(model, group[0], start), early or None):
                yield step
            x = start.x if step is None else step.x0 if early else step.x
            x = start.end(x) if start.end else x
            if early or start.then is None:
                break
            start = start.then(x)
        pictures = _seen(model, group[0], start, x)
        scores = [0.0] * len(group) if walk.last else liked(model, pictures, group)
        finished = []
        for number, own, picture, score in zip(walk.pictures, group, pictures, scores, strict=True):
            left[number] -= 1
            if number not in leads or score > leads[number].score:
                leads[number] = _Try(score, own.seed, picture, start)
            if not left[number]:
                kept = leads.pop(number)
                finished.append(Painted(wanted[number], kept.picture, kept.seed, _back(kept.start)))
        yield finished


@dataclass(frozen=True)
class _Try:
    score: float
    seed: int
    picture: Tensor
    start: Prepared


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


def liked(model: Model, pictures: Sequence[Tensor], recipes: Sequence[Recipe]) -> list[float]:
    """How much like its own prompt the eye finds each picture."""
    prompts = sorted({own.prompt for own in recipes})
    found = model.likeness(torch.stack(list(pictures)), prompts)
    return [float(row[prompts.index(own.prompt)]) for row, own in zip(found, recipes, strict=True)]


def paint(model: Model, recipe: Recipe, count: int = 1) -> Tensor:
    """`count` finished pictures, B 4 H W in [0, 1], premultiplied, as the model makes them."""
    events = painting(model, recipe, count)
    return torch.stack([one.picture for event in events if isinstance(event, list) for one in event])

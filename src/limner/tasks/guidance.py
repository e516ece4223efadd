"""From the words of recipes to one denoiser: prompts and stages, guidance, regions, controls, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from limner.control import steering
from limner.diffusion.guide import Carried, composed, instructed, mixed, perturbed, skip_layer, staged
from limner.diffusion.samplers import draws
from limner.diffusion.thrift import Memory, Thrift
from limner.diffusion.wrap import Window, regional, rolled, tiled, windows
from limner.errors import BadInput
from limner.models.text.prompt import parse
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.regions import region_mask
from limner.tasks.task import Beside
from limner.types import Cond, Denoiser
from limner.words import Reading

SHARE = 0.2  # of the whole picture's words inside a region, so that it belongs to the rest


@dataclass(frozen=True)
class Said:
    """What is told of one prompt, stage after stage."""

    stages: tuple[tuple[float, Cond], ...]  # the share of the steps until which each holds
    weight: float = 1.0


@dataclass(frozen=True)
class Talk:
    """Everything that a batch of recipes says to a model, read once."""

    wanted: tuple[Said, ...]
    unwanted: Said
    scale: float


def guidance(
    model: Model,
    recipes: Sequence[Recipe],
    stations: list[float],
    shape: tuple[int, int, int],
    beside: Beside,
    image: Tensor | None = None,
    first: int = 0,
) -> Denoiser:
    """The denoiser of recipes that differ in words and seeds alone, for latents of a shape C h w.

    stations: the times of a whole walk, by which shares of it are told. image: what is laid beside x. first: the
    station that is walked from; controls count their shares from there.
    """
    beside = replace(beside, controls=tuple(each.over(stations[first:]) for each in beside.controls))
    boss = recipes[0]
    tiles = _tiles(model, boss, shape)
    if tiles is not None:
        model = replace(model, around=(False, False))  # the windows go around instead
    placed = bool(beside.controls) or image is not None  # what knows its place, and would not roll along
    roll = bool(boss.seamless) and not placed and (tiles is not None or not model.convolves)
    if roll:  # what layers gave before would lie elsewhere now
        boss = boss.but(deep_every=1, guide_every=1)
    hear = _reader(model, recipes, beside)

    def denoiser(talk: Talk) -> Denoiser:
        @cache
        def at(window: Window | None) -> Denoiser:
            if window is not None and not placed:
                return at(None)  # the same everywhere
            return _guided(model, boss, talk, stations, shape[1:], beside, image, window)

        whole = at(None) if tiles is None else tiled(at, tiles, shape[1:])
        return rolled(whole, stations, "x" in boss.seamless, "y" in boss.seamless) if roll else whole

    style = [recipe.style for recipe in recipes]
    negative = [recipe.negative for recipe in recipes]
    wanted = _blended(hear([r.prompt for r in recipes], style), 1 - boss.blend)
    if boss.toward and boss.blend:
        wanted = [*wanted, *_blended(hear([boss.toward] * len(recipes), style), boss.blend)]
    words = any(r.prompt or r.style or r.negative or r.toward for r in recipes) or bool(beside.pictures)
    unwanted = hear(negative, [None] * len(recipes), away=True)[0]
    base = denoiser(Talk(tuple(wanted), unwanted, boss.cfg_scale if words else 1.0))
    parts = []
    for region in boss.regions:
        own = hear([region.prompt] * len(recipes), style)
        off = hear([region.negative], [None], away=True)[0] if region.negative else unwanted
        mask = region_mask(region.box, *shape[1:]).to(model.place.device)
        parts.append((mask, denoiser(Talk(tuple(own), off, boss.cfg_scale)), region.weight))
    found = regional(base, parts, SHARE)
    ask = Thrift.over(stations, boss.ask_every, boss.late, boss.ease_in, boss.ask_apart)
    return Carried.over(found, model.path, ask, draws(boss.sampler)) if ask else found


def _reader(model: Model, recipes: Sequence[Recipe], beside: Beside) -> Any:
    """Reads one prompt a row; rows that all say the same are read once."""
    boss = recipes[0]
    how = Reading(boss.syntax, boss.clip_skip, size=(boss.width, boss.height))

    def hear(texts: Sequence[str], styles: Sequence[str | None], away: bool = False) -> list[Said]:
        if len(set(zip(texts, styles, strict=True))) == 1:
            texts, styles = texts[:1], styles[:1]
        rows = [parse(text, boss.syntax, boss.steps).parts for text in texts]
        told = []
        for parts in zip(*rows, strict=True):
            stages = []
            for each in zip(*(part.stages for part in parts), strict=True):
                cond = model.encode([stage.pieces for stage in each], styles, replace(how, negative=away))
                seen = tuple(pair[away] for pair in beside.pictures)
                stages.append((each[0].until, replace(cond, seen=tuple(_rows(s, len(cond)) for s in seen))))
            told.append(Said(tuple(stages), parts[0].weight))
        return told

    return hear


def _rows(seen: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return tuple(value.expand(count, -1, -1) for value in seen)


def _blended(told: list[Said], share: float) -> list[Said]:
    return [replace(said, weight=said.weight * share) for said in told] if share < 1 else told


def _tiles(model: Model, recipe: Recipe, shape: tuple[int, int, int]) -> list[Window] | None:
    """The windows that a picture is painted in; None where it is painted whole."""
    factor = model.family.latent.factor
    paints = model.family.sizes[1] if model.convolves or not recipe.seamless else max(model.defaults.size)
    if not recipe.window and max(shape[1:]) * factor <= paints:
        return None
    side, overlap = tile_of(model, recipe)
    around = {"wrap_x": "x" in recipe.seamless, "wrap_y": "y" in recipe.seamless}
    return windows(*shape[1:], side // factor, overlap // factor, **around)


def tile_of(model: Model, recipe: Recipe) -> tuple[int, int]:
    """The side of a tile and what neighbours share, in pixels; refuses what is off the family's grid."""
    step = model.family.latent.multiple
    side = recipe.window or min(model.defaults.size)
    overlap = recipe.overlap or side // 4 // step * step or step
    if side % step or overlap % step or overlap >= side:
        raise BadInput(
            f"tiles of {side} pixels that share {overlap} were asked for; {model.family.name} takes multiples of "
            f"{step}, the second below the first"
        )
    return side, overlap


def _guided(
    model: Model,
    recipe: Recipe,
    talk: Talk,
    stations: list[float],
    size: tuple[int, int],
    beside: Beside,
    image: Tensor | None,
    window: Window | None,
) -> Denoiser:
    """The guided denoiser of what is said, whole or inside a window."""
    scale, inside = talk.scale, None
    image = image if image is None or window is None else window.cut(image)
    if model.guidance_inside:  # it is told the scale, and is evaluated once
        inside, scale = torch.tensor([scale], device=model.place.device), 1.0
    controls = [each.fitted(*size) for each in beside.controls]
    steer = steering([each if window is None else each.at(window) for each in controls]) if controls else None

    def speak(said: Said, image: Tensor | None = image, skip: tuple[int, ...] = (), alone: bool = False) -> Denoiser:
        stages = []
        for until, cond in said.stages:
            told = None if inside is None else inside.expand(len(cond))
            laid = None if image is None else image.expand(len(cond), -1, -1, -1)
            cond = replace(cond, image=laid, guidance=told)
            denoiser = model.denoiser(cond, skip, steer, deep, recipe.few_keys, alone)
            stages.append((stations[round(until * recipe.steps)], denoiser))
        return staged(stages) if len(stages) > 1 else stages[0][1]

    every = (recipe.deep_every, recipe.guide_every)
    deep, guide = (Thrift.over(stations, n, recipe.late, recipe.ease_in) for n in every)
    positives = [(speak(said), said.weight) for said in talk.wanted]
    negative = speak(talk.unwanted)
    if model.variant == "edit" and image is not None:
        blank = speak(talk.unwanted, torch.zeros_like(image))
        return instructed(positives[0][0], negative, blank, scale, recipe.image_cfg)
    found = composed(positives, negative, scale, recipe.cfg_interval, recipe.cfg_rescale)
    found = replace(found, memory=Memory(guide)) if guide else found
    if recipe.skip_layers:
        early, late = (stations[round(share * recipe.steps)] for share in recipe.skip_interval)
        skipped = mixed([(speak(said, skip=recipe.skip_layers), said.weight) for said in talk.wanted])
        found = skip_layer(found, skipped, recipe.skip_scale, (late, early))
    if recipe.pag_scale:
        alone = mixed([(speak(said, alone=True), said.weight) for said in talk.wanted])
        found = perturbed(found, alone, recipe.pag_scale, recipe.pag_interval)
    return found

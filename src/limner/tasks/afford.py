"""Memory foreseen: what a walk would need by what is kept, what is free, and what would fit where it does not.

Reckoned from sizes alone, before anything is brought to its place; rules and their errors are in `memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from limner.errors import BadInput
from limner.memory import CONTROL, TILE, WINDOWS, cost_of, free, gb, let_go
from limner.nets import Nets
from limner.pipeline import Model
from limner.place import Keep
from limner.recipe import Recipe
from limner.tasks.guidance import tile_of
from limner.tasks.run import walks

SMALLER = (0.75, 0.5, 0.25)  # of the sides, where a smaller picture is proposed
WIDEST = 4  # times that weights in a file can grow: from a byte to fp32


@dataclass(frozen=True)
class Weights:
    """Bytes of networks that are not in memory yet: each at its place, and the largest of their layers."""

    each: Mapping[str, int]
    layer: int
    beside: int  # controls and the like, which stay with the denoiser


def sparing(model: Model, recipes: Sequence[Recipe]) -> Model:
    """The model keeping one network at a time, where it adapts and none is needed twice: as fast, in less memory."""
    untouched = isinstance(model.nets, Nets) and model.nets.untouched
    here = model.place.engine == "torch" and not model.place.memory
    once = len(walks(recipes)) == 1 and recipes[0].hires == 1
    return model.keeping("one") if model.adapts and untouched and here and once else model


def afforded(model: Model, recipes: Sequence[Recipe]) -> Model:
    """The model, keeping as much as there is memory for; or, where it does not adapt, as much as it was told.

    Raises BadInput where the walk would not fit: what it needs, what is free, and which settings would do.
    """
    if not recipes or not isinstance(model.nets, Nets):
        return model
    there = model.place.memory_left or free()
    work, decode = _work(model, recipes)
    least = cost_of(model.family.name).least
    if WIDEST * sum(file.stat().st_size for file in model.files if file.exists()) + work + decode + least < there:
        return model  # mini: so it is for less than a millisecond
    weights = _weights(model, recipes)
    needs = {keep: _need(weights, keep, work, decode) + least for keep in get_args(Keep)}
    kept = model.place.keep
    if needs[kept] <= there:
        return model
    if model.place.engine != "torch":
        raise BadInput(
            f"this needs about {gb(needs[kept])} and {gb(there)} are free; {model.place.engine} keeps whole networks: "
            "`--engine torch` can keep less"
        )
    fit = [keep for keep in get_args(Keep) if needs[keep] <= there]
    if fit and model.adapts:
        let_go()
        return model.keeping(cast(Keep, fit[0]))
    raise BadInput(
        f"this needs about {gb(needs[kept])} and {gb(there)} are free; {_advice(model, recipes, needs, there)}"
    )


def _advice(model: Model, recipes: Sequence[Recipe], needs: Mapping[Keep, int], there: int) -> str:
    """Settings that would fit, the least costly first; or that none would."""
    if fit := [keep for keep in needs if needs[keep] <= there]:
        return " and ".join(f"`--keep {keep}` would need {gb(needs[keep])}" for keep in fit)
    said = f"even `--keep layer` would need {gb(needs['layer'])}"
    boss, step = max(recipes, key=_area), model.family.latent.multiple
    weights, least = _weights(model, recipes), cost_of(model.family.name).least

    def fits(changed: Recipe) -> str:
        need = _need(weights, "layer", *_work(model, [changed])) + least
        return gb(need) if need <= there else ""

    if len(recipes) > 1 and (need := fits(boss)):
        return f"{said}, and one picture at a time {need}"
    window = min(model.defaults.size)
    if not boss.window and (need := fits(boss.model_copy(update={"window": window}))):
        return f"{said}, and with `--window {window}` {need}"
    for share in SMALLER:
        width, height = (max(step, round(side * share / step) * step) for side in (boss.width, boss.height))
        if need := fits(boss.model_copy(update={"width": width, "height": height})):
            return f"{said}, and with it a picture of {width}x{height} {need}"
    return f"{said}, and no smaller picture would fit either"


def _need(weights: Weights, keep: Keep, work: int, decode: int) -> int:
    """Bytes at the worst moment: while words are read, while the denoiser walks, or while the picture is decoded."""
    if keep == "all":
        return sum(weights.each.values()) + weights.beside + max(work, decode)
    if keep == "layer":
        return weights.layer + max(work, decode)
    moments = {"denoiser": work + weights.beside, "autoencoder": decode}
    return max(size + moments.get(net, 0) for net, size in weights.each.items())


def _work(model: Model, recipes: Sequence[Recipe]) -> tuple[int, int]:
    """Bytes that the denoiser and the decoder compute in, for the largest batch; the decoder tiles where it must."""
    cost, most = cost_of(model.family.name), [(0, 0)]
    for group in (walk.recipes for walk in walks(recipes)):
        rows = 1 if model.place.one_by_one else len(group)
        pixels = max(_area(recipe) for recipe in group)
        window = group[0].window
        if not window and max(group[0].width, group[0].height) * group[0].hires > model.family.sizes[1]:
            window, _ = tile_of(model, group[0])
        walked = min(pixels, WINDOWS * window**2) if window else pixels
        most.append((rows * cost.walk * walked, cost.decode * min(pixels, TILE**2)))
    walk, decode = (max(column) for column in zip(*most, strict=True))
    return walk, decode + walk * model.place.records  # a recording keeps what it works in


def _area(recipe: Recipe) -> int:
    return int(recipe.width * recipe.height * recipe.hires**2)


def _weights(model: Model, recipes: Sequence[Recipe]) -> Weights:
    nets = cast(Nets, model.nets)
    unused = {"judge"} if any(recipe.best_of > 1 for recipe in recipes) else {"judge", "eye"}
    unused |= {"autoencoder"} if all(recipe.fast_decode for recipe in recipes) else {"tiny"}
    unused |= set() if model.t5 else {"text_3"}
    each = {net: nets.weight(net) for net in nets if net not in unused}
    refined = max(bool(recipe.refiner) for recipe in recipes) * each["denoiser"]
    controls = CONTROL * max(len((*recipe.controls, *recipe.picture_prompts)) for recipe in recipes)
    wide = sum(value.numel() for value in nets.bare("denoiser").parameters()) * model.place.dtype.itemsize
    return Weights(each, max(nets.layer(net) for net in each), int(refined + controls * wide))  # theirs are never small

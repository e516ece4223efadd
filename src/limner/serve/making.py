"""A worker's parts without state: from wishes to recipes, from a picture to its file, from an error to a sentence."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from limner.errors import LimnerError
from limner.pipeline import Model
from limner.provenance.metadata import Receipt, chunks
from limner.recipe import Recipe
from limner.tasks.run import begin, several
from limner.tasks.task import Painted
from limner.wildcards import expand

NO_MEMORY = "there is not enough memory for this picture; a smaller one may fit"


def recipes_of(model: Model, wishes: dict[str, Any], count: int) -> list[Recipe]:
    """A recipe a picture; where prompts hold choices, each seed chooses for itself, as on the command line."""
    first, prompt, each = wishes.get("seed", 0), wishes.get("prompt", ""), wishes.get("best_of", 1)
    texts = [expand(prompt, first + i * each) if model.family.towers else prompt for i in range(count)]
    if len(set(texts)) == 1:
        return several(begin(model, **wishes | {"prompt": texts[0]}), count)
    return [begin(model, **wishes | {"prompt": text, "seed": first + i * each}) for i, text in enumerate(texts)]


def renamed(recipe: Recipe, said: Mapping[str, str]) -> Recipe:
    """A recipe as a picture carries it: no path of this machine where the wishes said a name."""
    if not said:
        return recipe

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: named(inside) for name, inside in value.items()}
        if isinstance(value, (list, tuple)):
            return [named(inside) for inside in value]
        return said.get(value, value) if isinstance(value, str) else value

    fields = ("image", "mask", "upscaler", "embeddings", "controls", "picture_prompts")
    told = recipe.model_dump()
    return recipe.but(**{name: named(told[name]) for name in fields})


def png(one: Painted, recipe: Recipe, model: Model) -> tuple[tuple[int, int], bytes]:
    """Width and height, and the file with its receipt and marks, as the command line writes it."""
    image, file = one.image, io.BytesIO()
    parts = chunks(Receipt.of(recipe, model))
    image.save(file, "PNG", pnginfo=parts.png, compress_level=6, icc_profile=image.info.get("icc_profile"))
    return image.size, file.getvalue()


def out_of_memory(error: BaseException) -> bool:
    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said


def sentence_of(error: Exception) -> str:
    """What the one who ordered is told; no more of an error inside than its kind and its words."""
    if out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, LimnerError):
        return str(error)
    return f"an error inside: {type(error).__name__}: {error}".splitlines()[0][:300]

"""The models that a worker holds, and what is done when memory runs short."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from limner.pipeline import Model
from limner.place import Place
from limner.recipe import Recipe
from limner.serve.previews import Previews
from limner.tasks.task import load_for

Event = dict[str, Any]


class Shelf:
    """The models that are loaded, at most `most`; the one used longest ago goes before another is loaded."""

    def __init__(self, place: Place, most: int, say: Callable[[Event], None]) -> None:
        self._place, self._most, self._say = place, max(1, most), say
        self._models: OrderedDict[object, tuple[Model, Previews]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def __call__(self, recipe: Recipe) -> tuple[Model, Previews]:
        """The model that a recipe names, with the files that join it."""
        key = model_key(recipe)
        if key not in self._models:
            while len(self._models) >= self._most:
                self._models.popitem(last=False)
            tidy()
            self._say({"event": "loading", "model": recipe.model})
            begun = time.monotonic()
            try:
                model = load_for(recipe, self._place)
                _ = model.digests  # which stand in every receipt
                self._models[key] = (model, Previews(model))
            finally:  # also where it failed, the worker waits no more
                self._say({"event": "loaded", "model": recipe.model, "seconds": round(time.monotonic() - begun, 3)})
        self._models.move_to_end(key)
        return self._models[key]

    def clear(self) -> None:
        self._models.clear()
        tidy()


def model_key(recipe: Recipe) -> object:
    named = recipe.model, recipe.parts, recipe.partial, recipe.prediction, recipe.embeddings
    return (*named, recipe.precision, recipe.engine)


def tidy() -> None:
    """Give memory back that nobody uses."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()

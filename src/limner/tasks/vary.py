"""Variations around a picture, and the way from one picture to another: recipes that `painting` paints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limner.errors import BadInput
from limner.recipe import MAX_SEED, Recipe


def variations(recipe: Recipe, amount: float, count: int, first: int) -> list[Recipe]:
    """Recipes around one that paints from noise: its noise leans, by `amount`, to that of the seeds from `first` on.

    At 0 each is the picture itself, at 1 each is what its own seed paints.
    """
    return [recipe.but(subseed=(first + i) % MAX_SEED, variation=amount, best_of=1) for i in range(count)]


def retouched(picture: Path, prompt: str, amount: float) -> dict[str, Any]:
    """Fields that vary a picture whose recipe is not known: it is noised by `amount` and painted to its end again."""
    return {"task": "edit", "image": str(picture), "prompt": prompt, "strength": amount}


def morphed(first: Recipe, toward: str | None, seed: int | None, frames: int) -> list[Recipe]:
    """The frames of a way from one recipe to another prompt, to another seed, or both; the ends included.

    Each step is as long as the others: on the arc between two noises (slerp), and in the share of the two prompts,
    whose guidances are added.
    """
    if frames < 2:
        raise BadInput(f"a morph has 2 frames or more, not {frames}")
    if toward in (None, first.prompt) and seed in (None, first.seed):
        raise BadInput("the way would lead nowhere: a morph wants a second prompt, or another seed to end with")
    made = []
    for i in range(frames):
        share = i / (frames - 1)
        changes: dict[str, Any] = {}
        if toward is not None and toward != first.prompt:
            changes |= {"prompt": toward} if share == 1 else {"toward": toward, "blend": share}
        if seed is not None and seed != first.seed:
            changes |= {"seed": seed} if share == 1 else {"subseed": seed, "variation": share}
        made.append(first.but(**changes, best_of=1))
    return made

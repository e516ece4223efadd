"""What a task is: from a recipe, and what it names beside its model, to the start of a walk. None loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from limner.control import EDGES, Loaded, load_control
from limner.enlarge import Upscaler, find_upscaler
from limner.errors import BadInput
from limner.image import Original, read_original, to_pil
from limner.models.unet import Unet
from limner.nets import bare
from limner.picture_prompt import find_prompter, picture_prompt
from limner.pipeline import Model, load
from limner.place import Place
from limner.recipe import PicturePrompt, Recipe
from limner.registry import Registry
from limner.rng import Noise
from limner.tasks.canvas import Canvas
from limner.tasks.masks import fill_of
from limner.types import Denoiser, Tensors
from limner.weights.io import sha256


@dataclass(frozen=True)
class Beside:
    """What a recipe names beside its model, loaded."""

    refiner: Model | None = None
    original: Original | None = None
    mask: Tensor | None = None  # H W in [0, 1], of the original's size; 1 is painted anew
    upscaler: Upscaler | None = None
    controls: tuple[Loaded, ...] = ()
    depth: Tensor | None = None  # 1 4 H W
    pictures: tuple[tuple[Tensors, Tensors], ...] = ()  # what picture prompts say, and what they say of nothing


@dataclass(frozen=True)
class Prepared:
    """The start of a walk for some pictures, and what becomes of its end."""

    x: Tensor  # B C h w
    denoiser: Denoiser
    times: list[float]  # a single one: there is nothing to walk
    noise: Noise
    canvas: Canvas | None = None  # where the pictures go back to
    end: Callable[[Tensor], Tensor] | None = None  # what the last latents become
    then: Callable[[Tensor], Prepared] | None = None  # a further walk, from the latents that this one ends with
    model: Model | None = None  # which decodes, where it is not the recipe's own


@dataclass(frozen=True)
class Painted:
    """One finished picture and the recipe that repeats it alone."""

    recipe: Recipe
    picture: Tensor  # 4 H W in [0, 1], premultiplied, as the model made it
    seed: int  # the recipe's own; with best_of, that of the seeds tried which was kept
    canvas: Canvas | None = None

    @cached_property
    def image(self) -> Image.Image:
        """What a person gets: in a picture's own size and colours where the task started from one."""
        return self.canvas.back(self.picture) if self.canvas else to_pil(self.picture)


@dataclass(frozen=True)
class Task:
    """prepare: the start of a batch of recipes that differ in words and seeds alone. likes: fields of the recipe that
    follow from the wishes, as the size does from the picture; what cannot be done is refused there."""

    prepare: Callable[[Model, Sequence[Recipe], Beside], Prepared]
    likes: Callable[[Model, dict[str, Any]], dict[str, Any]]


TASKS: Registry[Task] = Registry("task")
MOST = 2**26  # pixels of a picture that is made: 8192 x 8192


def affordable(width: float, height: float, why: str) -> None:
    """Refuse a picture that memory would not hold, in words that begin with `why`."""
    if width * height > MOST:
        raise BadInput(f"{why} is {width:.0f}x{height:.0f}; at most {MOST:,} pixels are made")


def load_for(recipe: Recipe, place: Place) -> Model:
    """The model of a recipe, with the files that join it, computing as it says on a place."""
    place = place.precisely(recipe.precision).driven(recipe.engine)
    return load(recipe.model, place, recipe.parts, recipe.partial, recipe.prediction, recipe.embeddings)


def fetch(recipe: Recipe, model: Model, before: tuple[Recipe, Beside] | None = None) -> Beside:
    """Load what a recipe names beside its model; a file that is not the one it names is refused.

    before: another recipe and what was loaded for it; what both name is taken from there.
    """
    if before and _named(before[0]) == _named(recipe):
        return before[1]
    original = mask = None
    if recipe.image:
        original = read_original(same(recipe.image, recipe.image_sha256))
        mask = read_mask(recipe, original) if recipe.mask else None
    if before and _named(before[0])[2:] == _named(recipe)[2:]:  # the same networks
        return replace(before[1], original=original, mask=mask)
    shown = {one: same(one.image.removeprefix(EDGES), one.image_sha256) for one in recipe.controls}
    depths = [file for one, file in shown.items() if one.net == "depth"]
    if depths and model.variant != "depth":
        raise BadInput(f"this {model.family.name} model takes no depth map; a ControlNet for depth does")
    return Beside(
        load(recipe.refiner, model.place) if recipe.refiner else None,
        original,
        mask,
        find_upscaler(Path(recipe.upscaler).expanduser(), model.place) if recipe.upscaler else None,
        tuple(load_control(one, file, model) for one, file in shown.items() if one.net != "depth"),
        read_original(depths[0]).picture[None] if depths else None,
        tuple(_look(one, model) for one in recipe.picture_prompts),
    )


def _named(recipe: Recipe) -> tuple[object, ...]:
    """What `fetch` reads of a recipe: two pictures, then networks."""
    return recipe.image, recipe.mask, recipe.refiner, recipe.upscaler, recipe.controls, recipe.picture_prompts


def _look(one: PicturePrompt, model: Model) -> tuple[Tensors, Tensors]:
    unet = bare(model.nets, "denoiser")
    if not isinstance(unet, Unet):
        raise BadInput(f"an IP-Adapter speaks to the UNets of sd15 and sdxl; {model.family.name} has another denoiser")
    eyes = Path(one.eyes).expanduser() if one.eyes else None
    prompter = find_prompter(Path(one.net).expanduser(), eyes, model.place)
    picture = read_original(same(one.image, one.image_sha256)).picture
    return picture_prompt(prompter, picture, unet.config, one.weight)


def same(path: str, digest: str) -> Path:
    """The path, when the file there has the digest that a recipe remembers."""
    file = Path(path).expanduser()
    if digest and file.is_file() and (now := sha256(file)) != digest:
        raise BadInput(f"{path} is not the picture of the recipe: its SHA-256 is {now[:16]}..., not {digest[:16]}...")
    return file


def digests(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the SHA-256 of each picture that they name, as they are now."""
    told = dict(fields)
    for name in ("image", "mask"):
        path = told.get(name)
        if path and not told.get(f"{name}_sha256") and Path(path).expanduser().is_file():
            told[f"{name}_sha256"] = sha256(Path(path).expanduser())
    for name in ("controls", "picture_prompts"):
        listed = []
        for one in told.get(name, ()):
            entry = dict(one if isinstance(one, dict) else one.model_dump())
            file = Path(str(entry.get("image", "")).removeprefix(EDGES)).expanduser()
            if file.is_file() and not entry.get("image_sha256"):
                entry["image_sha256"] = sha256(file)
            listed.append(entry)
        if listed:
            told[name] = tuple(listed)
    return told


def read_mask(recipe: Recipe, original: Original) -> Tensor:
    """H W in [0, 1] of a recipe's mask: a file's light, a rectangle, or what is clear in the picture."""
    if not recipe.mask_sha256:
        return fill_of(recipe.mask, original)
    return fill_of(str(same(recipe.mask, recipe.mask_sha256)), original)

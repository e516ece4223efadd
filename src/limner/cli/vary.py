"""`limner vary` and `limner morph`: around a picture, and from one to another."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from limner.cli.making import CHANCE, Kept, Output, Wishes, batches, film, flag, keep_all, ready, sides
from limner.errors import BadInput

if TYPE_CHECKING:
    from limner.pipeline import Model
    from limner.recipe import Recipe

# of the recipe of a picture that is varied as it is: what painted it, and what was said
WORDS = (
    "model", "parts", "partial", "prediction", "embeddings", "precision", "engine", "prompt", "negative", "style",
    "syntax", "clip_skip",
)  # fmt: skip


def vary(
    picture: Annotated[Path, Parameter(help="The picture to vary.")],
    prompt: Annotated[str, Parameter(help="What is in it, where it carries no recipe.")] = "",
    *,
    count: Annotated[int, flag("Variations.", "--count", "-n")] = 8,
    amount: Annotated[float, flag("How far from the picture: 0 is the picture, 1 another one.", "--amount")] = 0.3,
    pixels: Annotated[bool, flag("Vary the picture itself, though it carries a recipe.", "--pixels")] = False,
    wishes: Wishes | None = None,
    out: Output | None = None,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    keep: Kept = "auto",
) -> None:
    """Make variations of a picture: limner vary a-red-apple-7.png -n 8 --amount 0.3

    A picture that was painted from a recipe of Limner's is painted again from noise that leans to other seeds. Any
    other is noised by the amount and painted to its end; --look lets an IP-Adapter see it meanwhile.
    """
    if count < 1:
        raise BadInput(f"--count should be 1 or more, not {count}")
    if not 0 <= amount <= 1:
        raise BadInput(f"--amount should be from 0 to 1, not {amount:g}")
    out, given = out or Output(), (wishes or Wishes()).fields()

    from limner.image import open_picture
    from limner.provenance.metadata import own_text, read_receipt
    from limner.tasks.vary import retouched, variations

    image = open_picture(picture)
    stored = None if pixels or own_text(image) is None else read_receipt(image, picture).recipe
    if stored is not None and stored.task in ("paint", "tile") and not (stored.variation or prompt):
        first = given.pop("seed", -1)
        if first < -1:
            raise BadInput(f"--seed should be 0 or more, or -1 for any, not {first}")
        model, fields = ready(stored.model_dump() | given, device, keep)
        from limner.tasks.run import begin

        start = secrets.randbelow(CHANCE) if first == -1 else first
        own = begin(model, **fields)
        own = own.but(seed=_kept(model, stored)) if stored.best_of > 1 else own
        return keep_all(model, variations(own, amount, count, start), out)
    words = {name: getattr(stored, name) for name in WORDS} if stored else {}
    model, fields = ready(words | retouched(picture, prompt or words.get("prompt", ""), amount) | given, device, keep)
    from limner.tasks.run import begin, several

    return keep_all(model, several(begin(model, **fields), count), out)


def _kept(model: Model, recipe: Recipe) -> int:
    """The seed of a picture that was the best of several: they are painted again, for it is written nowhere."""
    from limner.tasks.run import begin

    again = begin(model, **recipe.model_dump() | {"seed": recipe.seed})
    return next(one.seed for finished, _ in batches(model, [again], quiet=True) for one in finished)


def morph(
    first: Annotated[str, Parameter(help="The prompt to start from.")],
    second: Annotated[str, Parameter(help="The prompt to end with; the same one again to go between seeds.")] = "",
    *,
    frames: Annotated[int, flag("Pictures, the two ends included.", "--frames", "-n")] = 16,
    to_seed: Annotated[int | None, flag("The seed to end with; without it the noise stays.", "--to-seed")] = None,
    rate: Annotated[float, flag("Frames a second, where the output is a film.", "--rate", "--fps")] = 12.0,
    bits: Annotated[int, flag("8 or 16, of numbered PNG.", "--bits")] = 8,
    size: Annotated[str, flag("WIDTHxHEIGHT in pixels, or one number for both.", "--size")] = "",
    wishes: Wishes | None = None,
    output: Annotated[
        Path, flag("A folder, name-%04d.png or .exr, or .gif .apng .webp .mp4 .webm.", "--output", "-o")
    ] = Path("morph.png"),
    quiet: Annotated[bool, flag("Print nothing but the paths.", "--quiet", "-q")] = False,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    keep: Kept = "auto",
) -> None:
    """Paint the way from one prompt or seed to another: limner morph "a cat" "a dog" --frames 24 -o cat-dog.gif

    The flicker figure is told at the end: 0 for an even way.
    """
    given = (wishes or Wishes()).fields()
    from limner.film import sequence_kind

    sequence_kind(output)  # a name that is none is told before anything is loaded
    model, fields = ready({"prompt": first} | sides(size) | given, device, keep)

    from limner.tasks.run import begin
    from limner.tasks.vary import morphed

    start = begin(model, **fields)
    begin(model, **fields | {"prompt": second or first})  # a second prompt that cannot be painted is told now
    recipes = morphed(start, second or None, to_seed, frames)
    said = f"{first} to {second or first}, seed {start.seed}, made by a trained model with Limner"
    film(model, recipes, output, rate, bits, said, quiet)

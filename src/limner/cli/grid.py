"""`limner grid`: settings laid against one another, the X/Y/Z plot."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from limner.cli.making import Keeping, Wishes, batches, flag, ready, sides
from limner.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image

    from limner.recipe import Recipe


def grid(
    prompt: Annotated[str, Parameter(help="What to paint.")] = "",
    *,
    x: Annotated[str, flag("The columns: cfg=3,5,7 or seed=1..8 or s/red/green,blue/.", "--x", "-x")],
    y: Annotated[str, flag("The rows.", "--y", "-y")] = "",
    z: Annotated[str, flag("A plot for each value.", "--z", "-z")] = "",
    stacked: Annotated[bool, flag("The plots of z one below another.", "--stacked")] = False,
    side: Annotated[int, flag("Pixels that a picture takes in the plot; 0: as many as it has.", "--side")] = 0,
    keep: Annotated[bool, flag("Save each picture too.", "--keep")] = False,
    font: Annotated[Path | None, flag("A font file for labels beyond Latin.", "--font")] = None,
    size: Annotated[str, flag("WIDTHxHEIGHT in pixels, or one number for both.", "--size")] = "",
    wishes: Wishes | None = None,
    output: Annotated[Path, flag("The plot's file; its recipes lie beside as JSON.", "--output", "-o")] = Path(
        "grid.png"
    ),
    quiet: Annotated[bool, flag("Print the paths alone, and show no progress.", "--quiet", "-q")] = False,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    memory: Annotated[Keeping, flag("What stays in memory: what --keep is elsewhere.", "--memory")] = "auto",
) -> None:
    """Lay settings against one another: limner grid "a cat" --x cfg=3,5,7 --y sampler=euler,dpmpp_2m

    Any field of a recipe can be an axis, by its own name or the command line's. `prompt=a cat|a dog` lists prompts,
    `s/cat/dog,fox/` replaces words of the prompt. All pictures have the same seed, unless the seed is an axis.
    """
    fields = {"prompt": prompt} | sides(size) | (wishes or Wishes()).fields()

    from limner.files import kind_of, save_picture, slug, written
    from limner.provenance.metadata import Receipt, chunks
    from limner.recipe import Recipe
    from limner.tasks.grid import grid as span
    from limner.tasks.grid import parse_axis

    kind_of(output)
    if side < 0:
        raise BadInput(f"--side should be 0 or more, not {side}")
    base = Recipe.of({name: value for name, value in fields.items() if name != "seed"})
    axes = [parse_axis(text, base) for text in (x, y, z) if text]
    model, fields = ready(fields, device, memory)

    from limner.place import find_place
    from limner.tasks.run import begin
    from limner.tasks.task import load_for

    base = begin(model, **fields)
    plot = span(base, axes)
    blank = {cell.at: _blank(cell.recipe) for cell in plot.cells}
    plot.draw(blank, prompt, side, stacked, font)  # what cannot be drawn is told before anything is painted
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for cell in plot.cells:
        groups.setdefault(_loads(cell.recipe), []).append(cell)
    pictures, files = {}, {}
    mine, own = _loads(base), find_place(cast(Any, device), keep=model.place.keep)
    for key in sorted(groups, key=lambda key: key != mine):  # the model that is here comes first, and may go
        cells = groups[key]
        model = model if key == mine else load_for(cells[0].recipe, own)
        recipes = [begin(model, **cell.recipe.model_dump()) for cell in cells]
        made = (one for finished, _ in batches(model, recipes, quiet) for one in finished)
        for cell, one in zip(cells, made, strict=True):
            pictures[cell.at] = one.image
            if keep:
                name = f"{output.stem}-{'-'.join(str(i + 1) for i in cell.at)}-{slug(one.recipe.prompt)}.png"
                parts = chunks(Receipt.of(one.recipe, model))
                saved = save_picture(one.image, output.with_name(name), parts.png, parts.exif, parts.xmp)
                files[cell.at] = saved.name
    parts = chunks(None)
    drawn = plot.draw(pictures, prompt, side, stacked, font)
    path = save_picture(drawn, output, parts.png, parts.exif, parts.xmp)
    told = written(path.with_suffix(".json"), lambda file: file.write(plot.to_json(files).encode()))
    print(f"{path}\n{told}" if quiet else f"{path}  {len(pictures)} pictures\n{told}")


@cache
def _blank(recipe: Recipe) -> Image.Image:
    """A picture of the size that a recipe's will have."""
    from PIL import Image

    return Image.new("RGBA", (round(recipe.width * recipe.hires), round(recipe.height * recipe.hires)))


def _loads(recipe: Any) -> tuple[Any, ...]:
    """What of a recipe another model would be loaded for."""
    named = recipe.model, recipe.parts, recipe.partial, recipe.prediction, recipe.embeddings
    return *named, recipe.precision, recipe.engine

"""`limner campaign`: a picture for each row of a table, each once, however often the run is broken off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from limner.cli.making import Bar, Kept, Wishes, fitted, flag, ready, sides
from limner.cli.say import as_json, interruptible
from limner.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image

    from limner.pipeline import Model
    from limner.recipe import Recipe


def campaign(
    table: Annotated[Path, Parameter(help="A CSV file; its first row names the columns.")],
    *,
    output: Annotated[
        Path, flag("The folder of the campaign; made, or gone on with.", "--output", "--out", "-o")
    ] = Path("campaign"),
    template: Annotated[str, flag('A prompt with holes for columns: "a {colour} {thing}".', "--template")] = "",
    logo: Annotated[Path | None, flag("A picture laid over each.", "--logo")] = None,
    text: Annotated[str, flag("Words laid over each; holes for columns.", "--text")] = "",
    at: Annotated[str, flag("Where they lie: bottom right, top, center ...", "--at")] = "bottom right",
    text_size: Annotated[int, flag("Of the words, in pixels; 0 fits the picture.", "--text-size")] = 0,
    font: Annotated[Path | None, flag("A font file for words beyond Latin.", "--font")] = None,
    no_sheets: Annotated[bool, flag("Draw no contact sheets.", "--no-sheets")] = False,
    check: Annotated[bool, flag("Check every row and paint nothing.", "--check")] = False,
    size: Annotated[str, flag("WIDTHxHEIGHT in pixels where a row says nothing.", "--size")] = "",
    wishes: Wishes | None = None,
    as_lines: Annotated[bool, flag("Print a line of JSON for each picture.", "--json")] = False,
    quiet: Annotated[bool, flag("Print the paths alone, and show no progress.", "--quiet", "-q")] = False,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    keep: Kept = "auto",
) -> None:
    """Paint every row of a table: limner campaign shop.csv --template "a {colour} {fruit}" -o shop

    Columns are settings (prompt, size, seed, style ...), words for {holes}, or logo, text and name. Every row is
    checked before the first picture. A run that was broken off goes on where it was; rows that are done are not
    painted again. The folder gets the pictures, manifest.jsonl and contact sheets.
    """
    from limner.tasks.campaign import Stamp, plan, read_table, run

    rows = read_table(table)
    fields = sides(size) | (wishes or Wishes()).fields()
    if "seed" not in fields:
        fields["seed"] = 0  # the same on the next run, so that rows stay done
    model, fields = ready(fields, device, keep)

    from limner.tasks.run import begin

    stamp = Stamp(str(logo or ""), text, at, size=2 * text_size, font=str(font or ""))
    weights = hashlib.sha256(repr(sorted(model.digests.items())).encode()).hexdigest()

    def recipe(wish: dict[str, Any]) -> Recipe:
        made = begin(model, **wish)
        if made.model != fields.get("model", made.model) or made.best_of != 1:
            raise BadInput("every row is painted by the same model, and none is the best of several")
        return made

    jobs = plan(rows, fields, template, stamp, table.parent, recipe, weights)
    if check:
        print(f"{len(jobs)} rows can be painted")
        return
    model = fitted(model, [job.recipe for job in jobs])
    done = 0
    with interruptible() as heed, Bar(sum(job.recipe.length for job in jobs), quiet) as bar:
        paint = _painter(model, bar, heed)
        for step in run(jobs, paint, output, _saver(model), sheets=not no_sheets):
            done += step.fresh
            if not step.fresh:
                for _ in range(step.job.recipe.length):
                    bar.forward(step.job.recipe.prompt)
            elif as_lines:
                recipe_told = step.job.recipe.model_dump(mode="json")
                as_json({"path": str(step.path), "row": step.job.row, "line": step.job.line, "recipe": recipe_told})
            elif quiet:
                print(step.path, flush=True)
            else:
                bar.hide()
                print(f"{step.path}  row {step.job.row} of {step.total}", flush=True)
    if not (quiet or as_lines):
        print(f"{done} painted, {len(jobs) - done} were done; {output / 'manifest.jsonl'}")


def _painter(model: Model, bar: Bar, heed: Any) -> Any:
    from limner.tasks.run import painting
    from limner.types import Step

    def paint(recipes: list[Recipe]) -> Iterator[tuple[int, Image.Image]]:
        number = 0
        for event in painting(model, recipes):
            heed()
            if isinstance(event, Step):
                bar.forward(recipes[min(number, len(recipes) - 1)].prompt)
                continue
            for one in event:
                yield number, one.image
                number += 1

    return paint


def _saver(model: Model) -> Any:
    from limner.files import save_picture
    from limner.provenance.metadata import Receipt, chunks

    def save(image: Image.Image, path: Path, recipe: Recipe | None) -> None:
        parts = chunks(Receipt.of(recipe, model) if recipe else None)
        icc = image.info.get("icc_profile")
        save_picture(
            image.convert("RGBA") if recipe is None else image, path, parts.png, parts.exif, parts.xmp, False, icc
        )

    return save

"""`limner describe`: pictures to words."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from limner.cli.say import as_json, plain, rows
from limner.errors import BadInput

SIDE = 128  # pixels that a picture is fitted into; the eye sees fewer


def describe(
    pictures: Annotated[list[Path], Parameter(help="PNG, WebP or JPEG files.", consume_multiple=True)],
    /,
    *,
    top: Annotated[int, Parameter(help="How many names to give.")] = 5,
    model: Annotated[str, Parameter(name=("--model", "-m"), help="A name, a folder or a .safetensors file.")] = "mini",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, Parameter(help="Print a line of JSON for each picture.")] = False,
) -> None:
    """Say what is in pictures, in which style and in which colours, with scores.

    Names come with the cosine of picture and name, styles with a probability, colours with a share of the figure.
    """
    if top < 1:
        raise BadInput(f"--top should be 1 or more, not {top}")
    from limner.image import fitted, open_picture
    from limner.pipeline import load
    from limner.place import find_place
    from limner.tasks.describe import describe as look

    seen = [fitted(open_picture(picture), SIDE) for picture in pictures]  # a wrong path is told before a model loads
    eyes = load(model, find_place(cast(Any, device)))
    for path, picture in zip(pictures, seen, strict=True):
        found = look(eyes, picture, top)
        if json:
            as_json({"path": str(path), "sentence": found.sentence()} | asdict(found))
            continue
        print(f"{plain(str(path))}: {found.sentence()}")
        named = [f"{name} {score:.2f}" for name, score in found.names]
        styles = [f"{name} {share:.0%}" for name, share in found.styles]
        colours = [f"{name} {share:.0%}" for name, share in found.colours]
        facts = [("names", named), ("style", styles), ("colours", colours), ("clear", [f"{found.clear:.0%}"])]
        rows([(name, ", ".join(values)) for name, values in facts if values], indent="  ")

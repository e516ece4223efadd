"""`limner describe`: pictures to words."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from limner.cli.say import as_json, plain, rows
from limner.errors import BadInput, BadWeights, LimnerError

if TYPE_CHECKING:
    from limner.place import Place

SIDE = 128  # pixels that a picture is fitted into; the eye sees fewer


def describe(
    pictures: Annotated[list[Path], Parameter(help="PNG, WebP or JPEG files.", consume_multiple=True)],
    /,
    *,
    top: Annotated[int, Parameter(help="How many names or labels to give.")] = 5,
    labels: Annotated[str, Parameter(help="Choose from these: a,b,c or a file with one a line.")] = "",
    template: Annotated[
        str, Parameter(help='How a label is read; by default "a photo of a {}" for a CLIP, "{}" for mini.')
    ] = "",
    model: Annotated[
        str,
        Parameter(name=("--model", "-m"), help="A name, a folder or a .safetensors file; with --labels also a CLIP."),
    ] = "mini",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, Parameter(help="Print a line of JSON for each picture.")] = False,
) -> None:
    """Say what is in pictures, in which style and in which colours, with scores; or which of your labels fits best.

    Names come with the cosine of picture and name, styles with a probability, keywords with the share of all names
    that hold them, colours with a share of the figure. Labels come with their share among all labels: "not sure" is
    said where the best has less than twice the share of the next. One label is always best, even where none fits.
    """
    if top < 1:
        raise BadInput(f"--top should be 1 or more, not {top}")
    if template and not labels:
        raise BadInput("--template says how labels are read, and there is no --labels")
    if labels:
        return _choose(pictures, _listed(labels), template, top, model, device, json)
    from limner.image import fitted, open_picture
    from limner.pipeline import load
    from limner.place import find_place
    from limner.tasks.describe import describe as look

    seen = [fitted(open_picture(picture), SIDE) for picture in pictures]  # a wrong path is told before a model loads
    place = find_place(cast(Any, device))
    try:
        eyes = load(model, place)
    except BadWeights:
        if not _is_clip(model, place):
            raise
        raise BadInput(f"{model} is a CLIP, which knows no names of its own: give it --labels to choose from") from None
    for path, picture in zip(pictures, seen, strict=True):
        found = look(eyes, picture, top)
        if json:
            as_json({"path": str(path), "sentence": found.sentence()} | asdict(found))
            continue
        print(f"{plain(str(path))}: {found.sentence()}")
        named = [f"{name} {score:.2f}" for name, score in found.names]
        styles = [f"{name} {share:.0%}" for name, share in found.styles]
        words = [f"{name} {share:.0%}" for name, share in found.keywords] or ["not sure"] * bool(found.names)
        colours = [f"{name} {share:.0%}" for name, share in found.colours]
        facts = [("names", named), ("style", styles), ("keywords", words), ("colours", colours)]
        facts += [("clear", [f"{found.clear:.0%}"])]
        rows([(name, ", ".join(values)) for name, values in facts if values], indent="  ")
    return None


def _choose(
    pictures: list[Path], labels: list[str], template: str, top: int, model: str, device: str, json: bool
) -> None:
    from limner.image import from_pil, open_picture
    from limner.looker import MiniLooker, find_looker
    from limner.place import find_place
    from limner.tasks.match import TEMPLATE, labelled

    seen = [from_pil(open_picture(picture)) for picture in pictures]
    looker = find_looker(model, find_place(cast(Any, device)))
    template = template or ("{}" if isinstance(looker, MiniLooker) else TEMPLATE)
    for path, found in zip(pictures, labelled(looker, seen, labels, template, top), strict=True):
        if json:
            as_json({"path": str(path), "sentence": found.sentence(), "template": template} | asdict(found))
            continue
        print(f"{plain(str(path))}: {plain(found.sentence())}")
        rows([(f"{share:4.0%}", plain(label)) for label, share in found.labels], indent="  ")


def _is_clip(model: str, place: Place) -> bool:
    from limner.looker import clip_looker
    from limner.pipeline import find_model

    try:
        return bool(clip_looker(find_model(model), place))
    except LimnerError:
        return False


def _listed(labels: str) -> list[str]:
    """From a file with one a line, or a,b,c; each once, in their order."""
    try:
        is_file = Path(labels).is_file()
    except (OSError, ValueError):  # a list that is too long for a name
        is_file = False
    try:
        words = Path(labels).read_text(encoding="utf-8-sig").splitlines() if is_file else labels.split(",")
    except (OSError, ValueError) as error:
        raise BadInput(f"--labels {labels} cannot be read as UTF-8 text: {error}") from error
    found = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if len(found) < 2:
        raise BadInput(f"--labels should be a,b,c or a file with one label a line, two or more, and has {len(found)}")
    return found

"""`limner show`: what a picture carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from limner.cli.say import as_json, plain, rows

if TYPE_CHECKING:
    from limner.provenance.metadata import Receipt


def show(
    picture: Annotated[Path, Parameter(help="A PNG, WebP, JPEG or TIFF file.")],
    *,
    json: Annotated[bool, Parameter(help="Print it as JSON.")] = False,
) -> None:
    """Print the recipe that a picture carries, or the parameters of another tool, and whether it is marked as made."""
    from limner.image import open_picture
    from limner.provenance.metadata import is_marked, own_text, parameters_of, read_receipt

    image = open_picture(picture, moving=True)
    receipt = read_receipt(image, picture) if own_text(image) is not None else None
    words, marked = parameters_of(image), is_marked(image)
    if json:
        found = {"path": str(picture), "format": image.format, "size": image.size, "marked": marked}
        return as_json(found | {"parameters": words, "receipt": receipt.fields() if receipt else None})
    print(f"{plain(str(picture))}: {image.format}, {image.width}x{image.height}")
    if receipt:
        rows([(name, plain(value)) for name, value in _facts(receipt)], indent="  ")
    elif words:
        print(f"  the parameters of another tool:\n{plain(words)}")
    else:
        print("  no recipe")
    print(f"  {'marked as made by a trained model' if marked else 'no mark that a trained model made it'} (IPTC, XMP)")
    return None


def _facts(receipt: Receipt) -> list[tuple[str, str]]:
    r = receipt.recipe
    guidance = f"{r.cfg_scale:g} from t = {r.cfg_interval[0]:g} to {r.cfg_interval[1]:g}"
    attention = f"{r.pag_scale:g} from t = {r.pag_interval[0]:g} to {r.pag_interval[1]:g}"
    weights = ", ".join(f"{Path(name).stem} {digest[:8]}" for name, digest in sorted(receipt.weights.items()))
    told = {"version", "task", "prompt", "negative", "style", "seed", "best_of", "width", "height", "steps", "sampler"}
    told |= {"schedule", "cfg_scale", "cfg_interval", "cfg_rescale", "pag_scale", "pag_interval", "model"}
    others = {name: value for name, value in r.model_dump(exclude_defaults=True).items() if name not in told}
    return [
        ("prompt", r.prompt or "none"),
        *([("negative", r.negative)] if r.negative else []),
        ("style", r.style or "any"),
        ("seed", str(r.seed)),
        *([("best of", str(r.best_of))] if r.best_of > 1 else []),
        ("size", f"{r.width}x{r.height}"),
        ("steps", f"{r.steps}, {r.sampler}, {r.schedule}"),
        ("guidance", guidance + (f", rescaled by {r.cfg_rescale:g}" if r.cfg_rescale else "")),
        *([("perturbed-attention guidance", attention)] if r.pag_scale else []),
        ("model", r.model),
        *((name.replace("_", " "), _said(value)) for name, value in others.items()),
        ("weights", weights),
        ("painted", f"in {receipt.dtype} by limner {receipt.version}"),
        ("recipe", r.id[:16]),
    ]


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

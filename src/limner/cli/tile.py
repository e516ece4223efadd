"""`limner tile`: seamless textures, and the maps of a material."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from limner.cli.making import Kept, Output, Wishes, batches, flag, ready, sides
from limner.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def tile(
    prompt: Annotated[str, Parameter(help="The texture.")],
    *,
    size: Annotated[str, flag("WIDTHxHEIGHT in pixels, or one number for both.", "--size")] = "",
    axis: Annotated[str, flag("The directions that join: xy, x or y.", "--axis")] = "xy",
    count: Annotated[int, flag("Textures to make, each from the next seed.", "--count", "-b")] = 1,
    maps: Annotated[bool, flag("Add normal, height, roughness and ambient occlusion.", "--maps")] = False,
    preview: Annotated[bool, flag("Add the texture laid two by two.", "--preview")] = False,
    directx: Annotated[bool, flag("Normals whose green points down.", "--directx")] = False,
    relief: Annotated[float, flag("How steep the maps make it; 1 is plain.", "--relief")] = 1.0,
    wishes: Wishes | None = None,
    out: Output | None = None,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    keep: Kept = "auto",
) -> None:
    """Paint a texture whose borders join: limner tile "green leaves" --size 256 --maps --preview

    The seam score is told: how much the picture changes across the border against inside; 1.00 joins without a seam.
    Maps are derived from the picture's light by rule, not painted by a model.
    """
    out = out or Output()
    if count < 1:
        raise BadInput(f"--count should be 1 or more, not {count}")
    if axis not in ("xy", "x", "y"):
        raise BadInput(f"--axis should be xy, x or y, not {axis!r}")
    if not 0 <= relief <= 100:
        raise BadInput(f"--relief should be from 0 to 100, not {relief:g}")
    fields = {"task": "tile", "prompt": prompt, "seamless": axis} | sides(size) | (wishes or Wishes()).fields()
    model, fields = ready(fields, device, keep)

    from limner.tasks.afford import sparing
    from limner.tasks.run import begin, several

    recipes = several(begin(model, **fields), count)
    for finished, seconds in batches(sparing(model, recipes), recipes, out.quiet):
        for one in finished:
            path = out.save(one, model, out.path(one.recipe, count == 1))
            out.tell(path, one, seconds)
            _beside(path, one.picture, axis, maps, preview, relief, directx, out.quiet or out.as_json)


def _beside(
    path: Path, picture: Tensor, axis: str, more: bool, preview: bool, relief: float, directx: bool, quiet: bool
) -> None:
    """What lies beside a texture: its maps, a preview, a word about its seams."""
    from limner.files import save_picture
    from limner.image import to_pil
    from limner.provenance.metadata import chunks
    from limner.seams import seam_score, two_by_two
    from limner.tasks.maps import maps

    made: dict[str, Image.Image] = {}
    if more:
        around = ("x" in axis, "y" in axis)
        made |= maps(picture, around, relief, "directx" if directx else "opengl").images()
    if preview:
        made["2x2"] = to_pil(two_by_two(picture))
    if not quiet:
        across, down = seam_score(picture)
        print(f"  seam score {across:.2f} in x, {down:.2f} in y")
    parts = chunks(None)
    for name, image in made.items():
        saved = save_picture(image, path.with_name(f"{path.stem}-{name}.png"), parts.png, parts.exif, parts.xmp)
        if not quiet:
            print(f"  {saved}")

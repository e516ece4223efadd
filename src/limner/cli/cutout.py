"""`limner cutout`: a picture's ground made transparent."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from limner.cli.say import as_json, plain
from limner.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from limner.provenance.metadata import Chunks

USER_COMMENT, EXIF_IFD = 0x9286, 0x8769


def cutout(
    picture: Annotated[Path, Parameter(help="The picture.")],
    *,
    out: Annotated[
        Path | None,
        Parameter(name=("--output", "--out", "-o"), help="Where to: PNG, WebP or TIFF; PICTURE-cutout.png by default."),
    ] = None,
    method: Annotated[
        Literal["auto", "alpha", "ground", "mask"],
        Parameter(help="auto: your mask, else the alpha that is there, else an even ground told from the border."),
    ] = "auto",
    mask: Annotated[Path | None, Parameter(help="A picture of the same size: white is kept, black goes.")] = None,
    tolerance: Annotated[
        float, Parameter(help="How far the ground may stray: a difference of colours (CIE 1976), 2.3 is just seen.")
    ] = 8.0,
    soft: Annotated[float, Parameter(help="How many pixels around an edge figure and ground may be mixed.")] = 2.0,
    holes: Annotated[bool, Parameter(help="Take the ground away inside the figure as well.")] = False,
    json: Annotated[bool, Parameter(help="Print a line of JSON.")] = False,
) -> None:
    """Make a picture's ground transparent, and say how it was done.

    No network looks at the picture: an even or smoothly changing ground is told from the border and taken away as far
    as it hangs together; edges become soft and lose its colour. A busy ground is refused: that wants a mask.
    """
    name = f"{picture.stem}-cutout.png"
    out = out or picture.with_name(name)
    out = out / name if out.is_dir() else out
    from limner.files import kind_of, save_picture
    from limner.image import open_picture, read_original, to_pil
    from limner.tasks.cutout import cutout as cut

    if kind_of(out) == "JPEG":
        raise BadInput(f"{out} would be a JPEG, which knows no transparency; PNG, WebP and TIFF do")
    original = read_original(picture)
    keep = _white(open_picture(mask)) if mask else None
    found = cut(_own(original.image), method, keep, tolerance, soft, holes)
    image = original.image if found.method == "alpha" else to_pil(found.picture)
    words = _kept(open_picture(picture), picture)
    path = save_picture(image, out, words.png, words.exif, words.xmp, icc=original.icc)
    if json:
        figures = {name: round(value, 4) for name, value in found.figures.items()}
        return as_json({"path": str(path), "from": str(picture), "method": found.method, "how": found.how} | figures)
    print(f"{plain(str(path))}: {found.how}")
    return None


def _own(image: Image.Image) -> Tensor:
    """4 H W, premultiplied, in the picture's own colours: what is not cut keeps its bytes."""
    from limner.image import from_pil

    bare = image.copy()
    bare.info = {}
    return from_pil(bare)


def _white(mask: Image.Image) -> Tensor:
    """How white a mask is, H W; what is clear in it counts as black."""
    from limner.image import from_pil

    return from_pil(mask)[:3].mean(0)


def _kept(image: Image.Image, name: Path) -> Chunks:
    """The recipe, the words of other tools and the marks of a picture, for what is cut from it."""
    from PIL.PngImagePlugin import PngInfo

    from limner.provenance.metadata import Chunks, chunks, parameters_of, read_receipt

    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    packet = packet.encode() if isinstance(packet, str) else packet
    with contextlib.suppress(BadInput):  # no recipe of ours, or one that cannot be read
        kept = chunks(read_receipt(image, name))
        return Chunks(kept.png, kept.exif, packet or kept.xmp)
    png, exif, words = PngInfo(), image.getexif(), parameters_of(image)
    if packet:
        png.add_itxt("XML:com.adobe.xmp", packet.decode("utf-8", "replace"))
    if words:
        png.add_itxt("parameters", words)
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + words.encode("utf-16-be", "replace")
    return Chunks(png, exif.tobytes() if len(exif) or words else b"", packet)

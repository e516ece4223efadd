"""A source's file to 128 x 128 RGBA pixels, as the pictograms were made: reduced, enlarged, or drawn from vectors.

Drawings are rendered by resvg at 256 pixels and halved: Lanczos in float on premultiplied colour, rounded half up.
This was found by trying. Drawn so from a redistributed copy of the icons, whose numbers are rounded, 3,219 of the
4,171 silhouettes came out bit for bit and 904 at 41 dB or better; the 48 others bear names that the copy has for
another icon. That the pictures of 512 pixels were reduced by the same rule is likely and unproven; of the fonts' glyphs
only the placing could be looked at.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from limner.errors import BadData

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # H W 4, straight colour, black where alpha is 0
SIDE = 128
GROUND = re.compile(r'<path d="M0 0h512v512H0z"[^>]*?(?:/>|></path>)')  # of game-icons' files
FINE = 1024  # pixels to find a glyph's ink by
RENDERED = 256  # vectors are drawn at twice the side, and halved


def draw(way: str, content: bytes, glyph: str = "") -> Pixels:
    """The picture that a file of its source holds, by one of WAYS; what cannot be drawn is BadData in words."""
    try:
        return WAYS[way](content, glyph)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadData(f"cannot be drawn: {error}") from error


def needs(way: str) -> str:
    """What must be installed for a way of drawing and is not: a sentence, or nothing."""
    missing = [name for name in LIBRARIES.get(way, ()) if not _there(name)]
    return f"{', '.join(missing)} is not installed: pip install 'limner[data]'" if missing else ""


def _there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _opened(content: bytes) -> Image.Image:
    if content.startswith(b"version https://git-lfs"):
        raise ValueError("the clone holds a pointer to Git LFS and not the picture")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return image.convert("RGBA")


def _pixels(content: bytes, _: str) -> Pixels:
    """As it is, in the middle of the square."""
    return _centred(_opened(content))


def _enlarged(content: bytes, _: str) -> Pixels:
    """Four times as large, with hard pixels."""
    image = _opened(content)
    return _centred(image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST))


def _reduced(content: bytes, _: str) -> Pixels:
    return reduced(_opened(content))


def _vector(content: bytes, _: str) -> Pixels:
    return _svg(_text(content))


def _silhouette(content: bytes, _: str) -> Pixels:
    """White shapes on a black square, as black ones on a transparent ground."""
    return _svg(re.sub("#fff(fff)?\\b", "#000", GROUND.sub("", _text(content)), flags=re.IGNORECASE))


def _text(content: bytes) -> str:
    """SVG as text; Illustrator's older files say ISO-8859-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _svg(svg: str) -> Pixels:
    resvg = importlib.import_module("resvg_py")
    wide = _opened(bytes(resvg.svg_to_bytes(svg_string=svg, width=RENDERED)))
    if wide.height > RENDERED:
        wide = _opened(bytes(resvg.svg_to_bytes(svg_string=svg, height=RENDERED)))
    return reduced(wide)


def _glyph(content: bytes, glyph: str) -> Pixels:
    """A glyph's drawing in a colour font's table SVG: its ink centred, the longest side 15/16 of the square's.

    That placing was inferred from where the ink stands in the shards' flat pictures; it is near, not proven.
    """
    document, em = _document(content, glyph)
    frame = (-em, -2 * em, 4 * em)  # wide enough to hold all ink
    drawn = _opened(_rendered(document, frame, FINE))
    ink = drawn.getchannel("A").getbbox()
    if ink is None:
        raise ValueError(f"glyph {glyph} has no ink")
    scale, longest = 4 * em / FINE, max(ink[2] - ink[0], ink[3] - ink[1])
    side = longest * scale * 16 / 15
    middle = [start + (low + high) / 2 * scale for start, low, high in zip(frame, ink[:2], ink[2:], strict=False)]
    return reduced(_opened(_rendered(document, (middle[0] - side / 2, middle[1] - side / 2, side))))


def _document(content: bytes, glyph: str) -> tuple[str, float]:
    """The SVG document that holds a glyph, as a template with a place for its frame; and the em in its units."""
    fonts = importlib.import_module("fontTools.ttLib")
    try:
        font = fonts.TTFont(io.BytesIO(content), lazy=True)
        if "SVG " not in font or glyph not in font.getGlyphOrder():
            raise ValueError(f"the font has no {'glyph ' + glyph if 'SVG ' in font else 'table SVG'}")
        number, em = font.getGlyphID(glyph), float(font["head"].unitsPerEm)
        held = [d.data for d in font["SVG "].docList if d.startGlyphID <= number <= d.endGlyphID]
    except fonts.TTLibError as error:
        raise ValueError(str(error)) from error
    opened = re.search(r"<svg\b[^>]*>", held[0]) if held else None
    if opened is None or f'id="glyph{number}"' not in held[0]:
        raise ValueError(f"the font's table SVG does not draw glyph {glyph}")
    inner = held[0][opened.end() : held[0].rindex("</svg>")]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} FRAME><defs>{inner}</defs><use xlink:href="#glyph{number}"/></svg>', em


def _rendered(document: str, frame: tuple[float, float, float], pixels: int = RENDERED) -> bytes:
    x, y, side = frame
    box = f'viewBox="{x} {y} {side} {side}" width="{pixels}" height="{pixels}"'
    resvg = importlib.import_module("resvg_py")
    return bytes(resvg.svg_to_bytes(svg_string=document.replace("FRAME", box, 1)))


WAYS: dict[str, Callable[[bytes, str], Pixels]] = {
    "pixels": _pixels,
    "enlarged": _enlarged,
    "reduced": _reduced,
    "vector": _vector,
    "silhouette": _silhouette,
    "glyph": _glyph,
}
EXACT = ("pixels", "enlarged")  # nothing is rounded or rendered: other bytes are another picture
LIBRARIES = {"vector": ("resvg_py",), "silhouette": ("resvg_py",), "glyph": ("fontTools", "brotli", "resvg_py")}


def reduced(image: Image.Image) -> Pixels:
    """Fitted into the square: Lanczos on premultiplied colour in float, then straight colour, rounded half up."""
    scale = SIDE / max(image.size)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    array = np.asarray(image, np.float32) / 255
    planes = np.concatenate([array[..., :3] * array[..., 3:], array[..., 3:]], axis=2)
    resized = [Image.fromarray(planes[..., c]).resize(inner, Image.Resampling.LANCZOS) for c in range(4)]
    found = np.stack([np.asarray(plane) for plane in resized], axis=2)
    alpha = found[..., 3:].clip(0, 1)
    colour = np.where(alpha > 0, found[..., :3] / np.maximum(alpha, 1e-6), 0).clip(0, 1)
    bytes_ = np.floor(np.concatenate([colour, alpha], axis=2) * 255 + 0.5).astype(np.uint8)
    return _centred(Image.fromarray(bytes_))


def _centred(image: Image.Image) -> Pixels:
    if max(image.size) > SIDE:
        raise ValueError(f"it is {image.width} x {image.height} where at most {SIDE} were expected")
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    pixels = np.array(square)
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def webp(pixels: Pixels) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "WEBP", lossless=True, exact=True, quality=80, method=4)
    return kept.getvalue()


def from_webp(content: bytes) -> Pixels:
    with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
        pixels = np.array(image.convert("RGBA"))
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def decibels(got: Pixels, want: Pixels) -> float:
    """PSNR of two pictures on a white ground; no more than 100."""
    white = [(p[..., :3] / 255.0) * (p[..., 3:] / 255.0) + 1 - p[..., 3:] / 255.0 for p in (got, want)]
    return float(-10 * np.log10(max(((white[0] - white[1]) ** 2).mean(), 1e-10)))

"""Sprite sheets: many pictures in one atlas, and the JSON of frames by which game engines cut it up again.

The JSON is that of TexturePacker, which Phaser, PixiJS, melonJS and others load: its hash form has frames by name, its
array form frames in order. `frame` is the rectangle in the atlas, `spriteSourceSize` where it stood in the picture
before its clear borders were cut away, `sourceSize` the size of that picture.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner import __version__
from limner.errors import BadInput, NotSaved

LARGEST = 16_384  # pixels a side; what graphics cards take

Box = tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True)
class Frame:
    """One picture of a sheet."""

    name: str
    at: Box  # in the atlas
    cut: Box  # in the picture as it came
    size: tuple[int, int]  # of that picture

    def fields(self, pivot: tuple[float, float] | None = None) -> dict[str, Any]:
        whole = self.cut == (0, 0, *self.size)
        told: dict[str, Any] = {
            "frame": dict(zip("xywh", self.at, strict=True)),
            "rotated": False,
            "trimmed": not whole,
            "spriteSourceSize": dict(zip("xywh", self.cut, strict=True)),
            "sourceSize": dict(zip("wh", self.size, strict=True)),
        }
        if pivot:  # Phaser reads pivot, PixiJS anchor; both are shares of the sides
            told["pivot"] = told["anchor"] = dict(zip("xy", pivot, strict=True))
        return told


@dataclass(frozen=True)
class Sheet:
    """An atlas and its frames, in the order in which the pictures came."""

    atlas: Image.Image
    frames: tuple[Frame, ...]
    pivot: tuple[float, float] | None = None

    def fields(self, image: str = "sheet.png", array: bool = False) -> dict[str, Any]:
        """The JSON of an atlas that is saved under this name; `array` gives the frames in order."""
        frames = [(frame.name, frame.fields(self.pivot)) for frame in self.frames]
        meta = {
            "app": "limner",
            "version": __version__,
            "image": image,
            "format": "RGBA8888",
            "size": dict(zip("wh", self.atlas.size, strict=True)),
            "scale": "1",
        }
        listed = [{"filename": name} | fields for name, fields in frames]
        return {"frames": listed if array else dict(frames), "meta": meta}

    def save(
        self, path: Path, array: bool = False, png: PngInfo | None = None, exif: bytes = b"", xmp: bytes = b""
    ) -> tuple[Path, Path]:
        """Write the atlas, PNG or WebP, and its JSON beside it, neither over a file that is there."""
        from limner.files import save_picture

        if path.suffix.lower() not in (".png", ".webp"):
            raise BadInput(f"a sheet keeps clear ground, so it is a .png or .webp, not {path.name!r}")
        free, number = path, 1
        while free.exists() or free.with_suffix(".json").exists():
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")
        saved = save_picture(self.atlas, free, png, exif, xmp)
        told = saved.with_suffix(".json")
        partial = told.with_name(f".limner-{secrets.token_hex(6)}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(self.fields(saved.name, array), file, indent=1, ensure_ascii=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, told)
        except OSError as error:
            partial.unlink(missing_ok=True)
            saved.unlink(missing_ok=True)
            raise NotSaved(f"{told} could not be written: {error.strerror or error}") from error
        return saved, told


def sheet(
    pictures: Sequence[Image.Image],
    names: Sequence[str],
    columns: int = 0,
    padding: int = 2,
    trim: bool = True,
    extrude: int = 0,
    power_of_two: bool = False,
    pivot: tuple[float, float] | None = None,
) -> Sheet:
    """Lay pictures on one transparent atlas.

    With `columns` they stand in order, so many a row; without, in shelves by height, near a square. `trim` cuts clear
    borders away, `padding` pixels stay clear around each, `extrude` pixels of each border are repeated outwards, so
    that filtering draws in no neighbour.
    """
    if not pictures or len(pictures) != len(names):
        raise BadInput(f"a sheet needs pictures and a name for each, not {len(pictures)} and {len(names)} names")
    for what, value in (("columns", columns), ("padding", padding), ("extrude", extrude)):
        if value < 0:
            raise BadInput(f"{what} should be 0 or more, not {value}")
    if pivot and not all(0 <= share <= 1 for share in pivot):
        raise BadInput(f"pivot should be two shares from 0 to 1, not {pivot}")
    whole = [picture.convert("RGBA") for picture in pictures]
    cuts = [_clip(picture) if trim else (0, 0, *picture.size) for picture in whole]
    room = [(w + 2 * extrude + padding, h + 2 * extrude + padding) for _, _, w, h in cuts]
    spots, (wide, high) = _in_columns(room, columns) if columns else _in_shelves(room)
    size = (wide + padding, high + padding)
    if power_of_two:
        size = (1 << (size[0] - 1).bit_length(), 1 << (size[1] - 1).bit_length())
    if max(size) > LARGEST:
        raise BadInput(f"the sheet would have {size[0]} x {size[1]} pixels; graphics cards take {LARGEST} a side")
    atlas, frames = Image.new("RGBA", size), []
    for picture, name, cut, spot in zip(whole, unique(names), cuts, spots, strict=True):
        x, y, w, h = cut
        at = (spot[0] + padding + extrude, spot[1] + padding + extrude)
        sprite = picture.crop((x, y, x + w, y + h))
        atlas.paste(_extruded(sprite, extrude), (at[0] - extrude, at[1] - extrude))
        frames.append(Frame(name, (*at, w, h), cut, picture.size))
    return Sheet(atlas, tuple(frames), pivot)


def unique(names: Sequence[str]) -> list[str]:
    """Names that engines and file systems take, no two the same even where case does not count: "a cat!" is a-cat.

    Names of digits alone would be put in another order by JavaScript; they are called frame-1.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", name)).strip("-._")[:100] or "frame"
        plain = f"frame-{plain}" if plain.isdigit() else plain
        free, number = plain, 1
        while free.casefold() in taken:
            number += 1
            free = f"{plain}-{number}"
        taken.add(free.casefold())
        found.append(free)
    return found


def _clip(picture: Image.Image) -> Box:
    """What is not clear; a picture that is all clear keeps one pixel."""
    found = picture.getchannel("A").getbbox()
    left, top, right, bottom = found or (0, 0, 1, 1)
    return left, top, right - left, bottom - top


def _in_columns(room: Sequence[tuple[int, int]], columns: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Places in rows; a column is as wide as the widest in it, a row as high as the highest."""
    widths = [max(w for w, _ in room[i::columns]) for i in range(min(columns, len(room)))]
    heights = [max(h for _, h in room[i : i + columns]) for i in range(0, len(room), columns)]
    spots = [(sum(widths[: i % columns]), sum(heights[: i // columns])) for i in range(len(room))]
    return spots, (sum(widths), sum(heights))


def _in_shelves(room: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Places by first fit on shelves, the highest first; of some widths from a square's on, that which wastes least."""
    side = math.isqrt(sum(w * h for w, h in room))
    least = max(w for w, _ in room)
    tries = [_shelves(room, max(least, side * share // 8)) for share in range(8, 13)]
    return min(tries, key=lambda found: (found[1][0] * found[1][1], max(found[1])))


def _shelves(room: Sequence[tuple[int, int]], wide: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    spots = [(0, 0)] * len(room)
    shelves: list[list[int]] = []  # of each: how far it is filled, and where it begins
    high = 0
    for i in sorted(range(len(room)), key=lambda i: -room[i][1]):
        w, h = room[i]
        shelf = next((shelf for shelf in shelves if shelf[0] + w <= wide), None)
        if shelf is None:
            shelf = [0, high]
            shelves.append(shelf)
            high += h
        spots[i] = (shelf[0], shelf[1])
        shelf[0] += w
    return spots, (max(shelf[0] for shelf in shelves), high)


def _extruded(sprite: Image.Image, by: int) -> Image.Image:
    """The sprite with its outermost pixels repeated outwards."""
    if not by:
        return sprite
    w, h = sprite.size
    wide = Image.new("RGBA", (w + 2 * by, h + 2 * by))
    for x, column in ((by, (0, 0, w, h)), (0, (0, 0, 1, h)), (by + w, (w - 1, 0, w, h))):
        part = sprite.crop(column)
        wide.paste(part if x == by else part.resize((by, h), Image.Resampling.NEAREST), (x, by))
    for y, row in ((0, by), (by + h, by + h - 1)):
        wide.paste(wide.crop((0, row, w + 2 * by, row + 1)).resize((w + 2 * by, by), Image.Resampling.NEAREST), (0, y))
    return wide

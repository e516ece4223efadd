"""Sheets for the eye: what the model paints, nothing chosen, and what of the training set lies nearest to it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 12  # pixels between pictures
LEFT = 190  # width of the column of prompts
INK, FAINT = (30, 30, 30), (120, 120, 120)


@dataclass(frozen=True)
class Tile:
    picture: Tensor  # 4 H W in [0, 1], premultiplied
    under: tuple[str, ...] = ()  # lines below it


@dataclass(frozen=True)
class Strip:
    """A row of a sheet."""

    words: str
    tiles: Sequence[Tile]


def draw_sheet(title: str, heads: Sequence[str], strips: Sequence[Strip]) -> Image.Image:
    """Rows of pictures on white, the words of each at its left, a line of heads above the columns."""
    side = strips[0].tiles[0].picture.shape[-1]
    lines = max(len(tile.under) for strip in strips for tile in strip.tiles)
    wide, high, top = side + GAP, side + GAP + 14 * lines, 64
    columns = max(len(strip.tiles) for strip in strips)
    sheet = Image.new("RGB", (LEFT + columns * wide + GAP, top + len(strips) * high + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, INK, _font(18))
    for i, head in enumerate(heads):
        pen.text((LEFT + i * wide + side / 2, top - 8), head, FAINT, _font(13), anchor="ms")
    for y, strip in enumerate(strips):
        at = top + y * high
        words = "\n".join(textwrap.wrap(strip.words, 19, max_lines=6, placeholder=" ..."))
        pen.multiline_text((GAP, at + side / 2), words, INK, _font(16), anchor="lm")
        for x, tile in enumerate(strip.tiles):
            left = LEFT + x * wide
            sheet.paste(on_white(tile.picture), (left, at))
            for n, line in enumerate(tile.under):
                short = line if len(line) <= side // 6 else line[: side // 6 - 1] + "…"
                pen.text((left + side / 2, at + side + 1 + 14 * n), short, FAINT, _font(12), anchor="ma")
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def on_white(picture: Tensor) -> Image.Image:
    pixels = (picture[:3] + 1 - picture[3:]).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

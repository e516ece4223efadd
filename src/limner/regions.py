"""Regions of a picture in words: "left:0-0.5,top:0.2-1 a cat" is a box and a prompt."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from limner.errors import BadInput, UnknownName

Box = tuple[float, float, float, float]  # x0 y0 x1 y1: shares of the width from the left, of the height from the top
SIDES = ("left", "right", "top", "bottom")
FORM = 'a region is "left:0-0.5 PROMPT", "top:0.2-1,left:0-0.5 PROMPT" or "box:0,0,0.5,1 PROMPT"'
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")


def parse_region(text: str) -> tuple[str, str]:
    """Where and what: the box as it was written, checked, and the prompt behind it."""
    where, _, prompt = text.strip().partition(" ")
    parse_box(where)
    if not prompt.strip():
        raise BadInput(f"the region {text!r} has no prompt; {FORM}")
    return where, prompt.strip()


def parse_box(text: str) -> Box:
    """The box that a text names, such as "left:0-0.5,top:0.2-1"; an axis that is not named is whole.

    left and top count from there, right and bottom from the other end; "box:x0,y0,x1,y1" says all four.
    """
    kind, _, rest = text.partition(":")
    if kind == "box":
        x0, y0, x1, y1 = _numbers(text, rest, ",", 4)
        return _checked(text, x0, x1)[0], _checked(text, y0, y1)[0], x1, y1
    spans: dict[bool, tuple[float, float]] = {}  # by whether the axis is the vertical one
    for part in text.split(","):
        side, colon, span = part.partition(":")
        if not colon:
            raise BadInput(f"{part!r} in the region {text!r} is no range of a side; {FORM}")
        if side not in SIDES:
            raise UnknownName("side of a region", side, (*SIDES, "box"))
        vertical = side in ("top", "bottom")
        if vertical in spans:
            raise BadInput(f"the region {text!r} says twice how {'high' if vertical else 'wide'} it is")
        low, high = _checked(text, *_numbers(text, span, "-", 2))
        spans[vertical] = (low, high) if side in ("left", "top") else (1 - high, 1 - low)
    (x0, x1), (y0, y1) = spans.get(False, (0.0, 1.0)), spans.get(True, (0.0, 1.0))
    return x0, y0, x1, y1


def region_mask(box: str | Box, h: int, w: int, soft: float = 0.0) -> Tensor:
    """1 inside the box and 0 outside, 1 1 h w: cells that the border crosses take the share that is inside.

    soft: how wide the border is, in shares of the sides; one cell at least. The picture's own borders are sharp.
    """
    x0, y0, x1, y1 = parse_box(box) if isinstance(box, str) else box
    return (_inside(y0, y1, h, soft)[:, None] * _inside(x0, x1, w, soft)).float()[None, None]


def _inside(low: float, high: float, cells: int, soft: float) -> Tensor:
    """Along one side: from 0 to 1 around `low`, from 1 to 0 around `high`."""
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    wide = max(soft, 1 / cells)
    rise = ((centres - low) / wide + 0.5).clamp(0, 1) if low > 0 else torch.ones_like(centres)
    fall = ((high - centres) / wide + 0.5).clamp(0, 1) if high < 1 else torch.ones_like(centres)
    return (rise + fall - 1).clamp(min=0)


def _numbers(text: str, said: str, mark: str, count: int) -> list[float]:
    words = said.split(mark)
    if len(words) != count or not all(NUMBER.fullmatch(word) for word in words):
        raise BadInput(f"the region {text!r} has {said!r} where {count} numbers from 0 to 1 should stand; {FORM}")
    return [float(word) for word in words]


def _checked(text: str, low: float, high: float) -> tuple[float, float]:
    if not 0 <= low < high <= 1:
        raise BadInput(f"the region {text!r} goes from {low:g} to {high:g}; ranges rise, from 0 to 1")
    return low, high

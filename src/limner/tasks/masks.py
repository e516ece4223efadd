"""What of a picture is to be painted anew: a picture of light and dark, a rectangle, or what is clear."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import BadInput
from limner.image import Original, from_pil, open_picture
from limner.palette import grey

NOISE = 16 / 255  # what a JPEG leaves of light around an edge in a mask's black, and of dark in its white


def fill_of(mask: str, original: Original) -> Tensor:
    """H W in [0, 1]; 1 is painted anew.

    mask: a file, white where it is painted, on black where it is clear; "x,y,w,h" in pixels from the top left; or
    "alpha" for what is clear in the picture itself.
    """
    h, w = original.picture.shape[1:]
    if mask == "alpha":
        if not original.has_alpha:
            raise BadInput("the mask is to be the picture's alpha, and the picture has none")
        return 1 - original.picture[3]
    if found := re.fullmatch(r"\s*(-?\d+)\s*[,;]\s*(-?\d+)\s*[,;]\s*(\d+)\s*[,;x]\s*(\d+)\s*", mask):
        x, y, wide, high = map(int, found.groups())
        box = torch.zeros(h, w)
        box[max(0, y) : max(0, y + high), max(0, x) : max(0, x + wide)] = 1
        if not box.any():
            raise BadInput(f"the mask {mask} lies outside of the picture, which is {w}x{h}")
        return box
    light = from_pil(open_picture(Path(mask).expanduser()))  # 4 H W, on black already
    if light.shape[1:] != (h, w):
        raise BadInput(
            f"the mask {mask} is {light.shape[2]}x{light.shape[1]} and the picture {w}x{h}; they lie together"
        )
    share = grey(light[:3])[0]
    return torch.where(share < NOISE, 0.0, torch.where(share > 1 - NOISE, 1.0, share))

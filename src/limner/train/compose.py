"""Pictures made from pictures, with captions that are exactly true: other colours, grounds, numbers, neighbours."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.palette import HUES, dominant, recolour, to_rgb
from limner.train.captions import Scene
from limner.train.data import Words

HANDED = {"left", "right", "letter", "button", "clock", "o’clock", "arrow", "arrows", "keycap", "flag", "latin", "sign",
          "symbol", "sos", "text", "word", "book", "number", "music", "note", "calendar", "east", "west"}  # fmt: skip
WEARERS = {"face", "cat", "dog", "bear", "panda", "fox", "lion", "tiger", "monkey", "frog", "pig", "mouse",
           "rabbit", "koala", "cow", "horse", "robot", "alien", "ghost", "owl", "penguin", "wolf", "hamster",
           "snowman"}  # fmt: skip
HATS = {"top hat", "billed cap", "woman’s hat", "graduation cap", "rescue worker’s helmet", "crown", "military helmet"}


def is_handed(words: Words) -> bool:
    """Whether left and right may matter: signs, letters, clocks, flags, directions."""
    return bool(HANDED & set(f"{words.name} {' '.join(words.keywords)}".lower().replace(":", " ").split()))


def mirrored(picture: Tensor, words: Words) -> tuple[Tensor, Scene] | None:
    """Left and right exchanged, unless the words hint at signs or directions."""
    if is_handed(words):
        return None
    return picture.flip(2), Scene("mirror", colour=dominant(picture) or "")


def recoloured(picture: Tensor, words: Words, draw: random.Random) -> tuple[Tensor, Scene] | None:
    """The main hue turned, and the caption says into which. People and flags keep their colours."""
    if {"skin", "flag", "hair"} & set(words.name.replace(":", " ").split()):
        return None
    colour = draw.choice([name for name in HUES if name != dominant(picture)])
    if words.style == "silhouette":
        rgb = to_rgb(torch.tensor([HUES[colour], draw.uniform(0.6, 0.95), draw.uniform(0.75, 1.0)])[:, None, None])
        return torch.cat([rgb * picture[3:], picture[3:]]), Scene("recolour", colour=colour)
    turned = recolour(picture, colour)
    return None if turned is None else (turned, Scene("recolour", colour=colour))


def grounded(picture: Tensor, draw: random.Random) -> tuple[Tensor, Scene]:
    """On a flat rounded square or disc: a colour that the thing does not have."""
    own = dominant(picture, 0.4)
    colour = draw.choice([name for name in (*HUES, "white") if name != own])
    hsv = [HUES.get(colour, 0.0), 0.0 if colour == "white" else draw.uniform(0.35, 0.8), draw.uniform(0.85, 1.0)]
    small = shrunk(picture, draw.uniform(0.66, 0.8))
    return layered(small, _plate(picture, hsv, draw.random() < 0.4)), Scene(
        "ground", colour=dominant(picture) or "", ground=colour
    )


def at_night(picture: Tensor, draw: random.Random) -> tuple[Tensor, Scene]:
    """A little darker, before a night sky with stars and a moon."""
    plate = _plate(picture, [draw.uniform(222, 250), draw.uniform(0.6, 0.8), draw.uniform(0.25, 0.42)], False)
    side = picture.shape[-1]
    grid = torch.arange(side, dtype=torch.float32)
    for _ in range(draw.randint(5, 10)):
        y, x, r = draw.uniform(0.1, 0.7) * side, draw.uniform(0.08, 0.92) * side, draw.uniform(0.9, 1.8)
        plate = _dot(plate, grid, y, x, r, (1.0, 1.0, 0.85))
    plate = _dot(plate, grid, 0.18 * side, draw.choice((0.2, 0.8)) * side, 0.085 * side, (1.0, 0.95, 0.7))
    dark = shrunk(picture, draw.uniform(0.6, 0.72), down=0.08)
    dark = torch.cat([dark[:3] * torch.tensor([0.72, 0.75, 0.9])[:, None, None], dark[3:]])
    return layered(dark, plate), Scene("night", colour="")


def counted(picture: Tensor, draw: random.Random) -> tuple[Tensor, Scene]:
    """The thing twice, three or four times."""
    count = draw.randint(2, 4)
    size = 0.5 if count != 3 else 0.46
    spots = {2: [(0, -1), (0, 1)], 3: [(-1, 0), (1, -1), (1, 1)], 4: [(-1, -1), (-1, 1), (1, -1), (1, 1)]}[count]
    out = torch.zeros_like(picture)
    for down, right in spots:
        out = layered(shrunk(picture, size, down * 0.25, right * 0.25), out)
    return out, Scene("count", colour=dominant(picture) or "", count=count)


def paired(picture: Tensor, other: Tensor, name: str) -> tuple[Tensor, Scene]:
    """Two things side by side, the first on the left."""
    out = layered(shrunk(picture, 0.5, 0, -0.25), shrunk(other, 0.5, 0, 0.25))
    return out, Scene("pair", colour=dominant(picture) or "", other=name)


def can_wear(words: Words) -> bool:
    """Whether a hat would sit on it."""
    return bool(WEARERS & set(words.name.lower().split()))


def hatted(picture: Tensor, hat: Tensor, name: str) -> tuple[Tensor, Scene]:
    """A hat on top."""
    out = layered(shrunk(hat, 0.52, -0.27), shrunk(picture, 0.8, 0.1))
    return out, Scene("hat", colour=dominant(picture) or "", other=name)


def shrunk(picture: Tensor, scale: float, down: float = 0.0, right: float = 0.0) -> Tensor:
    """The picture at a scale, its centre moved by shares of the side."""
    side = picture.shape[-1]
    inner = max(1, round(side * scale))
    small = F.interpolate(picture[None], size=(inner, inner), mode="area")[0]
    out = torch.zeros_like(picture)
    top = min(max(0, round((side - inner) / 2 + down * side)), side - inner)
    left = min(max(0, round((side - inner) / 2 + right * side)), side - inner)
    out[:, top : top + inner, left : left + inner] = small
    return out


def layered(front: Tensor, back: Tensor) -> Tensor:
    """Premultiplied over (Porter and Duff 1984)."""
    return front + (1 - front[3:]) * back


def _plate(picture: Tensor, hsv: list[float], disc: bool) -> Tensor:
    side = picture.shape[-1]
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = at[:, None].expand(side, side), at[None, :].expand(side, side)
    power = 2 if disc else 8  # a superellipse: a disc or a rounded square
    inside = ((1 - (x.abs() ** power + y.abs() ** power) ** (1 / power)) * side / 2).clamp(0, 1)
    rgb = to_rgb(torch.tensor(hsv)[:, None, None])
    return torch.cat([rgb * inside, inside[None]])


def _dot(plate: Tensor, grid: Tensor, y: float, x: float, r: float, rgb: tuple[float, float, float]) -> Tensor:
    inside = (r + 0.5 - ((grid[:, None] - y) ** 2 + (grid[None, :] - x) ** 2).sqrt()).clamp(0, 1)
    return layered(torch.cat([torch.tensor(rgb)[:, None, None] * inside, inside[None]]), plate)

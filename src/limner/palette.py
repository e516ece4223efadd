"""Colours by name: which one a picture has, and the same picture in another."""

from __future__ import annotations

import torch
from torch import Tensor

HUES = {"red": 0.0, "orange": 30.0, "yellow": 52.0, "green": 125.0, "blue": 212.0, "purple": 275.0, "pink": 330.0}
NAMES = (*HUES, "brown", "black", "white", "gray")
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as Pillow has it
EDGES = (15.0, 37.0, 68.0, 165.0, 250.0, 300.0, 345.0)  # degrees at which one hue's name ends


def grey(rgb: Tensor) -> Tensor:
    """... 3 H W to ... 1 H W."""
    return (rgb * rgb.new_tensor(LUMA)[:, None, None]).sum(-3, keepdim=True)


def to_hsv(rgb: Tensor) -> Tensor:
    """3 H W in [0, 1] to hue in degrees, saturation and value."""
    high, low = rgb.amax(0), rgb.amin(0)
    span = (high - low).clamp(min=1e-6)
    red, green, blue = rgb
    hue = torch.where(
        high == red,
        (green - blue) / span % 6,
        torch.where(high == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    return torch.stack([hue * 60 % 360, (high - low) / high.clamp(min=1e-6), high])


def to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of `to_hsv`."""
    hue, saturation, value = hsv
    turns = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + hue / 60) % 6  # 3 H W
    return value * (1 - saturation * torch.minimum(turns, 4 - turns).clamp(0, 1))


def named(hsv: Tensor) -> Tensor:
    """The index into NAMES of each pixel: H W."""
    hue, saturation, value = hsv
    names = torch.bucketize(hue, torch.tensor(EDGES)) % len(HUES)
    warm = (names == 0) | (names == 1) | (names == 2)
    names = torch.where(warm & (value < 0.72) & (saturation > 0.25), NAMES.index("brown"), names)
    names = torch.where((names == 0) & (value > 0.45) & (saturation > 0.75), 0, names)  # a dark red is still red
    pale_red = (names == 0) & (saturation < 0.45)
    names = torch.where(pale_red, NAMES.index("pink"), names)
    faint = saturation < torch.where(value > 0.75, 0.13, 0.2)
    names = torch.where(faint & (value > 0.82), NAMES.index("white"), names)
    names = torch.where(faint & (value <= 0.82), NAMES.index("gray"), names)
    return torch.where((value < 0.2) | (faint & (value < 0.28)), NAMES.index("black"), names)


def shares(picture: Tensor) -> dict[str, float]:
    """The share of each colour among the opaque pixels of a premultiplied picture, 4 H W; empty where none is."""
    solid = picture[3] > 0.5
    if not solid.any():
        return {}
    names = named(to_hsv(straight(picture)))[solid]
    counts = torch.bincount(names, minlength=len(NAMES)).float()
    return {name: share for name, share in zip(NAMES, (counts / counts.sum()).tolist(), strict=True) if share > 0}


def dominant(picture: Tensor, least: float = 0.5) -> str | None:
    """The colour that at least this share of the opaque pixels has."""
    found = shares(picture)
    best = max(found, key=lambda name: found[name], default=None)
    return best if best is not None and found[best] >= least else None


def straight(picture: Tensor) -> Tensor:
    """The colour of a premultiplied picture: 3 H W in [0, 1]."""
    return (picture[:3] / picture[3:].clamp(min=1e-3)).clamp(0, 1)


def recolour(picture: Tensor, colour: str) -> Tensor | None:
    """The picture with its main hue turned into that of `colour`; None where it has no main hue.

    A hue is the main one where it covers 55 % of the opaque and 80 % of the coloured pixels; shades stay shades.
    """
    hue, saturation, value = hsv = to_hsv(straight(picture))
    solid = picture[3] > 0.5
    vivid = solid & (saturation > 0.25) & (value > 0.2)
    if not vivid.any():
        return None
    angles = torch.deg2rad(hue[vivid])
    centre = torch.rad2deg(torch.atan2(angles.sin().mean(), angles.cos().mean()))
    away = (hue - centre + 180) % 360 - 180
    main = vivid & (away.abs() < 40)
    if main.sum() < 0.8 * vivid.sum() or main.sum() < 0.55 * solid.sum():
        return None
    near = (away.abs() < 60) & (saturation > 0.08)
    turned = (HUES[colour] + away * 0.5) % 360
    lifted = torch.where(
        near & (value < 0.85), value + 0.5 * (0.85 - value), value
    )  # a brown thing turns blue, not navy
    rgb = to_rgb(torch.stack([torch.where(near, turned, hue), saturation, lifted if centre < 75 else value]))
    del hsv
    return torch.cat([rgb * picture[3:], picture[3:]])

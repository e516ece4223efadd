"""Which skin tone a picture shows, by counting colours: no network looks, so none can have learned too little to tell.

Emoji paint each tone in a few fixed colours. So the colours of training pictures whose names say a tone tell how likely
each colour is under it, and a picture is of the tone under which its own colours are likeliest (naive Bayes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SIDE = 16  # cells along each side of the cube of colours
MOST = 150  # pictures of each tone and style that are counted


def toned(role: str, tone: str) -> str:
    return f"{role}: {tone} skin tone"


def tone_of(name: str) -> tuple[str, str]:
    """The role that a name says, and its tone; "" where it says none."""
    role, _, said = name.partition(":")
    tone = said.strip().removesuffix(" skin tone")
    return role, tone if tone in TONES else ""


def colours(pictures: Tensor) -> Tensor:
    """How much of a picture is of each colour, a little blurred: B 4 H W premultiplied in [0, 1] to B SIDE^3."""
    alpha = pictures[:, 3:]
    straight = pictures[:, :3] / alpha.clamp(min=1e-3)
    r, g, b = (straight * SIDE).long().clamp(0, SIDE - 1).unbind(1)  # B H W each
    cells = ((r * SIDE + g) * SIDE + b).flatten(1)
    weight = torch.where(alpha > 0.5, alpha, 0).flatten(1)
    counted = torch.zeros(len(pictures), SIDE**3).scatter_add_(1, cells, weight)
    cube = F.avg_pool3d(counted.view(-1, 1, SIDE, SIDE, SIDE), 3, stride=1, padding=1)
    return F.normalize(cube.flatten(1), p=1, dim=1)


@dataclass(frozen=True)
class Palette:
    """The colours of some pictures under each of several names of tones."""

    names: tuple[str, ...]
    log_odds: Tensor  # names, SIDE^3: log of how likely a colour is

    @classmethod
    def of(cls, shown: Mapping[str, Tensor]) -> Palette:
        """From pictures of each tone, B 4 H W in [0, 1]."""
        counts = torch.stack([colours(pictures).mean(0) for pictures in shown.values()])
        floor = 1 / SIDE**3  # as if one picture of every colour had been seen for each hundred
        return cls(tuple(shown), ((counts + 0.01 * floor) / (1 + 0.01)).log())

    def __call__(self, pictures: Tensor) -> Tensor:
        """The number of the likeliest name for each picture: B."""
        return (colours(pictures) @ self.log_odds.T).argmax(1)


def some_of(rows: Sequence[int], most: int = MOST) -> list[int]:
    """At most so many, from everywhere."""
    return list(rows)[:: max(1, -(-len(rows) // most))]

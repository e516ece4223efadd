"""How well a picture joins with itself."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 0.5 / 255  # added to both gradients: half of what a byte can tell, so that flat pictures score 1


def seam_score(picture: Tensor, step: int = 8, usual: float = 0.8) -> tuple[float, float]:
    """The gradient across the border against that across lines inside, (x, y), of 4 H W; 1 is seamless.

    A line's gradient is the mean absolute difference of the two columns (or rows) beside it; the border is the line
    between the last column and the first. Pictures are uneven, so the border is held to the nearest of the usual
    lines, the middle 80 % of those inside: within them it scores 1, at twice the gradient of the strongest of them
    2, at half that of the weakest 0.5 (a frame, or a figure that stays away from the border). usual=0 compares with
    the median line alone.

    step: lines are taken as far apart, counted from the border. Autoencoders paint in blocks, 8 pixels wide in all
    families here, and between blocks gradients are larger everywhere; so only lines between blocks are compared.
    """
    return _score(picture.transpose(1, 2), step, usual), _score(picture, step, usual)


def two_by_two(picture: Tensor) -> Tensor:
    """The picture beside and below itself, C 2H 2W, to see its seams in the middle."""
    return picture.repeat(1, 2, 2)


def _score(picture: Tensor, step: int, usual: float) -> float:
    """Along the rows of C N M."""
    lines = (picture - picture.roll(1, 1)).abs().float().mean((0, 2)) + FLOOR  # N; the first is the border
    border, inside = lines[0], lines[step::step]
    if not len(inside):
        inside = lines[1:] if len(lines) > 1 else lines
    low, high = torch.quantile(inside, torch.tensor([0.5 - usual / 2, 0.5 + usual / 2]).to(inside))
    return float(border / border.clamp(low, high))

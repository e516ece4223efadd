"""How a person's picture lies on a model's grid, and how what is painted there goes back into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.image import Original
from limner.pipeline import Model
from limner.tasks.maps import blur

Box = tuple[int, int, int, int]  # top, left, height, width in the picture's pixels


@dataclass(frozen=True)
class Canvas:
    """A picture, or a box of it, enlarged where the family wants more, and filled up to its grid."""

    original: Original
    box: Box
    size: tuple[int, int]  # height and width that the box has on the canvas
    height: int  # of the canvas: a multiple of the family's grid
    width: int
    alpha: bool  # whether the model paints alpha; where it does not, the picture's own is kept
    mask: Tensor | None = None  # H W of the picture in [0, 1]: how much of what is painted goes into it
    feather: int = 0  # pixels over which what is painted is brought to the tone of what is around it

    @property
    def picture(self) -> Tensor:
        """1 4 H W of the canvas."""
        top, left, h, w = self.box
        return self._laid(self.original.picture[None, :, top : top + h, left : left + w])

    @property
    def fill(self) -> Tensor:
        """1 1 H W of the canvas: 1 wherever something of the new is to be seen."""
        assert self.mask is not None
        top, left, h, w = self.box
        return (self._laid(self.mask[None, None, top : top + h, left : left + w]) > 0.002).float()

    def cells(self, factor: int) -> Tensor:
        """1 1 h w: the latents that the fill touches."""
        return F.max_pool2d(self.fill, factor)

    def back(self, painted: Tensor) -> Image.Image:
        """4 H W of the canvas to the picture with it: of the same size, mode and colours."""
        top, left, h, w = self.box
        new = painted[None, :, : self.size[0], : self.size[1]]
        new = resized(new, h, w)[0]
        if self.mask is not None and self.feather:
            new = toned(new, self.original.picture[:, top : top + h, left : left + w], self._cut(), self.feather)
        if (h, w) != tuple(self.original.picture.shape[1:]):
            whole = self.original.picture.clone()
            whole[:, top : top + h, left : left + w] = new
            new = whole
        return self.original.restored(new, self.mask, keep_alpha=not self.alpha)

    def _cut(self) -> Tensor:
        assert self.mask is not None
        top, left, h, w = self.box
        return self.mask[top : top + h, left : left + w]

    def _laid(self, part: Tensor) -> Tensor:
        part = resized(part, *self.size)
        beyond = (0, self.width - self.size[1], 0, self.height - self.size[0])
        return F.pad(part, beyond, mode="replicate") if any(beyond) else part


def lay(original: Original, model: Model, box: Box | None = None, enlarge: bool = False) -> Canvas:
    """A canvas for a picture or a box of it; `enlarge` brings a small box to the size that the family paints best.

    What is smaller than the family paints is enlarged, but a long strip no further than to that size: the rest of its
    shorter side is filled up.
    """
    h, w = original.picture.shape[1:]
    box = box or (0, 0, h, w)
    least, step = model.family.sizes[0], model.family.latent.multiple
    best = max(model.defaults.size) / max(box[2:])
    factor = max(1.0, best if enlarge else min(best, least / min(box[2:])))
    size = (round(box[2] * factor), round(box[3] * factor))
    height, width = (max(least, -(-side // step) * step) for side in size)
    return Canvas(original, box, size, height, width, model.family.latent.pixels == 4)


def resized(picture: Tensor, h: int, w: int) -> Tensor:
    """B C H W to B C h w, bicubic and without aliases, in [0, 1]."""
    if picture.shape[2:] == (h, w):
        return picture
    return F.interpolate(picture, size=(h, w), mode="bicubic", antialias=True).clamp(0, 1)


def spread(mask: Tensor, pixels: int) -> Tensor:
    """H W with a border that falls evenly from 1 to 0 over so many pixels outside of it, eight-sided."""
    grown, total = mask[None, None], mask[None, None].clone()
    for i in range(pixels):
        across = F.max_pool2d(grown, (3, 1), 1, (1, 0)), F.max_pool2d(grown, (1, 3), 1, (0, 1))
        grown = F.max_pool2d(grown, 3, 1, 1) if i % 2 else torch.maximum(*across)
        total += grown
    return torch.where(mask > 0, mask, total[0, 0] / (pixels + 1))


def toned(new: Tensor, old: Tensor, mask: Tensor, pixels: int) -> Tensor:
    """4 H W of the new, whose difference from the old just outside the mask is carried on into it and fades there.

    An autoencoder gives colours back a little off; without this the border of the mask shows.
    """
    known = (mask <= 0).float()[None]
    if not known.any() or known.all():
        return new
    near = blur(torch.cat([(old - new) * known, known]), pixels, (False, False))  # 5 H W
    off = near[:4] / near[4:].clamp(min=1e-4)
    fade = (2 * near[4:]).clamp(0, 1)  # one half at a straight border
    out = (new + off * fade).clamp(0, 1)
    return torch.cat([torch.minimum(out[:3], out[3:]), out[3:]])

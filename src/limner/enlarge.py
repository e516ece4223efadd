"""Larger pictures without diffusion: by Lanczos, or by a network of the ESRGAN family that a person gives."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.errors import BadInput
from limner.families.addons import read_addon
from limner.families.seeing import COMPACT, RRDB
from limner.models.rrdbnet import CompactNet, RrdbNet
from limner.nn.tiles import in_tiles
from limner.pipeline import build
from limner.place import Place

TILE = 192  # pixels a side; at four times the size a network 64 channels wide holds 0.5 GB for one
OVERLAP = 32  # pixels; see `Upscaler`
SOLID = 8 / 255  # alpha from which a pixel's own colour is told from it; below, 8 bits of it say nothing


@dataclass(frozen=True)
class Upscaler:
    """A network that enlarges, where it runs, and in which tiles.

    A network of 23 blocks sees 348 pixels far in principle. With random weights, a pixel is felt less than 1/1000 from
    17 pixels on; tiles share 32, joined by a raised cosine.
    """

    net: RrdbNet | CompactNet
    place: Place
    name: str = ""
    tile: int = TILE
    overlap: int = OVERLAP

    @property
    def scale(self) -> float:
        return self.net.scale

    @torch.inference_mode()
    def __call__(self, colours: Tensor) -> Tensor:
        """3 H W in [0, 1] to 3 sH sW, not clamped, on the CPU."""
        cell = getattr(self.net.config, "unshuffle", 1)  # tiles begin where the squares do that become channels
        h, w = colours.shape[1:]
        whole = F.pad(colours[None], (0, -w % cell, 0, -h % cell), mode="replicate")
        factor = self.scale * cell
        cells = F.pixel_unshuffle(whole, cell)  # 1 3cc h/c w/c
        made = in_tiles(self._tile, cells, max(2, self.tile // cell), self.overlap // cell, factor)
        return made[0, :, : round(h * self.scale), : round(w * self.scale)]

    def _tile(self, cells: Tensor) -> Tensor:
        x = F.pixel_shuffle(cells, getattr(self.net.config, "unshuffle", 1))
        with self.place.autocast():
            return self.net(x.to(self.place.device)).float().cpu()


def find_upscaler(path: Path, place: Place) -> Upscaler:
    """The network in a file: ESRGAN, Real-ESRGAN or its compact kind, in any of their names."""
    part = read_addon(path, RRDB, COMPACT)
    if part.config.channels != 3:
        raise BadInput(f"{path} enlarges pictures of {part.config.channels} channels; those of 3, RGB, are known here")
    return Upscaler(cast("RrdbNet | CompactNet", place.settle(build(part))), place, path.stem)


def enlarge(picture: Tensor, factor: float, upscaler: Upscaler | None = None) -> Tensor:
    """4 H W in [0, 1], premultiplied, to 4 round(factor H) round(factor W): by Lanczos, or by the network.

    The network is applied as often as its scale fits, at least once, and Lanczos does the rest. Alpha goes by Lanczos;
    the network sees colours without it, those of clear pixels being filled from around them.
    """
    size = tuple(max(1, round(factor * side)) for side in picture.shape[1:])
    if upscaler is None:
        return _premultiplied(lanczos(picture, size))
    colours, left = filled(picture), factor
    for turn in itertools.count():
        if turn and (upscaler.scale <= 1 or left < upscaler.scale):
            break
        colours, left = upscaler(colours).clamp(0, 1), left / upscaler.scale
    alpha = lanczos(picture[3:], size).clamp(0, 1)  # 1 H' W'
    return torch.cat([lanczos(colours, size).clamp(0, 1) * alpha, alpha])


def lanczos(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """C H W to C H' W', each plane by Pillow's filter of three lobes, in floats."""
    if planes.shape[1:] == torch.Size(size):
        return planes
    height, width = size
    rows = [Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.LANCZOS) for plane in planes]
    return torch.from_numpy(np.stack([np.asarray(row) for row in rows]))


def filled(picture: Tensor) -> Tensor:
    """The straight colours of a premultiplied picture, 3 H W; clear pixels take theirs from coarser pictures.

    Gortler et al. 1996, The Lumigraph, section 3.4 (pull and push).
    """
    colours, alpha = picture[:3], picture[3:]
    solid = alpha >= SOLID
    if solid.all() or max(alpha.shape) == 1:
        return (colours / alpha.clamp(min=1e-6)).clamp(0, 1)
    coarse = filled(F.avg_pool2d(picture, 2, ceil_mode=True))
    around = F.interpolate(coarse[None], size=alpha.shape[1:], mode="bilinear", align_corners=False)[0]
    return torch.where(solid, colours / alpha.clamp(min=SOLID), around).clamp(0, 1)


def _premultiplied(picture: Tensor) -> Tensor:
    """What rings of a filter leave the range of, brought back: alpha in [0, 1], no colour above it."""
    alpha = picture[3:].clamp(0, 1)
    return torch.cat([torch.minimum(picture[:3].clamp(min=0), alpha), alpha])

"""Small pictures of a walk's estimate x0, at a cost that no step notices.

Shape legend as in types.py; N cells (pixels of latents), K = 9 C + 1 inputs of a cell, V = 4 P P values of one.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limner.image import to_pil
from limner.pipeline import Model

SIDE = 128  # pixels of a preview's longer side
CELLS = 16  # of the latents' longer side, where they are decoded small
GOOD = 0.6  # the share of the variance that a linear map has to explain to be shown
P = 4  # pixels that it paints to a cell's side
DRAWN = 4  # pictures that it is fitted to
RIDGE = 1e-3  # of the inputs' mean variance


class Previews:
    """How a model's estimates are shown.

    By the tiny autoencoder where the model has one; else by a linear map from each latent and its neighbours to
    pixels, fitted once to what the model's own encoder makes of drawn shapes; and where that explains too little, by
    the decoder, of latents that were made small. Where one network is kept at a time the map is shown however rough:
    the decoder would drive the denoiser out of memory at every preview.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tiny = hasattr(model.nets.get("tiny"), "decoder")
        self._map = None if self._tiny else linear_map(model)

    @torch.inference_mode()
    def __call__(self, x0: Tensor) -> Tensor:
        """B C h w to B 4 H W in [0, 1], premultiplied, the longer side at most SIDE."""
        if self._tiny:
            return fitted(self._model.to_image(shrunk(x0, 2 * CELLS), fast=True), SIDE)
        if self._map is None:
            return fitted(self._model.to_image(shrunk(x0, CELLS)), SIDE)
        b, _, h, w = x0.shape
        values = (neighbours(x0) @ self._map.to(x0)).view(b, h * w, -1).mT.reshape(b, -1, h, w)  # B V h w
        picture = fitted(F.pixel_shuffle(values, P), SIDE).clamp(0, 1).cpu()  # B 4 H W
        return torch.cat([torch.minimum(picture[:, :3], picture[:, 3:]), picture[:, 3:]], dim=1)


@torch.inference_mode()
def linear_map(model: Model) -> Tensor | None:
    """K V, from a cell and its neighbours to pixels; nothing where it would not be like the picture.

    Least squares with a ridge, between drawn shapes and what the model's encoder makes of them.
    """
    spec = model.family.latent
    if spec.factor % P:
        return None
    drawn = shapes(DRAWN, SIDE, clear=spec.pixels == 4)
    x = neighbours(model.to_latent(drawn).float().cpu())  # N K
    y = F.pixel_unshuffle(F.avg_pool2d(drawn, spec.factor // P), P).flatten(2).mT.flatten(0, 1)  # N V
    ridge = RIDGE * len(x) * x.var(0).mean() * torch.eye(x.shape[1])
    found = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    explained = 1 - (x @ found - y).square().sum() / (y - y.mean(0)).square().sum()
    enough = -math.inf if model.place.keep == "one" else GOOD
    return found if bool(explained >= enough) else None  # NaN is not good


def neighbours(z: Tensor) -> Tensor:
    """B C h w to N K: each cell with the eight around it, and 1."""
    cells = F.unfold(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3).mT.flatten(0, 1)
    return torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)


def shapes(count: int, side: int, clear: bool, seed: int = 0) -> Tensor:
    """Drawn pictures, B 4 H W premultiplied: soft colours within blots of several sizes, on clear ground or on none."""
    rng = torch.Generator().manual_seed(seed)

    def field(channels: int, cells: int) -> Tensor:
        drawn = torch.rand(count, channels, cells, cells, generator=rng)
        return F.interpolate(drawn, size=(side, side), mode="bicubic").clamp(0, 1)

    def blots(cells: int, level: float) -> Tensor:
        return ((field(1, cells) - level) * 60).clamp(-0.5, 0.5) + 0.5  # edges of a pixel or two

    alpha = blots(5, 0.4) if clear else torch.ones(count, 1, side, side)
    colour = field(3, 3)
    for cells in (4, 8, 16):
        colour = colour.lerp(field(3, 3), blots(cells, 0.6))
    return torch.cat([colour * alpha, alpha], dim=1)


def shrunk(z: Tensor, cells: int) -> Tensor:
    """B C h w with a longer side of at most so many cells."""
    return z if max(z.shape[2:]) <= cells else F.interpolate(z, size=_within(z, cells), mode="area")


def fitted(picture: Tensor, side: int) -> Tensor:
    """B 4 H W with a longer side of `side` pixels."""
    return F.interpolate(picture, size=_within(picture, side), mode="bicubic", antialias=True).clamp(0, 1)


def _within(x: Tensor, side: int) -> list[int]:
    """Height and width of the same shape, the longer one `side`."""
    return [max(1, round(each * side / max(x.shape[2:]))) for each in x.shape[2:]]


def webp(pictures: Tensor) -> Sequence[str]:
    """B 4 H W as base64 of WebP files, a few kilobytes each."""
    return [_webp(to_pil(picture)) for picture in pictures]


def _webp(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=60, alpha_quality=50, method=0)
    return base64.b64encode(file.getvalue()).decode("ascii")

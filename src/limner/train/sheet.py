"""Sheets to look at while a network learns. The same prompts and seeds each time, nothing chosen."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from limner.diffusion.guide import guided, perturbed
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import times
from limner.models.mini_autoencoder import MiniAutoencoder
from limner.pipeline import Model
from limner.place import Place
from limner.rng import Noise
from limner.train.data import Pictures

PROMPTS = ("a red apple", "a blue apple", "a cat", "a dog wearing a hat", "smiling face with a hat", "a house at night",
           "a golden crown", "pixel art sword", "a green dragon", "an airplane")  # fmt: skip


def reconstructions(net: MiniAutoencoder, pictures: Pictures, rows: Tensor, place: Place) -> Image.Image:
    """Held-out pictures above what the autoencoder makes of them."""
    want = pictures.batch(rows[:: max(1, len(rows) // 24)][:24])
    with torch.no_grad(), place.autocast():
        got = net.decode(net.encode(want.to(place.device))).cpu()
    rows_ = [part for pair in zip(want.split(12), got.split(12), strict=True) for part in pair]
    return tiled(rows_)


def samples(model: Model) -> Image.Image:
    """PROMPTS down; any style, then every style of the family across."""
    d = model.family.defaults
    styles: list[str | None] = [None, *model.family.styles]
    empty = model.denoiser(model.encode([""]))
    rows = []
    for prompt in PROMPTS:
        cond = model.encode([prompt] * len(styles), styles)
        noise = Noise(0)
        x = noise(len(styles), *model.latent_shape(*d.size[::-1])).to(model.place.device)
        denoiser = guided(model.denoiser(cond), empty, d.cfg_scale, d.cfg_interval)
        denoiser = perturbed(denoiser, model.denoiser(cond, perturbed=True), d.pag_scale, d.pag_interval)
        *_, last = SAMPLERS[d.sampler](denoiser, model.path, x, times(d.steps, d.schedule, model.path), noise)
        rows.append(model.to_image(last.x))
    return tiled(rows)


def tiled(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures, each B 4 H W premultiplied, on white."""
    side = rows[0].shape[-1] + 4
    sheet = Image.new("RGB", (side * max(len(row) for row in rows), side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            pixels = (picture[:3] + 1 - picture[3:]).clamp(0, 1).mul(255).round().byte()
            sheet.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (x * side + 2, y * side + 2))
    return sheet

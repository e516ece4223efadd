"""The objective of the mini autoencoder: reconstruct crops over random grounds, with smooth, well-behaved latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.models.mini_autoencoder import MiniAutoencoder, laplacian
from limner.rng import generator
from limner.train.data import Pictures
from limner.train.fit import FitConfig, Losses


@dataclass(frozen=True)
class AutoencoderLoss:
    crop: int = 64  # pixels; a side of the training crops, cut on the latent grid
    alpha: float = 0.5  # weight of the L1 error of alpha
    bands: float = 0.5  # weight of the L1 error of a three-level Laplacian pyramid
    noise: float = 0.05  # deviation of the noise added to latents before decoding
    prior: float = 1e-4  # weight of the mean square of the latents
    turned: float = 0.2  # share of steps that decode turned latents against turned pictures (EQ-VAE, arXiv 2502.09509)
    frozen_encoder: bool = False  # train the decoder alone, so that cached latents stay true


FULL = FitConfig(batch=48, lr=8e-4, betas=(0.9, 0.99), weight_decay=1e-3, decay=1.0, shape="cosine")
RUNS: dict[str, tuple[FitConfig, AutoencoderLoss]] = {
    "default": (FULL, AutoencoderLoss()),
    "joint": (replace(FULL, lr=5e-4, warmup=50), AutoencoderLoss(turned=0.0, noise=0.03)),  # after "default"
    "decoder": (replace(FULL, lr=5e-4, warmup=50), AutoencoderLoss(turned=0.0, frozen_encoder=True)),  # after "joint"
    "tiny": (replace(FULL, steps=20, batch=8, warmup=5, log_every=10), AutoencoderLoss(crop=32)),
}


def crops(pictures: Pictures, rows: Tensor, loss: AutoencoderLoss) -> Callable[[torch.Generator, int], Tensor]:
    """Batches of B 4 S S: random pictures, random corners on the grid of 8, mirrored half of the time."""

    def draw(rng: torch.Generator, count: int) -> Tensor:
        chosen = rows[torch.randint(len(rows), (count,), generator=rng)]
        places = (pictures.pixels.shape[-1] - loss.crop) // 8 + 1
        tops, lefts = torch.randint(places, (2, count), generator=rng).mul(8).tolist()
        cut = [
            pictures.pixels[i, :, y : y + loss.crop, x : x + loss.crop]
            for i, y, x in zip(chosen.tolist(), tops, lefts, strict=True)
        ]
        batch = torch.stack([torch.from_numpy(c.copy()) for c in cut]).float() / 255  # B 4 S S
        mirror = torch.rand(count, generator=rng) < 0.5
        return torch.where(mirror[:, None, None, None], batch.flip(3), batch)

    return draw


def autoencoder_loss(weights: AutoencoderLoss) -> Callable[[nn.Module, Tensor, torch.Generator], Losses]:
    def objective(model: nn.Module, batch: Tensor, rng: torch.Generator) -> Losses:
        assert isinstance(model, MiniAutoencoder)
        batch = batch.to(memory_format=torch.channels_last)
        if weights.frozen_encoder:
            with torch.no_grad():
                z = model.encode_raw(batch)
        else:
            z = model.encode_raw(batch)
        if torch.rand((), generator=rng) < weights.turned:
            way = int(torch.randint(4, (), generator=rng))
            z, batch = (_turn(value, way).contiguous(memory_format=torch.channels_last) for value in (z, batch))
        noise = torch.randn(z.shape, generator=rng) * weights.noise
        out = model.decode_raw(z + noise).float()
        ground = torch.rand((len(batch), 3, 1, 1), generator=rng)
        got, want = (over(value, ground) for value in (out, batch))
        details = zip(laplacian(got, 3), laplacian(want, 3), strict=True)
        return {
            "picture": torch.sqrt((got - want).square() + 1e-6).mean(),
            "alpha": weights.alpha * (out[:, 3] - batch[:, 3]).abs().mean(),
            "bands": weights.bands * torch.stack([(a - b).abs().mean() for a, b in details]).sum(),
            "prior": weights.prior * z.float().square().mean(),
        }

    return objective


def _turn(x: Tensor, way: int) -> Tensor:
    if way == 3:
        return F.avg_pool2d(x, 2)
    return torch.rot90(x, way + 1, (2, 3))


def over(picture: Tensor, ground: Tensor | float) -> Tensor:
    """B 4 H W premultiplied over a flat ground: B 3 H W."""
    return picture[:, :3] + (1 - picture[:, 3:]) * ground


@torch.no_grad()
def measure_latents(model: MiniAutoencoder, pictures: Pictures, rows: Tensor, count: int = 2048) -> None:
    """Set the model's mean and std per channel from the raw latents of up to `count` training pictures."""
    chosen = rows[torch.randperm(len(rows), generator=generator("latents"))[:count]]
    raw = torch.cat([model.encode_raw(pictures.batch(part)).float() for part in chosen.split(64)])  # N C h w
    model.mean.copy_(raw.mean((0, 2, 3)))
    model.std.copy_(raw.std((0, 2, 3)))


@torch.no_grad()
def reconstruction(model: MiniAutoencoder, pictures: Pictures, rows: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR on white in dB and mean absolute error of alpha, one of each a picture."""
    psnr, alpha = [], []
    for part in rows.split(32):
        want = pictures.batch(part)
        got = model.decode(model.encode(want))
        got, want = got.mul(255).round() / 255, want
        square = (over(got, 1.0) - over(want, 1.0)).square().mean((1, 2, 3))
        psnr.append(-10 * torch.log10(square.clamp(min=1e-10)))
        alpha.append((got[:, 3] - want[:, 3]).abs().mean((1, 2)))
    return torch.cat(psnr), torch.cat(alpha)

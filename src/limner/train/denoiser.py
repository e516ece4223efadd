"""The objective of the mini denoiser: find the latents again in any mixture of them with noise, told the words."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.diffusion.path import Straight
from limner.pipeline import Model
from limner.train.captions import caption
from limner.train.data import Words
from limner.train.fit import FitConfig, Losses
from limner.train.latents import Latents
from limner.types import Cond


@dataclass(frozen=True)
class DenoiserLoss:
    least_t: float = 0.25  # the weight of the error is 1 / max(t, least_t)^2: that of the velocity, bounded
    mean: float = 1.0  # of the logit of the times: above 0 towards noise, where the composition is decided
    spread: float = 1.0  # of the logit of the times
    uniform: float = 0.1  # share of times drawn uniformly instead
    no_style: float = 0.15  # share told "any style"; half of the captionless ones besides
    jitter: float = 0.1  # deviation of the noise on text states, of about unit size
    words: int = 14  # longest caption in training
    pieces: int = (
        0  # word pieces that every caption is cut or filled to, which compiled blocks want; 0: as many as it has
    )


RUNS: dict[str, tuple[FitConfig, DenoiserLoss]] = {
    "default": (FitConfig(batch=64, lr=4e-4, muon_lr=4e-3, warmup=300, decay=0.25, ema=0.998), DenoiserLoss()),
    "tiny": (FitConfig(steps=30, batch=8, lr=1e-3, muon_lr=4e-3, warmup=5, log_every=10), DenoiserLoss()),
}


@dataclass(frozen=True)
class Batch:
    x0: Tensor  # B C h w
    cond: Cond


def batches(
    latents: Latents, words: tuple[Words, ...], model: Model, loss: DenoiserLoss
) -> Callable[[torch.Generator, int], Batch]:
    """Latents by their weights, each with a fresh caption; `model` reads the words."""
    styles = model.family.styles

    def batch(rng: torch.Generator, count: int) -> Batch:
        chosen = torch.multinomial(latents.weights, count, replacement=True, generator=rng)
        draw = random.Random(int(torch.randint(2**62, (), generator=rng)))
        texts: list[str] = []
        told: list[str | None] = []
        for i in chosen.tolist():
            w = words[int(latents.rows[i])]
            texts.append(" ".join(caption(w, latents.scenes[i], draw).split()[: loss.words]))
            kept = w.style in styles and draw.random() >= (0.5 if not texts[-1] else loss.no_style)
            told.append(w.style if kept else None)
        cond = model.encode(texts, told)
        if loss.pieces:
            cond = fitted(cond, loss.pieces)
        return Batch(latents.x0[chosen].float().to(model.place.device), cond)

    return batch


def fitted(cond: Cond, pieces: int) -> Cond:
    """Text states cut or filled to one length; what fills is masked out."""
    assert cond.mask is not None
    room = max(0, pieces - cond.tokens.shape[1])
    tokens = F.pad(cond.tokens[:, :pieces], (0, 0, 0, room))  # B pieces D
    return replace(cond, tokens=tokens, mask=F.pad(cond.mask[:, :pieces], (0, room)))


def denoiser_loss(weights: DenoiserLoss) -> Callable[[nn.Module, Batch, torch.Generator], Losses]:
    path = Straight(prediction="x0", mean=weights.mean, spread=weights.spread, uniform=weights.uniform)

    def objective(model: nn.Module, batch: Batch, rng: torch.Generator) -> Losses:
        x0, cond = batch.x0, batch.cond
        t = path.draw(len(x0), rng)
        eps = torch.randn(x0.shape, generator=rng).to(x0.device)
        if weights.jitter and cond.pooled is not None:
            size = weights.jitter * cond.tokens.std()
            tokens = cond.tokens + size * torch.randn(cond.tokens.shape, generator=rng).to(x0.device)
            cond = replace(cond, tokens=tokens)
        answer = model(path.noisy(x0, eps, t), t.to(x0.device), cond)
        error = (answer - path.target(x0, eps, t)).square().mean((1, 2, 3))
        return {"velocity": (error / t.to(x0.device).clamp(min=weights.least_t).square()).mean()}

    return objective


@torch.no_grad()
def held_out_loss(model: nn.Module, x0: Tensor, cond: Cond) -> float:
    """The velocity error at six fixed times under fixed noise: comparable from step to step and from run to run."""
    rng, path = torch.Generator().manual_seed(0), Straight(prediction="x0")
    found = []
    for t in (0.15, 0.3, 0.45, 0.6, 0.75, 0.9):
        eps = torch.randn(x0.shape, generator=rng).to(x0.device)
        answer = model(path.noisy(x0, eps, t), torch.full((len(x0),), t, device=x0.device), cond)
        found.append((answer - x0).square().mean().item() / t**2)
    return sum(found) / len(found)

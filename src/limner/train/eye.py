"""The objective of the eye: pictures and their words together, others apart."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.models.bert import pool
from limner.models.eye import Eye
from limner.palette import dominant
from limner.pipeline import Model
from limner.rng import generator
from limner.train.captions import Scene, caption
from limner.train.compose import is_handed
from limner.train.data import Pictures
from limner.train.fit import FitConfig, Losses
from limner.train.latents import weigh

RUNS = {
    "default": FitConfig(batch=256, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, decay=1.0, shape="cosine"),
    "tiny": FitConfig(steps=20, batch=16, lr=1e-3, warmup=5, log_every=10),
}


@dataclass(frozen=True)
class Batch:
    pictures: Tensor  # B 4 S S
    pooled: Tensor  # B P, of the captions
    names: Tensor  # B P, of the bare names
    same: Tensor  # B B, True where two show the same concept
    styles: Tensor  # B, -1 where unknown


def batches(pictures: Pictures, rows: Tensor, model: Model, size: int) -> Callable[[torch.Generator, int], Batch]:
    """Concepts alike in number; mirrored, moved and scaled a little, blurred or noisy now and then."""
    reduced = [F.adaptive_avg_pool2d(pictures.batch(part), size) for part in rows.split(256)]
    small = torch.cat([part.mul(255).round().byte() for part in reduced])  # N 4 S S
    words = [pictures.words[i] for i in rows.tolist()]
    colours = [dominant(picture.float() / 255) or "" for picture in small]
    weights = weigh(rows, (Scene(),) * len(rows), pictures.words)
    concepts = {concept: i for i, concept in enumerate(sorted({w.concept for w in words}))}
    handed = torch.tensor([is_handed(w) for w in words])
    styles = model.family.styles

    def batch(rng: torch.Generator, count: int) -> Batch:
        chosen = torch.multinomial(weights, count, replacement=True, generator=rng)
        draw = random.Random(int(torch.randint(2**62, (), generator=rng)))
        told = [words[i] for i in chosen.tolist()]
        scenes = [Scene(colour=colours[i]) for i in chosen.tolist()]
        texts = [caption(w, scene, draw) or w.name for w, scene in zip(told, scenes, strict=True)]
        with torch.no_grad():
            pooled = pool(*model.read([*texts, *(w.name for w in told)]))
        ids = torch.tensor([concepts[w.concept] for w in told])
        style = torch.tensor([styles.index(w.style) if w.style in styles else -1 for w in told])
        flip = (torch.rand(count, generator=rng) < 0.4) & ~handed[chosen]
        shown = jittered(small[chosen].float() / 255, flip, rng)
        to = model.place.device
        return Batch(shown.to(to), pooled[:count], pooled[count:], (ids[:, None] == ids).to(to), style.to(to))

    return batch


def jittered(pictures: Tensor, flip: Tensor, rng: torch.Generator) -> Tensor:
    count = len(pictures)
    scale = torch.rand(count, 2, generator=rng) * 0.3 + 0.9  # of the grid: above 1 shrinks the thing
    move = torch.randn(count, 2, generator=rng) * 0.06
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale[:, 0] * torch.where(flip, -1.0, 1.0)
    theta[:, 1, 1] = scale[:, 1]
    theta[:, :, 2] = move
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    out = F.grid_sample(pictures, grid, align_corners=False)
    soft = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    out = torch.where((torch.rand(count, generator=rng) < 0.25)[:, None, None, None], soft, out)
    noise = torch.randn(out.shape, generator=rng) * (torch.rand(count, generator=rng) * 0.06)[:, None, None, None]
    return (out + noise * out[:, 3:]).clamp(0, 1)


def contrast(model: nn.Module, batch: Batch, rng: torch.Generator) -> Losses:
    """InfoNCE both ways, on captions and on names, without the pairs that share a concept; and the style."""
    assert isinstance(model, Eye)
    features = model.features(batch.pictures)
    seen = F.normalize(model.picture_out(features).float(), dim=1)  # B S
    other = batch.same & ~torch.eye(len(seen), dtype=torch.bool, device=batch.same.device)
    target = torch.arange(len(seen), device=seen.device)
    losses = []
    for pooled in (batch.pooled, batch.names):
        scores = model.scale.exp().clamp(max=50) * seen @ model.read(pooled).T  # B B
        scores = scores.masked_fill(other, -1e4)
        losses += [
            F.cross_entropy(scores, target, label_smoothing=0.05),
            F.cross_entropy(scores.T, target, label_smoothing=0.05),
        ]
    style = F.cross_entropy(model.style_out(features).float(), batch.styles, ignore_index=-1)
    return {"contrast": torch.stack(losses).mean(), "style": 0.3 * style}


@torch.no_grad()
def retrieval(model: Eye, reader: Model, pictures: Pictures, rows: Tensor, count: int = 400) -> dict[str, float]:
    """How often a held-out picture's own name is the nearest of a hundred, and its style the likeliest."""
    rows = rows[torch.randperm(len(rows), generator=generator("retrieval"))[:count]]
    words = [pictures.words[i] for i in rows.tolist()]
    with reader.place.autocast():
        seen = model.see(pictures.batch(rows).to(reader.place.device)).float()
        styles = model.style_out(model.features(pictures.batch(rows).to(reader.place.device))).argmax(1)
    scores = seen @ model.read(pool(*reader.read([w.name for w in words]))).float().T  # N N
    hits = []
    for i, word in enumerate(words):
        others = [j for j, w in enumerate(words) if w.concept != word.concept and w.name != word.name]
        chosen = [others[k % len(others)] for k in range(i, i + 99)] if others else []
        hits.append(bool((scores[i, i] > scores[i, chosen]).all()))
    right = [reader.family.styles[int(s)] == w.style for s, w in zip(styles, words, strict=True)]
    return {"R@1 of 100": sum(hits) / len(hits), "style right": sum(right) / len(right)}

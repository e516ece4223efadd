"""The measures alone: pure functions of numbers and tensors, each with its paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.palette import shares
from limner.rng import generator, seed_of

NEUTRAL = ("black", "white", "gray")
SOFT = (0.05, 0.95)  # alpha between these is neither clear nor solid
SMALL = 32  # side at which pixels are compared


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that it lies in with 95 %; none where nothing was resampled."""

    value: float
    low: float | None = None
    high: float | None = None


def bootstrap(values: Tensor, times: int = 2000, *names: object) -> Estimate:
    """The mean over rows with its percentile interval: rows are drawn anew with replacement (Efron 1979)."""
    rng = np.random.default_rng(seed_of("bootstrap", *names))
    x = values.double().numpy()
    means = x[rng.integers(len(x), size=(times, len(x)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(x.mean()), float(low), float(high))


def ranks(scores: Tensor) -> Tensor:
    """The place of column 0 among all columns of each row, 1 being the best; who draws level stands before it.

    With the own text in column 0, `ranks <= k` is R@k of text-to-image retrieval (CLIP, arXiv 2103.00020, section 3.1;
    R-precision of AttnGAN, arXiv 1711.10485).
    """
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)


def skill(model: float, real: float, chance: float) -> float | None:
    """How far from chance to the real pictures: 0 is chance, 1 is as good as real."""
    return (model - chance) / (real - chance) if real > chance else None


def mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / F + 1)^3.

    Gretton et al. 2012, JMLR 13, lemma 6, with the kernel of KID (Binkowski et al. 2018, arXiv 1801.01401, section 4).
    It may fall below zero, as it should for two draws of one distribution.
    """
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1)) + (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


def kid(x: Tensor, y: Tensor, size: int, times: int, *names: object) -> tuple[float, float]:
    """The mean and the deviation of `mmd2` over `times` subsets of `size` rows each (arXiv 1801.01401, section 4)."""
    rng = generator("kid", *names)
    size = min(size, len(x), len(y))
    drawn = [
        mmd2(x[torch.randperm(len(x), generator=rng)[:size]], y[torch.randperm(len(y), generator=rng)[:size]])
        for _ in range(times)
    ]
    return float(np.mean(drawn)), float(np.std(drawn))


@dataclass(frozen=True)
class Nearest:
    """What lies nearest to each query in a bank, and nearest of what is truly another picture."""

    rows: Tensor  # Q 3, the three nearest
    distances: Tensor  # Q 3, root mean square differences
    ratio: Tensor  # Q, d1 / d2


def nearest(queries: Tensor, bank: Tensor, groups: Tensor, look: Tensor, alike: float) -> Nearest:
    """The nearest of a bank, and d1/d2 with d2 the nearest that is another picture than the nearest.

    A generated picture with d1/d2 < 1/3 counts as a copy (Gu et al. 2023, arXiv 2310.02664, after Yoon et al.
    2023). Pictures of the nearest one's group, and those whose `look` is within `alike` (root mean square) of its,
    are no other pictures: without this rule a copy of a picture that stands twice would pass.

    queries: Q F; bank: N F; groups: N; look: N G, in which near-duplicates show.
    """
    found = [_nearest(part, bank, groups, look, alike) for part in queries.split(128)]
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _nearest(queries: Tensor, bank: Tensor, groups: Tensor, look: Tensor, alike: float) -> tuple[Tensor, ...]:
    away = torch.cdist(queries, bank) / queries.shape[1] ** 0.5  # Q N
    distances, rows = away.topk(min(3, len(bank)), largest=False)
    first, which = rows[:, 0].unique(return_inverse=True)
    same = (torch.cdist(look[first], look) / look.shape[1] ** 0.5 < alike) | (groups[first][:, None] == groups)
    second = away.masked_fill(same[which], torch.inf).amin(1)
    return rows, distances, distances[:, 0] / second.clamp(min=1e-12)


def small(pictures: Tensor) -> Tensor:
    """Premultiplied pictures at 32 pixels, flat: B 4096."""
    return F.adaptive_avg_pool2d(pictures, SMALL).flatten(1)


def spread(points: Tensor) -> float:
    """The mean distance between two different rows of one size: 1 - cosine, from 0 to 2."""
    unit = F.normalize(points.double(), dim=1)
    count = len(unit)
    return float(1 - ((unit @ unit.T).sum() - count) / (count * (count - 1)))


def in_colour(picture: Tensor, colour: str, least: float = 0.25) -> bool:
    """Whether a picture, 4 H W, has this colour: no other hue covers more, and it covers a quarter of what is solid.

    Black, white and gray stand aside: lines, eyes and shine have them in every colour of thing.
    """
    found = {name: share for name, share in shares(picture).items() if name not in NEUTRAL or name == colour}
    return found.get(colour, 0.0) >= least and max(found, key=lambda name: found[name]) == colour


def soft_share(pictures: Tensor) -> Tensor:
    """The share of pixels that are neither clear nor solid, one a picture: high where edges smear."""
    alpha = pictures[:, 3]
    return ((alpha > SOFT[0]) & (alpha < SOFT[1])).float().mean((1, 2))


def fringe(pictures: Tensor) -> Tensor:
    """How far the colour of soft pixels is from that of the solid ones around (5 x 5), one a picture; NaN if none is.

    The mean absolute difference of straight colours, in [0, 1], weighted by alpha: by what is seen of it. A halo of
    another colour, the common fault of cut-out pictures, makes it large.
    """
    alpha = pictures[:, 3:]
    solid = (alpha >= SOFT[1]).float()
    near = F.avg_pool2d(solid, 5, 1, 2)  # the same 25 above and below the line, so they cancel
    around = F.avg_pool2d(pictures[:, :3] / alpha.clamp(min=SOFT[0]) * solid, 5, 1, 2) / near.clamp(min=1e-6)
    weight = alpha * ((alpha > SOFT[0]) & (alpha < SOFT[1]) & (near > 0))
    away = (pictures[:, :3] - alpha * around).abs().mean(1, keepdim=True) * (weight > 0)
    return away.sum((1, 2, 3)) / weight.sum((1, 2, 3))  # 0 / 0 is NaN


def psnr_on_white(got: Tensor, want: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over a white ground, one a picture; `got` is first rounded to bytes."""
    white = [picture[:, :3] + 1 - picture[:, 3:] for picture in (got.mul(255).round() / 255, want)]
    return -10 * torch.log10((white[0] - white[1]).square().mean((1, 2, 3)).clamp(min=1e-10))


class RandomFeatures(nn.Module):
    """Features of an untrained network, which nothing can have been trained to please; fixed by its seed.

    Untrained convolutions judge pictures nearly as trained ones do (Naeem et al. 2020, arXiv 2002.09797).
    """

    def __init__(self, widths: tuple[int, ...] = (48, 96, 192), seed: int = 0) -> None:
        super().__init__()
        rng = generator("random features", seed)
        self.layers = nn.ModuleList()
        for before, after in zip((4, *widths), widths, strict=False):
            layer = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layer.weight.data = torch.randn(layer.weight.shape, generator=rng) * (2 / (9 * before)) ** 0.5
            self.layers.append(layer.requires_grad_(False))

    def forward(self, pictures: Tensor) -> Tensor:
        """B 4 H W to B F: the mean and the deviation of each channel at each level."""
        x, found = F.adaptive_avg_pool2d(pictures, 64) * 2 - 1, []
        for layer in self.layers:
            x = F.silu(layer(x))
            found += [x.mean((2, 3)), x.flatten(2).std(2)]
        return torch.cat(found, 1)


def standardised(features: Tensor, reference: Tensor) -> Tensor:
    """Each feature with mean 0 and deviation 1 over the reference's rows, then each row of mean square 1.

    The judge's features have rows of mean square 1 too: so no far-off picture rules a cubic kernel.
    """
    x = (features - reference.mean(0)) / reference.std(0).clamp(min=1e-6)
    return F.normalize(x, dim=1) * x.shape[1] ** 0.5

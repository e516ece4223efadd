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


def floats(pictures: Tensor) -> Tensor:
    """Bytes as shares."""
    return pictures.float() / 255


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that it lies in with 95 %; none where nothing was resampled."""

    value: float
    low: float | None = None
    high: float | None = None

    def times(self, by: float) -> Estimate:
        low, high = (None if edge is None else by * edge for edge in (self.low, self.high))
        return Estimate(by * self.value, low, high)


def bootstrap(values: Tensor, times: int = 2000, *names: object) -> Estimate:
    """The mean over rows with its percentile interval: rows are drawn anew with replacement (Efron 1979).

    Where all rows are 0 or all are 1, drawing anew finds nothing else; there Wilson's interval says what is known.
    """
    rng = np.random.default_rng(seed_of("bootstrap", *names))
    x = values.double().numpy()
    if (x == 0).all() or (x == 1).all():
        return wilson(float(x.sum()), len(x))
    means = x[rng.integers(len(x), size=(times, len(x)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(x.mean()), float(low), float(high))


def wilson(hits: float, count: int, z: float = 1.96) -> Estimate:
    """A share with the interval of Wilson 1927 (JASA 22, 209): it never has no width, not even at 0 or 1."""
    share, square = hits / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * (share * (1 - share) / count + square / count / 4) ** 0.5
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def ratio_of(above: Tensor, below: Tensor, times: int = 2000, *names: object) -> Estimate | None:
    """The ratio of two means with its percentile interval; None over a mean of 0 or less, no interval where draws are.

    Rows of one length belong to the same prompts and are drawn together; others apart.
    """
    if not len(below) or float(below.double().mean()) <= 0:
        return None
    rng = np.random.default_rng(seed_of("ratio", *names))
    x, y = above.double().numpy(), below.double().numpy()
    rows = rng.integers(len(x), size=(times, len(x)))
    others = rows if len(x) == len(y) else rng.integers(len(y), size=(times, len(y)))
    tops, bottoms = x[rows].mean(1), y[others].mean(1)
    if (bottoms <= 0).any():
        return Estimate(float(x.mean() / y.mean()))
    low, high = np.quantile(tops / bottoms, (0.025, 0.975))
    return Estimate(float(x.mean() / y.mean()), float(low), float(high))


def ranks(scores: Tensor) -> Tensor:
    """The place of column 0 among all columns of each row, 1 being the best; who draws level stands before it.

    With the own text in column 0, `ranks <= k` is R@k of text-to-image retrieval (CLIP, arXiv 2103.00020, section 3.1;
    R-precision of AttnGAN, arXiv 1711.10485).
    """
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)


def skill(model: Tensor, real: Tensor, chance: float) -> Estimate | None:
    """How far from chance to the real pictures: 0 is chance, 1 is as good as real. Rows are the same prompts."""
    return ratio_of(model - chance, real - chance)


def kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x.y / F + 1)^3 of every two rows, the kernel of KID (Binkowski et al. 2018, arXiv 1801.01401, section 4)."""
    x, y = x.double(), y.double()
    xx, yy, xy = (((a @ b.T) / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return xx, yy, xy


def mmd2(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13, lemma 6).

    It may fall below zero, as it should for two draws of one distribution.
    """
    return _mmd2(*kernels(x, y))


def _mmd2(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    n, m = xy.shape
    within = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1)) + (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid(x: Tensor, y: Tensor, times: int, *names: object) -> Estimate:
    """`mmd2` of all rows, with 1.96 standard errors around it by the jackknife that leaves half out.

    The deviation over random halves of both sets is the standard error over the whole ones (Shao & Wu 1989, Annals of
    Statistics 17, 1176); where the sets are alike it is rather too wide. The kernel is computed once for all halves.
    """
    rng = generator("kid", *names)
    xx, yy, xy = kernels(x, y)
    drawn = []
    for _ in range(times):
        rows, others = (torch.randperm(len(z), generator=rng)[: max(2, len(z) // 2)] for z in (x, y))
        drawn.append(_mmd2(xx[rows][:, rows], yy[others][:, others], xy[rows][:, others]))
    value, half = _mmd2(xx, yy, xy), 1.96 * float(np.std(drawn))
    return Estimate(value, value - half, value + half)


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

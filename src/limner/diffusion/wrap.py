"""Functions from denoisers to a denoiser that concern places: kept parts, windows, regions, a torus.

Guidance is linear in x0, and so is each of these: either may stand inside the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limner.errors import BadInput
from limner.nn.tiles import Window, rise, windows
from limner.types import Denoiser

__all__ = ["Window", "pinned", "regional", "rolled", "tiled", "windows"]

MANY = 8  # windows that one call takes
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie as evenly as the points of any one rule can


def pinned(denoiser: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """Inpainting with an ordinary network: where the mask is 0, x0 is what is known (B|1 C h w).

    mask: B|1 1 h w in [0, 1], 1 where it is painted anew. In x_t this is the blending of RePaint (Lugmayr et al. 2022,
    arXiv 2201.09865, equation 8) with the noise that the walk started from: begun at a known + s eps, the kept part
    stays there at every time. Where the walk ends at t = 0 it ends in `known`: bit for bit if a sampler's last step
    goes to x0, as of most, and but for rounding if not.
    """

    def denoise(x: Tensor, t: float) -> Tensor:
        return mask * denoiser(x, t) + (1 - mask) * known

    return denoise


def tiled(at: Callable[[Window], Denoiser], places: Sequence[Window], size: tuple[int, int]) -> Denoiser:
    """MultiDiffusion: each window of x is denoised alone, and where windows share cells, x0 is their weighted mean.

    Bar-Tal et al. 2023, arXiv 2302.08113, equation 5, with the weights of a raised cosine over each window. `at` makes
    the denoiser of a window, size is (h, w); neighbours of the same denoiser go eight at a time, so that memory does
    not grow with the picture. One window that is the whole picture is its denoiser, bit for bit.
    """
    if list(places) == [(0, 0, *size)]:
        return at(places[0])
    weights = [_hill(place.h)[:, None] * _hill(place.w) for place in places]  # h w each
    total = torch.zeros(size, dtype=torch.float64)
    for place, weight in zip(places, weights, strict=True):
        place.add(weight, total)
    if not (total > 0).all():
        raise BadInput(f"the {len(places)} windows leave {int((total == 0).sum())} of {total.numel()} cells uncovered")
    shares = [(weight / place.cut(total)).float() for place, weight in zip(places, weights, strict=True)]
    groups: list[tuple[Denoiser, list[tuple[Window, Tensor]]]] = []  # neighbours that one denoiser can take at once
    for place, share in zip(places, shares, strict=True):
        part = at(place)
        last = groups[-1] if groups else None
        if last and last[0] is part and len(last[1]) < MANY and last[1][0][0][2:] == place[2:]:
            last[1].append((place, share))
        else:
            groups.append((part, [(place, share)]))

    def denoise(x: Tensor, t: float) -> Tensor:
        x0 = torch.zeros_like(x)
        for part, group in groups:
            found = part(torch.cat([place.cut(x) for place, _ in group]), t).chunk(len(group))
            for (place, share), each in zip(group, found, strict=True):
                place.add(share.to(x) * each, x0)
        return x0

    return denoise


def rolled(denoiser: Denoiser, times: Sequence[float], x: bool = True, y: bool = True) -> Denoiser:
    """A torus for networks that know borders: the origin moves on, so that no seam stays at one place.

    At station k of the descending times, x is rolled by k golden sections of its width and height, denoised, and
    rolled back. Between stations the one before holds, so that this is a function of (x, t).
    """
    stations = sorted(times, reverse=True)

    def denoise(latent: Tensor, t: float) -> Tensor:
        turn = sum(station > t for station in stations) * GOLDEN % 1
        shift = [int(turn * side) * move for side, move in zip(latent.shape[-2:], (y, x), strict=True)]
        away = denoiser(latent.roll(shift, (-2, -1)), t)
        return away.roll([-cells for cells in shift], (-2, -1))

    return denoise


def regional(base: Denoiser, parts: Sequence[tuple[Tensor, Denoiser, float]], share: float = 0.2) -> Denoiser:
    """Each part of the picture by its own denoiser: (mask 1 1 h w in [0, 1], denoiser, weight).

    x0 is the mean of the parts by weight times mask; where these sum to less than one, the base makes up for it.
    `share` of the base stays everywhere, so that regions cohere (Bar-Tal et al. 2023, arXiv 2302.08113, section 4.2,
    in x0, with a base).
    """
    if any(weight < 0 for _, _, weight in parts) or not 0 <= share <= 1:
        raise BadInput(
            f"regions of weights {[w for *_, w in parts]} and a share of {share} were given; none is below 0"
        )
    if not parts:
        return base
    total = torch.stack([weight * mask for mask, _, weight in parts]).sum(0)  # 1 1 h w
    rest = 1 - (1 - share) * total.clamp(max=1)
    each = [((1 - share) * weight * mask / total.clamp(min=1), part) for mask, part, weight in parts]

    def denoise(x: Tensor, t: float) -> Tensor:
        x0 = rest.to(x) * base(x, t)
        for mask, part in each:
            x0 = x0 + mask.to(x) * part(x, t)
        return x0

    return denoise


def _hill(length: int) -> Tensor:
    """A raised cosine, highest in the middle and nowhere 0."""
    half = rise(length, length / 2)
    return half * half.flip(0)

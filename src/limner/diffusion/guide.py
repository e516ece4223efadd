"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from torch import Tensor

from limner.types import Denoiser


def guided(
    positive: Denoiser,
    negative: Denoiser,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), in x0: negative + scale (positive - negative).

    interval: guide only at times low <= t <= high (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    rescale: how far to bring the deviation back to the unguided one (Lin et al. 2023, arXiv 2305.08891, section 3.4).
    """

    def denoise(x: Tensor, t: float) -> Tensor:
        toward = positive(x, t)
        if scale == 1 or not interval[0] <= t <= interval[1]:
            return toward
        away = negative(x, t)
        x0 = away + scale * (toward - away)
        if rescale:
            every = tuple(range(1, x.ndim))
            ratio = toward.std(every, keepdim=True) / x0.std(every, keepdim=True).clamp(min=1e-6)
            x0 = x0 * (1 + rescale * (ratio - 1))
        return x0

    return denoise

"""Guidance: arithmetic on estimates."""

import pytest
import torch
from torch import Tensor

from limner.diffusion.guide import guided


def always(value: Tensor):
    return lambda *_: value


def never(x: Tensor, t: float) -> Tensor:
    raise AssertionError("this estimate was not needed")


@pytest.fixture
def estimates() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, toward, away = torch.randn(3, 2, 4, 6, 5, generator=rng, dtype=torch.float64)
    return x, toward, away


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.5, 12.0])
def test_scale_walks_from_the_negative_through_the_positive(estimates, scale):
    x, toward, away = estimates
    got = guided(always(toward), always(away), scale)(x, 0.5)
    torch.testing.assert_close(got, away + scale * (toward - away), rtol=0, atol=1e-14)


def test_at_scale_1_the_negative_is_not_asked(estimates):
    x, toward, _ = estimates
    assert torch.equal(guided(always(toward), never, 1.0)(x, 0.5), toward)


def test_outside_the_interval_the_negative_is_not_asked(estimates):
    x, toward, away = estimates
    quiet = guided(always(toward), never, 5.0, interval=(0.2, 0.8))
    for t in (0.0, 0.19, 0.81, 1.0):
        assert torch.equal(quiet(x, t), toward)
    loud = guided(always(toward), always(away), 5.0, interval=(0.2, 0.8))
    for t in (0.2, 0.5, 0.8):
        assert not torch.equal(loud(x, t), toward)


def test_rescale_brings_the_deviation_back(estimates):
    x, toward, away = estimates
    plain, half, whole = (guided(always(toward), always(away), 7.0, rescale=r)(x, 0.5) for r in (0.0, 0.5, 1.0))
    spread = [value.std((1, 2, 3)) for value in (plain, half, whole, toward)]
    torch.testing.assert_close(spread[2], spread[3])
    torch.testing.assert_close(spread[1], (spread[0] + spread[3]) / 2)


def test_rescale_takes_each_picture_by_itself(estimates):
    x, toward, away = estimates
    together = guided(always(toward), always(away), 7.0, rescale=0.7)(x, 0.5)
    for k in range(2):
        alone = guided(always(toward[k : k + 1]), always(away[k : k + 1]), 7.0, rescale=0.7)(x[k : k + 1], 0.5)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-14)


def test_a_flat_estimate_is_rescaled_without_a_division_by_zero():
    flat = torch.zeros(1, 4, 4, 4)
    assert guided(always(flat), always(flat), 7.0, rescale=1.0)(flat, 0.5).isfinite().all()

"""Guidance: arithmetic on estimates."""

import pytest
import torch
from torch import Tensor

from limner.diffusion.guide import Guided, composed, guided, mixed, perturbed, skip_layer, staged
from limner.errors import BadInput


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


def test_a_pair_is_the_guided_and_the_negative_estimate(estimates):
    x, toward, away = estimates
    denoiser = guided(always(toward), always(away), 3.0, interval=(0.2, 0.8))
    assert isinstance(denoiser, Guided)
    x0, other = denoiser.pair(x, 0.5)
    assert torch.equal(x0, denoiser(x, 0.5))
    assert torch.equal(other, away)
    assert all(torch.equal(one, toward) for one in denoiser.pair(x, 0.9))  # no guidance there
    assert torch.equal(guided(always(toward), always(away), 1.0).pair(x, 0.5)[1], away)


def test_composed_prompts_add_their_weighted_pulls(estimates):
    x, first, away = estimates
    second = first.flip(-1)
    got = composed([(always(first), 0.7), (always(second), -0.4)], always(away), 5.0)(x, 0.5)
    want = away + 5.0 * (0.7 * (first - away) - 0.4 * (second - away))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_one_prompt_of_weight_1_is_guidance(estimates):
    x, toward, away = estimates
    alone = composed([(always(toward), 1.0)], always(away), 5.0, rescale=0.4)(x, 0.5)
    assert torch.equal(alone, guided(always(toward), always(away), 5.0, rescale=0.4)(x, 0.5))


def test_composed_at_scale_1_asks_the_negative_only_if_the_weights_leave_it_a_share(estimates):
    x, first, away = estimates
    half = composed([(always(first), 0.5), (always(first), 0.5)], never, 1.0)(x, 0.5)
    torch.testing.assert_close(half, first)
    got = composed([(always(first), 0.5)], always(away), 1.0)(x, 0.5)
    torch.testing.assert_close(got, (first + away) / 2)


def test_skip_layer_guidance_pulls_away_from_the_skipped_network_within_its_interval(estimates):
    x, toward, away = estimates
    skipped = toward.roll(1, 0)
    inner = guided(always(toward), always(away), 4.0)
    got = skip_layer(inner, always(skipped), 2.8, (0.6, 0.9))
    torch.testing.assert_close(got(x, 0.7), inner(x, 0.7) + 2.8 * (toward - skipped), rtol=0, atol=1e-13)
    assert torch.equal(skip_layer(inner, never, 2.8, (0.6, 0.9))(x, 0.5), inner(x, 0.5))


def test_perturbed_attention_pulls_away_within_its_interval_and_beside_skipped_layers(estimates):
    x, toward, away = estimates
    alone, skipped = toward.roll(1, 0), toward.flip(3)
    inner = guided(always(toward), always(away), 4.0)
    got = perturbed(inner, always(alone), 2.0, (0.7, 1.0))
    torch.testing.assert_close(got(x, 0.7), inner(x, 0.7) + 2.0 * (toward - alone), rtol=0, atol=1e-13)
    assert torch.equal(perturbed(inner, never, 2.0, (0.7, 1.0))(x, 0.69), inner(x, 0.69))
    assert perturbed(inner, never, 0.0) is inner
    both = skip_layer(got, always(skipped), 2.8)(x, 0.9)
    torch.testing.assert_close(both, got(x, 0.9) + 2.8 * (toward - skipped), rtol=0, atol=1e-13)


def test_composed_prompts_turn_away_from_all_of_their_worse_estimates(estimates):
    """Whatever share of itself the mixture leaves to the negative."""
    x, first, away = estimates
    second, alone = first.flip(-1), first.roll(1, 0)
    inner = composed([(always(first), 0.7), (always(second), -0.4)], always(away), 5.0)
    worse = mixed([(always(alone), 0.7), (always(alone.flip(-1)), -0.4)])
    got = perturbed(inner, worse, 2.0)(x, 0.5)
    want = inner(x, 0.5) + 2.0 * (0.7 * (first - alone) - 0.4 * (second - alone.flip(-1)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_perturbed_attention_needs_no_negative(estimates):
    x, toward, _ = estimates
    alone = toward.roll(1, 0)
    got = perturbed(guided(always(toward), never, 1.0), always(alone), 3.0)(x, 0.5)
    torch.testing.assert_close(got, toward + 3.0 * (toward - alone), rtol=0, atol=1e-13)


def test_stages_take_turns(estimates):
    x, first, second = estimates
    denoiser = staged([(0.6, always(first)), (0.2, always(second)), (0.0, always(x))])
    for t, want in ((1.0, first), (0.61, first), (0.6, second), (0.21, second), (0.2, x), (0.0, x)):
        assert torch.equal(denoiser(x, t), want)


@pytest.mark.parametrize("stages", [[], [(0.2, never), (0.6, never)]])
def test_stages_in_the_wrong_order_are_refused(stages):
    with pytest.raises(BadInput, match="times that descend"):
        staged(stages)


def test_nothing_to_compose_is_refused():
    with pytest.raises(BadInput, match="at least 1"):
        composed([], never, 5.0)

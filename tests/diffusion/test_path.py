"""Paths: what a network learns and the way back from its answer agree, on every path and for every prediction."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.diffusion.path import Discrete, Path, Straight, VarianceExploding, VariancePreserving

PATHS = [Straight(), VariancePreserving(), VarianceExploding(), Discrete()]
PREDICTIONS = ["x0", "eps", "v", "flow"]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 5, 5, generator=rng, dtype=torch.float64)
    return x0, eps


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [1e-4, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_x0_undoes_target(path: Path, prediction, t):
    path = replace(path, prediction=prediction)
    x0, eps = pair()
    x = path.noisy(x0, eps, t)
    torch.testing.assert_close(path.x0(x, path.target(x0, eps, t), t), x0, rtol=0, atol=1e-9)


@every_path
@pytest.mark.parametrize("prediction", ["x0", "flow"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_x0_and_flow_are_undone_at_both_ends(path: Path, prediction, t):
    path = replace(path, prediction=prediction)
    x0, eps = pair()
    x = path.noisy(x0, eps, t)
    torch.testing.assert_close(path.x0(x, path.target(x0, eps, t), t), x0, rtol=0, atol=1e-11)


@every_path
def test_targets_are_those_of_the_papers(path: Path):
    x0, eps = pair()
    a, s = path.a(0.4), path.s(0.4)
    want = {"x0": x0, "eps": eps, "v": a * eps - s * x0, "flow": eps - x0}
    for prediction in PREDICTIONS:
        assert torch.equal(replace(path, prediction=prediction).target(x0, eps, 0.4), want[prediction])


@every_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_time_for_each_row_is_each_row_at_its_time(path: Path, prediction):
    path = replace(path, prediction=prediction)
    x0, eps = pair()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for verb in (path.noisy, path.target):
        alone = torch.cat([verb(x0[i : i + 1], eps[i : i + 1], float(t[i])) for i in range(3)])
        torch.testing.assert_close(verb(x0, eps, t), alone, rtol=0, atol=1e-15)


@every_path
def test_eps_is_the_noise_that_was_put_in(path: Path):
    x0, eps = pair()
    torch.testing.assert_close(path.eps(path.noisy(x0, eps, 0.6), x0, 0.6), eps, rtol=0, atol=1e-12)


@every_path
def test_time_0_is_the_picture_and_noise_grows(path: Path):
    assert (path.a(0.0), path.s(0.0)) == (1.0, 0.0)
    levels = [path.s(t) / path.a(t) for t in torch.linspace(0, 0.999, 200).tolist()]
    assert levels == sorted(levels)
    assert path.log_snr(0.0) == math.inf


@every_path
@given(t=st.floats(1e-3, 0.999))
def test_time_finds_the_noise_level(path: Path, t: float):
    assert path.time(path.s(t) / path.a(t)) == pytest.approx(t, rel=1e-8)
    assert path.log_snr(t) == pytest.approx(math.log(path.a(t) / path.s(t)))


@every_path
def test_the_span_of_noise_levels_lies_within_the_path(path: Path):
    low, high = path.sigmas
    assert 0 < path.time(low) < path.time(high) <= 1 + 1e-12
    assert path.s(0.9) / path.a(0.9) < high * (1 + 1e-12)


def test_variance_preserving_preserves_variance():
    path = VariancePreserving()
    for t in (1e-6, 0.1, 0.5, 1.0):
        assert path.a(t) ** 2 + path.s(t) ** 2 == pytest.approx(1, abs=1e-14)


def test_variance_preserving_is_the_limit_of_ddpm():
    steps = 100_000
    betas = torch.linspace(0.1, 20, steps, dtype=torch.float64) / steps
    kept = torch.cumprod(1 - betas, 0).sqrt()
    for t in (0.25, 0.5, 1.0):
        assert VariancePreserving().a(t) == pytest.approx(float(kept[int(t * steps) - 1]), rel=1e-3)


def test_straight_at_time_1_is_noise_alone():
    assert (Straight().a(1.0), Straight().s(1.0)) == (0.0, 1.0)
    assert Straight().log_snr(1.0) == -math.inf


@every_path
def test_training_times_lie_in_the_unit_interval_and_repeat(path: Path):
    first, again = (path.draw(1000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (1000,)
    assert first.min() >= 0 and first.max() <= 1


def test_straight_draws_its_logit_normal_and_its_uniform_share():
    rng = torch.Generator().manual_seed(0)
    logit = torch.logit(Straight(mean=0.5, spread=0.7).draw(50_000, rng).double())
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(logit.std()) == pytest.approx(0.7, abs=0.02)
    flat = Straight(mean=0.5, spread=0.1, uniform=1.0).draw(50_000, rng)
    assert float((flat < 0.1).double().mean()) == pytest.approx(0.1, abs=0.01)


def test_a_path_is_a_fact():
    assert Straight() == Straight()
    with pytest.raises(AttributeError):
        Straight().shift = 3.0  # type: ignore[misc]


def test_the_tables_stations_are_those_of_the_released_checkpoints():
    path = Discrete()
    assert path.sigmas == pytest.approx((0.0291672, 14.614641), rel=2e-6)
    kept = 1.0
    for k in range(1000):  # Ho et al. 2020, one multiplication a station
        kept *= 1 - (0.00085**0.5 + k / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
        t = (k + 1) / 1000
        assert path.a(t) ** 2 == pytest.approx(kept, rel=1e-9)
        assert path.a(t) ** 2 + path.s(t) ** 2 == pytest.approx(1, abs=1e-14)
        assert path.clock(t) == pytest.approx(k, abs=1e-9)


def test_between_stations_the_logarithm_of_the_level_is_linear_and_below_the_first_the_level():
    path = Discrete()
    between = [math.log(path.s(t) / path.a(t)) for t in (0.4, 0.40025, 0.401)]
    assert between[1] == pytest.approx(0.75 * between[0] + 0.25 * between[2])
    assert path.s(0.00025) / path.a(0.00025) == pytest.approx(path.sigmas[0] / 4)
    assert path.time(path.sigmas[0] / 4) == pytest.approx(0.00025)
    assert path.time(1e9) == 1.0


def test_the_clock_of_a_table_is_its_station_or_the_nearest():
    assert Discrete().clock(0.5003) == pytest.approx(499.3)
    assert Discrete(whole=True).clock(0.5003) == 499.0
    assert Discrete().clock(0.0) == Discrete(whole=True).clock(0.0003) == 0.0  # there is nothing below station 0
    assert Straight(scale=1000.0).clock(0.25) == 250.0


def test_zero_terminal_snr_leaves_the_first_station_and_ends_in_noise():
    path, plain = Discrete(zero_snr=True, prediction="v"), Discrete()
    assert path.s(0.001) / path.a(0.001) == pytest.approx(plain.sigmas[0])
    assert path.a(1.0) ** 2 == pytest.approx(2.0**-24)
    assert path.a(0.5) < plain.a(0.5)


def test_training_times_of_a_table_are_its_stations():
    stations = Discrete().draw(20_000, torch.Generator().manual_seed(0)).double() * 1000
    assert torch.equal(stations.round(), stations.float().double().round())
    assert (stations - stations.round()).abs().max() < 1e-3
    assert stations.min().round() == 1 and stations.max().round() == 1000


@every_path
@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_in_the_frame_a_step_that_holds_the_estimate_is_straight(path: Path, t):
    x0, eps = pair()
    (c, level), (c2, level2) = path.frame(t), path.frame(t / 2)
    x = path.noisy(x0, eps, t)
    moved = x / c + (level2 - level) * (x / c - x0) / level
    torch.testing.assert_close(c2 * moved, path.noisy(x0, eps, t / 2), rtol=0, atol=1e-10)
    assert path.at_level(level) == pytest.approx(t)


def test_only_a_straight_path_shifts():
    assert Straight(shift=3.0).shifted(0.5) == 0.75
    assert Discrete().shifted(0.5) == VariancePreserving().shifted(0.5) == 0.5

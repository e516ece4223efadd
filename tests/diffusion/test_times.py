"""Schedules: n + 1 times that descend from the top of the path to 0."""

from itertools import pairwise

import numpy as np
import pytest

from limner.diffusion.path import Discrete, Straight, VarianceExploding, VariancePreserving
from limner.diffusion.times import GRID, SCHEDULES, times
from limner.errors import BadInput, UnknownName

PATHS = [Straight(), Straight(shift=3.0), Discrete(), VariancePreserving(), VarianceExploding()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{type(p).__name__}{getattr(p, 'shift', '')}")
every_schedule = pytest.mark.parametrize("schedule", list(SCHEDULES))


LEVELS = {"karras", "exponential", "kl_optimal", "align_your_steps", "align_your_steps_xl"}  # they speak of levels
LATER = {"leading", "ddim", "multistep_leading"}  # they leave out the noisiest stations
MOST = {"lcm": 50, "leading": 999, "ddim": 999, "multistep_leading": 998}  # steps; else 1000 and more


@every_path
@every_schedule
@pytest.mark.parametrize("n", [1, 2, 7, 30, 1000])
def test_times_descend_from_the_top_to_the_end(path, schedule, n):
    n = min(n, MOST.get(schedule, n))
    found = times(n, schedule, path)
    assert len(found) == n + 1
    assert all(type(t) is float for t in found)
    assert found[-1] == (pytest.approx(path.shifted(0.001)) if schedule == "ddim" else 0)
    assert all(later < t for t, later in pairwise(found))
    if schedule not in LATER:
        top = path.time(path.sigmas[1]) if schedule in LEVELS else 1.0
        assert found[0] == pytest.approx(top, abs=1e-9) and 0.99 < found[0] <= 1


@every_path
@every_schedule
def test_a_later_start_keeps_the_last_steps_of_a_longer_walk(path, schedule):
    found = times(10, schedule, path, start=0.6)
    assert found == times(16, schedule, path)[-11:]
    assert times(30, "karras", path, start=0.6) == times(50, "karras", path)[-31:]  # 30 / 0.6 is a little below 50


def test_a_start_in_the_middle_is_the_tail_of_twice_as_many_steps():
    assert times(10, path=Straight(shift=2.5), start=0.5) == pytest.approx(times(20, path=Straight(shift=2.5))[10:])


def test_uniform_is_even_and_the_default():
    assert times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(4) == times(4, "trailing") == times(4, "uniform", Straight())


def test_a_shift_spends_more_steps_on_noise():
    assert times(4, path=Straight(shift=3.0)) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_leading_is_that_of_the_released_checkpoints():
    path = Discrete()
    assert [path.clock(t) for t in times(4, "leading", path)] == pytest.approx([751, 501, 251, 1, 0])
    assert times(50, "leading", path)[0] == pytest.approx(0.982)  # station 981
    assert times(20, "ddim", path)[:-1] == times(20, "leading", path)[:-1]
    assert times(20, "ddim", path)[-1] == pytest.approx(0.001)  # station 0


def test_ddim_uniform_is_what_comfyui_calls_so():
    """Every (1000 // n)-th station from the second on, then 0."""
    stations = [*range(1, 1000, 1000 // 20)][::-1]
    assert [Discrete().clock(t) for t in times(20, "ddim_uniform", Discrete())[:-1]] == pytest.approx(stations)


def test_trailing_takes_whole_stations_of_a_table():
    path = Discrete()
    stations = [1000 * t for t in times(7, "trailing", path)]
    assert stations == pytest.approx([1000, 857, 714, 571, 429, 286, 143, 0])
    assert 1000 * times(16, "trailing", path)[1] == pytest.approx(938)  # halves to even


def test_linspace_and_normal_are_one_and_know_the_shift():
    assert times(3, "normal", Discrete()) == pytest.approx([1.0, 0.5005, 0.001, 0.0])
    path = Straight(shift=3.0)
    low = path.shifted(0.001)
    assert times(3, "normal", path) == pytest.approx([1.0, path.shifted((1 + low) / 2), path.shifted(low), 0.0])


@pytest.mark.parametrize("schedule", sorted(LEVELS))
def test_levels_do_not_feel_the_shift(schedule):
    assert times(9, schedule, Straight(shift=3.0)) == times(9, schedule, Straight())


def test_polyexponential_with_a_rho_of_1_is_exponential():
    path = Discrete()
    low, high = np.log(path.sigmas)
    published = np.exp(np.linspace(1, 0, 9) ** 1.0 * (high - low) + low)
    found = [path.s(t) / path.a(t) for t in times(9, "polyexponential", path)[:-1]]
    np.testing.assert_allclose(found, published, rtol=1e-9)


def test_kl_optimal_is_even_in_the_arc_tangent_of_the_level():
    path = Discrete()
    angles = np.arctan([path.s(t) / path.a(t) for t in times(9, "kl optimal", path)[:-1]])
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0], rtol=1e-6)


def test_align_your_steps_at_ten_steps_is_its_table():
    path = Discrete()
    found = [path.s(t) / path.a(t) for t in times(10, "ays", path)]
    want = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0]
    np.testing.assert_allclose(found, want, rtol=1e-4)
    found = [path.s(t) / path.a(t) for t in times(20, "ays", path)]
    np.testing.assert_allclose(found[::2], want, rtol=1e-4)
    assert found[1] == pytest.approx((14.615 * 6.475) ** 0.5, rel=1e-3)


def test_linear_quadratic_starts_even_and_bends_without_a_corner():
    found = np.array(times(8, "linear quadratic", Straight(shift=3.0)))
    np.testing.assert_allclose(found[:5], 1 - 0.025 * np.arange(5) / 4)
    gaps = -np.diff(found)
    np.testing.assert_allclose(np.diff(gaps[4:]), np.diff(gaps[4:])[0])  # a parabola
    assert gaps[4] > gaps[3]
    path = Discrete()
    levels = [path.s(t) / path.a(t) / path.sigmas[1] for t in times(8, "linear quadratic", path)]
    np.testing.assert_allclose(levels, found, atol=1e-9)


def test_beta_takes_whole_stations_of_a_table():
    stations = 1000 * np.array(times(10, "beta", Discrete()))
    np.testing.assert_allclose(stations, [1000, 960, 877, 766, 638, 501, 363, 235, 124, 41, 0], atol=1e-9)


def test_lcm_picks_from_fifty_stations():
    assert [Discrete().clock(t) for t in times(4, "lcm", Discrete())[:-1]] == pytest.approx([999, 759, 499, 259])


def test_discard_leaves_out_the_last_time_but_one_of_a_longer_walk():
    path = Discrete()
    longer = times(9, "karras", path)
    assert times(8, "karras", path, discard=True) == [*longer[:-2], 0.0]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Automatic", "linspace"),
        ("discrete", "linspace"),
        ("Polyexponential", "exponential"),
        ("SGM Uniform", "sgm_uniform"),
        ("KL Optimal", "kl_optimal"),
        ("Align Your Steps", "align_your_steps"),
        ("ays", "align_your_steps"),
        ("Simple", "simple"),
        ("Normal", "linspace"),
        ("DDIM", "ddim"),
        ("ddim_uniform", "leading"),
        ("Beta", "beta"),
        ("linear_quadratic", "linear_quadratic"),
        ("Trailing", "uniform"),
    ],
)
def test_the_fields_spellings_are_understood(spelling, name):
    assert SCHEDULES.name(spelling) == name


def test_karras_is_even_in_the_seventh_root_of_the_level():
    path = VariancePreserving()
    roots = np.array([path.s(t) / path.a(t) for t in times(8, "karras", path)[:-1]]) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-6)


def test_exponential_is_even_in_the_logarithm_of_the_level():
    path = VarianceExploding()
    levels = np.log([path.s(t) for t in times(8, "exponential", path)[:-1]])
    np.testing.assert_allclose(np.diff(levels), np.diff(levels)[0], rtol=1e-9)


def test_beta_is_dense_at_both_ends_and_even_about_the_middle():
    found = times(10, "beta")
    gaps = [t - later for t, later in pairwise(found)]
    assert gaps[0] < gaps[5] > gaps[-1]
    assert found[5] == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(gaps, gaps[::-1], atol=1e-6)


def test_sgm_uniform_leaves_the_last_station_out():
    assert times(2, "sgm uniform") == pytest.approx([1.0, 0.5005, 0.0])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n": 0}, "0 steps were asked for; at least 1 is needed"),
        ({"n": -3}, "-3 steps"),
        ({"n": GRID + 1, "schedule": "simple"}, "1001 steps were asked for; this schedule picks from 1000 stations"),
        ({"n": 1000, "schedule": "leading"}, "from 999 stations"),
        ({"n": 51, "schedule": "lcm"}, "from 50 stations"),
        ({"n": 4, "start": 0.0}, "t = 0.0"),
        ({"n": 4, "start": 1.5}, "t = 1.5"),
        ({"n": 4, "start": float("nan")}, "t = nan"),
    ],
)
def test_what_cannot_be_walked_is_refused_in_words(wrong, sentence):
    with pytest.raises(BadInput, match=sentence):
        times(**wrong)


def test_an_unknown_schedule_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean karras"):
        times(4, "karas")

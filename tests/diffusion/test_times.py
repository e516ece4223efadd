"""Schedules: n + 1 times that descend from the top of the path to 0."""

from itertools import pairwise

import numpy as np
import pytest

from limner.diffusion.path import Path, Straight, VarianceExploding, VariancePreserving
from limner.diffusion.times import GRID, SCHEDULES, times
from limner.errors import BadInput, UnknownName

PATHS = [Straight(), Straight(shift=3.0), VariancePreserving(), VarianceExploding()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{type(p).__name__}{getattr(p, 'shift', '')}")
every_schedule = pytest.mark.parametrize("schedule", list(SCHEDULES))


def top(path: Path, schedule: str) -> float:
    """Where a schedule starts: at 1, or at the greatest noise level that the path gives schedules of levels."""
    t = path.time(path.sigmas[1]) if schedule in ("karras", "exponential") else 1.0
    shift = getattr(path, "shift", 1.0)
    return shift * t / (1 + (shift - 1) * t)


@every_path
@every_schedule
@pytest.mark.parametrize("n", [1, 2, 7, 30, 1000])
def test_times_descend_from_the_top_to_0(path, schedule, n):
    found = times(n, schedule, path)
    assert len(found) == n + 1
    assert all(type(t) is float for t in found)
    assert found[0] == pytest.approx(top(path, schedule), abs=1e-9)
    assert 0.99 < found[0] <= 1 and found[-1] == 0
    assert all(later < t for t, later in pairwise(found))


@every_path
@every_schedule
def test_a_later_start_keeps_the_last_share_of_a_longer_walk(path, schedule):
    found = times(10, schedule, path, start=0.6)
    assert len(found) == 11
    assert found[-1] == 0
    assert found[0] < times(10, schedule, path)[0]
    assert all(later < t for t, later in pairwise(found))


def test_a_start_in_the_middle_is_the_tail_of_twice_as_many_steps():
    assert times(10, path=Straight(shift=2.5), start=0.5) == pytest.approx(times(20, path=Straight(shift=2.5))[10:])


def test_uniform_is_even_and_the_default():
    assert times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(4) == times(4, "trailing") == times(4, "uniform", Straight())


def test_a_shift_spends_more_steps_on_noise():
    assert times(4, path=Straight(shift=3.0)) == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


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
        ({"n": GRID + 1, "schedule": "simple"}, "1001 steps were asked for; the simple schedule"),
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

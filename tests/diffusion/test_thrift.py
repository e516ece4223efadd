"""Steps that are not computed whole."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limner.diffusion.guide import Carried, guided, pair
from limner.diffusion.path import Prediction, Straight, VariancePreserving
from limner.diffusion.thrift import LEAN, Memory, Thrift, carried

STATIONS = [1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]


def test_early_steps_are_whole_and_then_every_third():
    thrift = Thrift.over(STATIONS, 3, late=0.7)
    assert thrift is not None
    assert [t for t in STATIONS if thrift.whole(t)] == [1.0, 0.9, 0.8, 0.4, 0.1]


@pytest.mark.parametrize(
    ("every", "whole"),
    [(2, (0.8, 0.5, 0.3, 0.1)), (3, (0.8, 0.5, 0.2)), (4, (0.8, 0.5, 0.2)), (6, (0.8, 0.5, 0.2))],
)
def test_where_it_eases_in_gaps_grow_from_two(every: int, whole: tuple[float, ...]):
    thrift = Thrift.over(STATIONS, every, late=0.7, eases=True)
    assert thrift is not None
    assert tuple(t for t in STATIONS if thrift.whole(t)) == (1.0, 0.9, *whole)


def test_gaps_that_have_grown_stay():
    thrift = Thrift.over([1 - i / 20 for i in range(20)], 4, late=0.78, eases=True)
    assert thrift is not None
    assert [i for i, t in enumerate(thrift.stations) if thrift.whole(t)] == [0, 1, 2, 3, 4, 6, 9, 13, 17]


KARRAS = [1.0, 0.963, 0.922, 0.877, 0.828, 0.773, 0.711, 0.641, 0.562, 0.475, 0.381, 0.286, 0.198, 0.124, 0.07, 0.036,
          0.016, 0.007, 0.003, 0.001, 0.0]  # fmt: skip


@pytest.mark.parametrize(
    ("stations", "apart", "eases", "late"),
    [
        (KARRAS, 0.1, True, [8, 10, 12, 14]),
        (KARRAS, 0.1, False, [8, 10, 12, 14]),  # never two in turn
        (KARRAS, 0.3, False, [10, 14]),
        (KARRAS, 0.3, True, [8, 10, 14]),  # 0.15, 0.225, 0.3
        (KARRAS, 1.0, False, []),
        ([1 - i / 40 for i in range(41)], 0.1, False, [15, 19, 23, 27, 31, 35, 39]),
        ([1 - i / 10 for i in range(11)], 0.1, True, [4, 6, 8]),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 0.2, False, [1, 3]),  # all of them are late: the first two
        ([0.5, 0.0], 0.2, True, []),
    ],
)  # fmt: skip
def test_late_steps_can_be_apart_by_time(stations: list[float], apart: float, eases: bool, late: list[int]):
    thrift = Thrift.over(stations, 1, 0.7, eases, apart)
    assert thrift is not None
    early = [i for i, t in enumerate(stations) if t > 0.7]
    assert [i for i, t in enumerate(stations[:-1]) if thrift.whole(t)] == early + late


def test_a_time_between_two_stations_belongs_to_the_one_before():
    thrift = Thrift.over(STATIONS, 3, late=0.7)
    assert thrift is not None
    assert [thrift.whole(t) for t in (0.85, 0.45, 0.35, 0.25)] == [True, False, True, False]


def test_every_step_whole_needs_no_thrift():
    assert Thrift.over(STATIONS, 1, late=0.7, apart=0.0) is None


def walked(every: int, late: float, value, order: int = 1) -> tuple[list[float], list[list[Tensor]]]:
    """When values were computed, and what came at every station, `order` times at each."""
    computed: list[float] = []
    memory = Memory(Thrift(tuple(STATIONS), every, late))

    def at(t: float, i: int) -> Tensor:
        def compute() -> Tensor:
            computed.append(t)
            return value(t) + i

        return memory(torch.zeros(2, 3), t, compute)

    return computed, [[at(t, i) for i in range(order)] for t in STATIONS]


def test_it_computes_at_whole_steps_alone():
    computed, _ = walked(3, 0.7, lambda t: torch.full((2, 3), t))
    assert computed == [1.0, 0.9, 0.8, 0.4, 0.1]


def test_between_them_it_leans_along_the_line_through_the_last_two():
    _, values = walked(3, 0.7, lambda t: torch.full((2, 3), 2 * t, dtype=torch.float64))
    at = dict(zip(STATIONS, values, strict=True))
    torch.testing.assert_close(at[0.6][0][0, 0].item(), 2 * (0.8 + LEAN * (0.6 - 0.8)))
    torch.testing.assert_close(at[0.3][0][0, 0].item(), 2 * (0.4 + LEAN * (0.3 - 0.4)))


def test_what_does_not_change_is_carried_over_to_the_bit():
    value = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    _, values = walked(4, 0.9, lambda _: value)
    assert all(torch.equal(got[0], value) for got in values)


def test_windows_of_a_step_are_remembered_each_by_itself():
    _, values = walked(3, 0.7, lambda _: torch.full((2, 3), 0.0), order=3)
    assert all([float(got[0, 0]) for got in three] == [0.0, 1.0, 2.0] for three in values)


def test_a_walk_that_goes_back_to_noise_begins_anew():
    memory = Memory(Thrift(tuple(STATIONS), 9, 1.0))
    x = torch.zeros(1, 1)
    assert memory(x, 0.6, lambda: torch.tensor([1.0])) == 1
    assert memory(x, 0.5, lambda: torch.tensor([2.0])) == 1
    assert memory(x, 0.9, lambda: torch.tensor([3.0])) == 3


def test_another_shape_is_computed():
    memory = Memory(Thrift(tuple(STATIONS), 9, 1.0))
    assert memory(torch.zeros(1, 1), 0.6, lambda: torch.tensor([1.0])) == 1
    assert memory(torch.zeros(2, 1), 0.5, lambda: torch.tensor([2.0])) == 2


def test_one_value_is_carried_as_it_is():
    assert carried([(0.8, torch.tensor(5.0))], 0.3) == 5


@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_guidance_carries_the_difference_over(rescale):
    asked: list[float] = []

    def negative(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return x - 1

    def positive(x: Tensor, t: float) -> Tensor:
        return x + 1

    plain = guided(positive, negative, 5.0, rescale=rescale)
    thrifty = replace(plain, memory=Memory(Thrift(tuple(STATIONS), 3, 0.7)))
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = [thrifty(x, t) for t in STATIONS]
    assert asked == [1.0, 0.9, 0.8, 0.4, 0.1]
    for t, value in zip(STATIONS, got, strict=True):  # the difference is constant, so nothing is lost
        torch.testing.assert_close(value, plain(x, t))
    again = replace(plain, memory=Memory(Thrift(tuple(STATIONS), 3, 0.7)))
    for t in STATIONS:
        both = again.pair(x, t)
        torch.testing.assert_close(both[0], plain(x, t))
        torch.testing.assert_close(both[1], x - 1)


THIRDS = Thrift(tuple(STATIONS), 3, 0.7)
WHOLE = [1.0, 0.9, 0.8, 0.4, 0.1]


def test_a_whole_answer_is_carried_over_and_nobody_is_asked():
    asked: list[float] = []

    def denoiser(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return torch.full_like(x, t)

    carrying = Carried.over(denoiser, Straight("x0"), THIRDS)
    x = torch.zeros(2, 4, 5, 5, dtype=torch.float64)
    got = {t: carrying(x, t)[0, 0, 0, 0].item() for t in STATIONS}
    assert asked == WHOLE
    assert all(got[t] == t for t in asked) and got[0.3] == pytest.approx(0.4 - LEAN * 0.1)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_it_is_the_networks_own_answer_that_is_carried_over(prediction: Prediction):
    """One that moves evenly in t is met on each step, though x is another."""
    path, noise = VariancePreserving(prediction), torch.Generator().manual_seed(0)
    fixed = torch.randn(2, 4, 5, 5, generator=noise, dtype=torch.float64)
    carrying = Carried.over(lambda x, t: path.x0(x, fixed * (1 + t), t), path, THIRDS)
    for t in STATIONS[:-1]:
        x = torch.randn(fixed.shape, generator=noise, dtype=torch.float64)
        torch.testing.assert_close(carrying(x, t), path.x0(x, fixed * (1 + t), t))


def test_where_noise_is_drawn_the_picture_is_carried_over():
    path, x = VariancePreserving("eps"), torch.zeros(1, 1)
    carrying = Carried.over(lambda x, _: torch.full_like(x, 3.0), path, THIRDS, noisy=True)
    assert [carrying(x + t, t).item() for t in STATIONS] == [3.0] * len(STATIONS)


def test_both_estimates_are_carried_over_for_samplers_that_want_both():
    plain = guided(lambda x, t: x + t, lambda x, t: x - t, 5.0)
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    carrying = Carried.over(plain, Straight("x0"), THIRDS)
    for t in STATIONS:
        got, want = pair(carrying, x, t), plain.pair(x, t)
        for mine, theirs in zip(got, want, strict=True):
            assert t not in WHOLE or torch.equal(mine, theirs)
        torch.testing.assert_close((got[0] - x) / 9, x - got[1])  # 9 t and t, whatever is carried
    twice = Carried.over(lambda x, t: x + t, Straight("x0"), THIRDS)
    assert all(torch.equal(*pair(twice, x, t)) for t in STATIONS)

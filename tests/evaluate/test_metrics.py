"""Each measure on cases whose answer is known."""

import math

import pytest
import torch

from limner.evaluate import metrics
from limner.palette import HUES, to_rgb


def test_ranks_count_what_is_better_and_ties_stand_before():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.9, 0.2], [0.5, 0.5, 0.1], [0.2, 0.1, 0.3]])
    assert metrics.ranks(scores).tolist() == [1, 3, 2, 2]


def test_a_judge_that_sees_nothing_earns_nothing():
    assert metrics.ranks(torch.zeros(4, 100)).tolist() == [100] * 4


def test_random_scores_come_first_as_often_as_chance_says():
    scores = torch.rand(20_000, 10, generator=torch.Generator().manual_seed(0))
    assert (metrics.ranks(scores) <= 1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert (metrics.ranks(scores) <= 5).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_skill_is_0_at_chance_and_1_at_the_ceiling():
    real, chance = torch.tensor([1.0, 0.6]), torch.tensor([0.01, 0.01])
    assert metrics.skill(chance, real, 0.01).value == pytest.approx(0)
    assert metrics.skill(real, real, 0.01).value == 1
    assert metrics.skill(real, chance - 0.01, 0.01) is None


def normal(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_mmd2_equals_the_sum_over_pairs():
    x, y = normal(4, 0), normal(3, 1)

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a.double() @ b.double()) / 16 + 1) ** 3

    want = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    want += sum(k(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    want -= 2 * sum(k(a, b) for a in x for b in y) / 12
    assert metrics.mmd2(x, y) == pytest.approx(want)


def test_mmd2_is_unbiased_so_same_distributions_give_0_with_both_signs():
    found = torch.tensor([metrics.mmd2(normal(30, 2 * i), normal(30, 2 * i + 1)) for i in range(200)])
    assert abs(found.mean()) < 3 * found.std() / 200**0.5
    assert (found < 0).any() and (found > 0).any()


def test_kid_grows_with_the_shift():
    near, far = (metrics.kid(normal(200, 0), normal(200, 1, shift), 5).value for shift in (0.3, 1.0))
    assert 0 < near < far


def test_kid_is_reproducible_and_knows_its_seed():
    x, y = normal(50, 0), normal(50, 1)
    assert metrics.kid(x, y, 3, 7) == metrics.kid(x, y, 3, 7)
    assert metrics.kid(x, y, 3, 7) != metrics.kid(x, y, 3, 8)


def test_kid_is_mmd2_of_whole_sets_and_its_interval_has_the_width_of_other_draws():
    """The halves' standard error against the deviation over sets that were truly drawn anew."""
    x, y = normal(100, 0), normal(100, 1, 0.5)
    assert metrics.kid(x, y, 5).value == pytest.approx(metrics.mmd2(x, y))
    drawn = [metrics.kid(normal(100, 2 * i), normal(100, 2 * i + 1, 0.5), 60, i) for i in range(60)]
    true = torch.tensor([found.value for found in drawn]).std()
    told = torch.tensor([(found.high - found.low) / 3.92 for found in drawn]).mean()
    assert 0.8 < told / true < 1.5


def test_wilson():
    found = metrics.wilson(0, 16)
    assert found.value == found.low == 0 and found.high == pytest.approx(0.1936, abs=1e-3)
    found = metrics.wilson(81, 263)  # Newcombe 1998, table I
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert metrics.bootstrap(torch.zeros(16)) == metrics.wilson(0, 16)
    assert metrics.bootstrap(torch.ones(16)).high == 1


def test_ratios_of_the_same_prompts_are_drawn_together():
    hits = (torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    assert metrics.ratio_of(hits, hits) == metrics.Estimate(1, 1, 1)
    found = metrics.ratio_of(hits * 0.5, torch.ones(40))
    assert found is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    assert metrics.ratio_of(hits, torch.zeros(60)) is None
    assert metrics.ratio_of(hits, torch.tensor([0.0, 1.0])).low is None  # some draws have nothing to divide by


def test_bootstrap_covers_the_true_mean():
    rng = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(200):
        found = metrics.bootstrap((torch.rand(80, generator=rng) < 0.3).float(), 400, trial)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def bank() -> torch.Tensor:
    return torch.rand(50, 64, generator=torch.Generator().manual_seed(3))


def test_nearest_finds_planted_copies_and_no_others():
    fresh = torch.rand(10, 64, generator=torch.Generator().manual_seed(4))
    queries = torch.cat([bank()[:5] + 0.01, fresh])
    found = metrics.nearest(queries, bank(), torch.arange(50), bank(), 0.05)
    assert (found.ratio < 1 / 3).tolist() == [True] * 5 + [False] * 10
    assert found.rows[:5, 0].tolist() == list(range(5))
    assert found.distances[:5, 0].tolist() == pytest.approx([0.01] * 5, rel=0.05)


def test_a_copy_of_a_picture_that_stands_twice_is_still_a_copy():
    doubled = torch.cat([bank(), bank()[:1] + 0.002])
    query = bank()[:1] + 0.001
    blind = metrics.nearest(query, doubled, torch.arange(51), doubled, 0.0)
    found = metrics.nearest(query, doubled, torch.arange(51), doubled, 0.05)
    assert blind.ratio.item() > 1 / 3 > found.ratio.item()


def test_the_nearest_of_the_same_group_is_no_second_picture():
    close = torch.cat([bank(), bank()[:1] + 0.1])
    groups = torch.cat([torch.arange(50), torch.zeros(1, dtype=torch.int64)])
    query = bank()[:1] + 0.04
    assert metrics.nearest(query, close, torch.arange(51), close, 0.0).ratio.item() > 1 / 3
    assert metrics.nearest(query, close, groups, close, 0.0).ratio.item() < 1 / 3


def test_spread_of_one_direction_and_of_two():
    assert metrics.spread(torch.ones(3, 4)) == pytest.approx(0)
    assert metrics.spread(torch.eye(3)) == pytest.approx(1)


def disc(colour: str | tuple[float, float, float], soft: float = 0.0) -> torch.Tensor:
    """A box in the middle of 64 x 64 with a one-pixel edge of another alpha: 4 H W, premultiplied."""
    hue = HUES[colour] if isinstance(colour, str) else 0.0
    rgb = to_rgb(torch.tensor([hue, 0.9, 0.9])[:, None, None]) if isinstance(colour, str) else torch.tensor(colour)
    alpha = torch.zeros(1, 64, 64)
    alpha[:, 15:49, 15:49] = soft
    alpha[:, 16:48, 16:48] = 1
    return torch.cat([rgb.view(3, 1, 1) * alpha, alpha])


@pytest.mark.parametrize("colour", HUES)
def test_in_colour(colour: str):
    assert metrics.in_colour(disc(colour), colour)
    assert not any(metrics.in_colour(disc(colour), other) for other in HUES if other != colour)


def test_black_lines_do_not_take_a_colour_away_but_mostly_black_is_not_red():
    picture = disc("red")
    picture[:3, 16:36, 16:48] = 0
    assert metrics.in_colour(picture, "red")
    picture[:3, 16:44, 16:48] = 0
    assert not metrics.in_colour(picture, "red")
    assert not metrics.in_colour(torch.zeros(4, 8, 8), "red")


def test_soft_share_and_fringe():
    hard, clean = disc("red"), disc("red", 0.5)
    halo = clean.clone()
    halo[:3] = torch.where(halo[3:] == 0.5, 0.5, halo[:3])  # a white edge
    batch = torch.stack([hard, clean, halo])
    assert metrics.soft_share(batch).tolist() == pytest.approx([0, 132 / 4096, 132 / 4096])
    none, clear, seen = metrics.fringe(batch).tolist()
    assert math.isnan(none)
    assert clear == pytest.approx(0, abs=1e-5)
    red = clean[:3, 32, 32]
    assert seen == pytest.approx((1 - red).abs().mean().item(), rel=1e-4)


def test_psnr_on_white_of_a_known_error():
    want = torch.ones(1, 4, 8, 8)
    got = want.clone()
    got[:, :3] = 1 - 51 / 255
    assert metrics.psnr_on_white(got, want).item() == pytest.approx(-20 * math.log10(0.2), abs=1e-4)


def test_random_features_are_fixed_by_their_seed():
    x = torch.rand(2, 4, 128, 128)
    first, again, other = (metrics.RandomFeatures(seed=seed)(x) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert first.shape == (2, 2 * (48 + 96 + 192))


def test_standardised_rows_have_one_size():
    x = metrics.standardised(normal(40, 0, 3.0), normal(40, 1, 3.0))
    assert torch.allclose(x.square().mean(1), torch.ones(40))
    assert abs(x.mean()) < 0.2

"""The seam score: 1 where a border is a line like others."""

import math

import pytest
import torch

from limner.seams import seam_score, two_by_two


def waves(h: int, w: int, across: float, down: float) -> torch.Tensor:
    """Waves that fit so many times into the picture, with all phases in every line, and a little grain."""
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    wave = torch.sin(2 * math.pi * (across * x + down * y)) / 4 + 0.5
    grain = torch.rand(4, h, w, generator=torch.Generator().manual_seed(0)) * 0.02
    return wave.expand(4, -1, -1) + grain


def test_a_texture_that_goes_around_scores_1():
    for picture in (waves(128, 96, 3, 5), torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(1))):
        assert seam_score(picture) == pytest.approx((1, 1), abs=0.1)
        assert seam_score(picture, usual=0) == pytest.approx((1, 1), abs=0.1)


def test_a_seam_scores_above_1_on_its_own_axis_alone():
    x, y = seam_score(waves(128, 128, 3.5, 5))
    assert x > 3
    assert y == pytest.approx(1, abs=0.1)
    x, y = seam_score(waves(128, 128, 4, 2.5))
    assert y > 3
    assert x == pytest.approx(1, abs=0.1)


def test_a_frame_scores_below_1():
    picture = torch.zeros(4, 64, 64)
    picture[:, 8:-8, 8:-8] = torch.rand(4, 48, 48, generator=torch.Generator().manual_seed(1))
    assert max(seam_score(picture)) < 0.7


def test_rolling_a_texture_by_blocks_keeps_its_score():
    picture = waves(128, 128, 3, 5)
    for shift in range(8, 128, 40):
        assert seam_score(picture.roll((shift, shift), (1, 2))) == pytest.approx((1, 1), abs=0.1)


def test_blocks_are_compared_with_blocks():
    blocks = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(1))
    picture = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert seam_score(picture) == pytest.approx((1, 1), abs=0.1)
    assert min(seam_score(picture, step=1, usual=0)) > 2


def test_a_flat_picture_scores_1_and_a_narrow_one_is_scored():
    assert seam_score(torch.full((4, 64, 64), 0.3)) == (1, 1)
    assert seam_score(torch.full((4, 1, 5), 0.3)) == (1, 1)


def test_two_by_two_shows_the_seams_in_the_middle():
    picture = torch.rand(4, 6, 8)
    shown = two_by_two(picture)
    assert shown.shape == (4, 12, 16)
    assert all(torch.equal(shown[:, y : y + 6, x : x + 8], picture) for y in (0, 6) for x in (0, 8))

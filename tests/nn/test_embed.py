"""Embeddings of time and place."""

import math

import pytest
import torch

from limner.nn.embed import rotary_2d, rotate, timestep_embedding

CPU = torch.device("cpu")


def turned_pair(q: torch.Tensor, k: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """The products of q at each place of the grid with k at each place: T T."""
    turn = rotary_2d(h, w, q.shape[-1], CPU)
    places = [part.expand(1, 1, h * w, -1) for part in (q, k)]
    there, here = (rotate(part, *turn)[0, 0].double() for part in places)
    return there @ here.T


def test_turning_keeps_norms():
    x = torch.randn(2, 3, 4 * 6, 16)
    torch.testing.assert_close(rotate(x, *rotary_2d(4, 6, 16, CPU)).norm(dim=-1), x.norm(dim=-1))


def test_the_first_place_is_not_turned():
    x = torch.randn(1, 1, 6, 16)
    assert torch.equal(rotate(x, *rotary_2d(2, 3, 16, CPU))[:, :, 0], x[:, :, 0])


def test_products_depend_on_relative_place_alone():
    h, w = 5, 7
    products = turned_pair(*torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), h, w).view(h, w, h, w)
    torch.testing.assert_close(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], rtol=0, atol=1e-4)


def test_rows_and_columns_are_told_apart():
    products = turned_pair(*torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), 3, 3).view(3, 3, 3, 3)
    assert products[0, 0, 0, 1] != pytest.approx(float(products[0, 0, 1, 0]), abs=1e-3)


def test_a_place_does_not_depend_on_the_size_of_the_grid():
    small, large = (rotary_2d(h, w, 16, CPU)[0].view(h, w, 16) for h, w in ((2, 3), (5, 9)))
    assert torch.equal(small, large[:2, :3])


def test_time_is_cosines_then_sines():
    got = timestep_embedding(torch.tensor([0.0, 500.0]), 8)
    rates = [10_000 ** (-i / 4) for i in range(4)]
    want = [[math.cos(500 * rate) for rate in rates] + [math.sin(500 * rate) for rate in rates]]
    torch.testing.assert_close(got[1:], torch.tensor(want), rtol=0, atol=1e-4)
    assert got[0].tolist() == [1.0] * 4 + [0.0] * 4


def test_times_in_half_precision_are_embedded_in_single():
    assert timestep_embedding(torch.ones(2, dtype=torch.bfloat16), 8).dtype == torch.float32

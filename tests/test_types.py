"""Conditions: rows are joined, repeated and moved, and never lost."""

import pytest
import torch

from limner.types import Cond


def cond(rows: int, first: int = 0) -> Cond:
    tokens = torch.arange(first, first + rows).float()[:, None, None].expand(rows, 2, 3)
    return Cond(tokens, pooled=tokens[:, 0], style=torch.arange(first, first + rows))


def test_repeat_keeps_the_copies_of_a_row_together():
    twice = cond(2).repeat(2)
    assert twice.tokens[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert twice.style is not None and twice.style.tolist() == [0, 0, 1, 1]
    assert twice.mask is None


def test_cat_puts_the_rows_of_the_other_below():
    both = cond(2).cat(cond(1, first=5))
    assert len(both) == 3
    assert both.style is not None and both.style.tolist() == [0, 1, 5]


def test_conditions_with_different_fields_are_not_joined():
    with pytest.raises(ValueError, match="different fields"):
        cond(1).cat(Cond(torch.zeros(1, 2, 3)))


def test_to_leaves_what_is_not_there_alone():
    moved = cond(1).to(torch.device("cpu"))
    assert moved.mask is None and moved.pooled is not None

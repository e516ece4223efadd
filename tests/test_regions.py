"""Regions in words: where they are, what they are, and what is no region."""

import pytest
import torch

from limner.errors import BadInput, UnknownName
from limner.regions import parse_box, parse_region, region_mask


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("left:0-0.5", (0, 0, 0.5, 1)),
        ("right:0-0.3", (0.7, 0, 1, 1)),
        ("top:0.2-1", (0, 0.2, 1, 1)),
        ("bottom:0-.25", (0, 0.75, 1, 1)),
        ("left:0-0.5,top:0-0.5", (0, 0, 0.5, 0.5)),
        ("bottom:0-0.5,right:0.5-1", (0, 0.5, 0.5, 1)),
        ("box:0.1,0.2,0.9,1", (0.1, 0.2, 0.9, 1)),
    ],
)
def test_boxes(text, box):
    assert parse_box(text) == pytest.approx(box)


def test_a_region_is_a_box_and_a_prompt():
    assert parse_region(" left:0-0.5,top:0-0.5  a cat, sitting ") == ("left:0-0.5,top:0-0.5", "a cat, sitting")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("left:0-0.5", "has no prompt"),
        ("left:0.5-0.2 a cat", "goes from 0.5 to 0.2; ranges rise"),
        ("left:0-1.5 a cat", "goes from 0 to 1.5"),
        ("left:0-half a cat", "'0-half' where 2 numbers"),
        ("left:-0.2-0.5 a cat", "2 numbers from 0 to 1"),
        ("left:0-0.5-1 a cat", "where 2 numbers"),
        ("left:0-0.5,right:0-0.2 a cat", "says twice how wide"),
        ("top:0-0.5,top:0-0.2 a cat", "says twice how high"),
        ("box:0,0,1 a cat", "where 4 numbers"),
        ("box:0.5,0,0.1,1 a cat", "goes from 0.5 to 0.1"),
        ("a cat", "is no range of a side"),
        ("left:0-0.5,  a cat", "is no range of a side"),
        ("", "is no range of a side"),
        ("left:nan-1 a cat", "numbers from 0 to 1"),
    ],
)
def test_what_is_no_region_is_refused(text, said):
    with pytest.raises(BadInput, match=said):
        parse_region(text)


def test_the_nearest_side_is_named():
    with pytest.raises(UnknownName, match="'lefft': did you mean left"):
        parse_region("lefft:0-0.5 a cat")


def test_a_mask_takes_whole_cells_and_shares_of_those_that_the_border_crosses():
    assert region_mask("left:0-0.5", 2, 4)[0, 0].tolist() == [[1, 1, 0, 0]] * 2
    assert region_mask("left:0.125-0.625", 1, 4)[0, 0, 0].tolist() == pytest.approx([0.5, 1, 0.5, 0])
    assert region_mask((0, 0.5, 1, 1), 2, 2)[0, 0].tolist() == [[0, 0], [1, 1]]
    assert float(region_mask("box:0.4,0,0.5,1", 1, 4).sum()) == pytest.approx(0.4)


def test_halves_make_a_whole_however_soft_their_border():
    for soft in (0.0, 0.1, 0.5):
        left, right = region_mask("left:0-0.5", 3, 20, soft), region_mask("right:0-0.5", 3, 20, soft)
        torch.testing.assert_close(left + right, torch.ones(1, 1, 3, 20))
        assert float(left[0, 0, 0, 0]) == 1  # the picture's own border is sharp
    assert 0 < float(region_mask("left:0-0.5", 1, 20, 0.5)[0, 0, 0, 8]) < 1

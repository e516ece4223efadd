"""Blocks and resampling."""

import pytest
import torch

from limner.nn.conv import Down, ResBlock, Up


def test_a_new_block_is_the_identity():
    x = torch.randn(2, 8, 5, 7)
    assert torch.equal(ResBlock(8)(x), x)


@pytest.mark.parametrize(("inside", "outside"), [(4, 4), (4, 8), (4, 16), (8, 2), (6, 12)])
@pytest.mark.parametrize("size", [(4, 4), (6, 10), (2, 2)])
def test_down_halves_and_up_doubles(inside, outside, size):
    x = torch.randn(2, inside, *size)
    assert Down(inside, outside)(x).shape == (2, outside, size[0] // 2, size[1] // 2)
    assert Up(inside, outside)(x).shape == (2, outside, size[0] * 2, size[1] * 2)


@pytest.mark.parametrize(("inside", "outside"), [(4, 3), (2, 16), (6, 16)])
def test_channels_that_cannot_be_averaged_evenly_are_refused(inside, outside):
    with pytest.raises(ValueError, match=f"{inside} x 4 channels cannot be averaged evenly into {outside}"):
        Down(inside, outside)


@pytest.mark.parametrize("kind", [Down, Up])
def test_a_flat_picture_passes_the_shortcut_unchanged(kind):
    layer = kind(8, 8)
    torch.nn.init.zeros_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    out = layer(torch.full((1, 8, 4, 4), 3.0))
    assert torch.equal(out, torch.full_like(out, 3.0))


def test_the_shortcut_of_up_takes_any_width():
    assert Up(112, 64)(torch.randn(1, 112, 2, 2)).shape == (1, 64, 4, 4)  # 256 is no multiple of 112

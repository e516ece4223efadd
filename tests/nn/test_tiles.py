"""Windows: they cover, they overlap, they go around, and what is joined is the whole."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from limner.errors import BadInput
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.nn.tiles import Window, in_tiles, rise, windows

SEES = {"encode": 84, "decode": 13}  # pixels, latents: how far the standard mini autoencoder sees to one side


@pytest.fixture
def model() -> MiniAutoencoder:
    torch.manual_seed(0)
    widths = {"encoder": (8, 8, 8), "decoder": (8, 8, 8)}  # the depth is the standard one's
    made = MiniAutoencoder(MiniAutoencoderConfig(channels=4, **widths)).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter += torch.randn_like(parameter) * 0.1  # blocks start as the identity
    return made.double()


@pytest.mark.parametrize(
    ("h", "w", "side", "overlap"), [(16, 16, 16, 4), (16, 40, 16, 4), (33, 50, 16, 7), (9, 70, 16, 15)]
)
def test_windows_of_a_plane_cover_it_evenly_and_end_flush(h, w, side, overlap):
    found = windows(h, w, side, overlap)
    covered = torch.zeros(h, w)
    for place in found:
        assert 0 <= place.top <= h - place.h and 0 <= place.left <= w - place.w
        place.add(torch.ones(place.h, place.w), covered)
    assert covered.min() >= 1
    for start, size, length in (("left", "w", w), ("top", "h", h)):
        starts = sorted({getattr(place, start) for place in found})
        steps = [b - a for a, b in pairwise(starts)]
        assert starts[-1] + getattr(found[0], size) == length
        assert not steps or (max(steps) <= side - overlap and max(steps) - min(steps) <= 1)


@pytest.mark.parametrize("length", [10, 13, 16, 17, 40, 65])
def test_windows_of_a_torus_overlap_across_the_border_too(length):
    found = windows(length, length, 16, 4, wrap_x=True, wrap_y=False)
    starts = sorted({place.left for place in found})
    steps = [b - a for a, b in zip(starts, [*starts[1:], starts[0] + length], strict=True)]
    assert all(place.w - max(steps) >= 4 for place in found)
    assert all(place.top + place.h <= length for place in found)  # y does not go around


def test_a_small_torus_has_one_window_that_overlaps_itself():
    assert windows(10, 10, 16, 4, wrap_x=True) == [Window(0, 0, 10, 14)]


def test_cut_and_add_go_around():
    x = torch.arange(12.0).view(1, 3, 4)
    assert torch.equal(Window(2, 3, 2, 3).cut(x), torch.tensor([[[11.0, 8, 9], [3, 0, 1]]]))
    whole = torch.zeros(1, 3, 4)
    Window(0, 0, 3, 6).add(torch.ones(1, 3, 6), whole)  # wider than the ring: its ends fall on the same cells
    assert torch.equal(whole[0, 0], torch.tensor([2.0, 2, 1, 1]))


def test_a_rise_is_a_raised_cosine_after_its_margin():
    assert torch.allclose(rise(4, 4), torch.sin(torch.pi / 8 * torch.tensor([0.5, 1.5, 2.5, 3.5]).double()) ** 2)
    assert rise(8, 2, margin=3)[:3].max() == 1e-12
    assert torch.equal(rise(8, 2, margin=3)[5:], torch.ones(3).double())


@pytest.mark.parametrize("wrap", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("factor", [1, 8, 1 / 8])
def test_tiles_of_a_pointwise_function_are_the_whole(factor, wrap):
    def function(x):
        if factor < 1:
            return nn.functional.avg_pool2d(x, 8)
        return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3) * 2

    x = torch.randn(2, 3, 72, 104)
    got = in_tiles(function, x, 32, 8, factor, wrap)
    torch.testing.assert_close(got, function(x), rtol=0, atol=1e-6)


def test_an_overlap_of_what_the_decoder_sees_gives_the_whole(model):
    z = torch.randn(1, 4, 8, 90, dtype=torch.float64)
    whole = model.decode_raw(z)
    for overlap, most in ((3 * SEES["decode"], 1e-10), (2 * SEES["decode"], 1e-5), (16, 2 / 255)):
        assert float((in_tiles(model.decode_raw, z, 44, overlap, 8) - whole).abs().max()) < most


def test_an_overlap_of_what_the_encoder_sees_gives_the_whole(model):
    picture = torch.rand(1, 4, 16, 480, dtype=torch.float64)
    got = in_tiles(model.encode, picture, 256, 2 * SEES["encode"] + 8, 1 / 8)
    torch.testing.assert_close(got, model.encode(picture), rtol=0, atol=1e-5)


def test_no_tile_is_larger_than_asked_and_a_small_picture_is_taken_whole():
    seen = []

    def function(x):
        seen.append(x.shape[-2:])
        return x

    in_tiles(function, torch.zeros(1, 1, 40, 70), 32, 8)
    assert set(seen) == {(32, 32)}
    seen.clear()
    in_tiles(function, torch.zeros(1, 1, 32, 20), 32, 8)
    assert seen == [(32, 20)]


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(BadInput, match="cannot overlap by 16; the overlap is from 0 to 15"):
        windows(64, 64, 16, 16)
    with pytest.raises(BadInput, match="sides must be its multiples"):
        in_tiles(lambda x: x, torch.zeros(1, 1, 60, 64), 32, 8, 1 / 8)

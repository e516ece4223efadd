import pytest
import torch

from limner.palette import HUES, dominant, recolour, shares, to_hsv, to_rgb


def flat(*rgb: float) -> torch.Tensor:
    return torch.cat([torch.tensor(rgb)[:, None, None].expand(3, 8, 8), torch.ones(1, 8, 8)])


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0.9, 0.1, 0.1), "red"), ((1.0, 0.6, 0.1), "orange"), ((1.0, 0.85, 0.2), "yellow"), ((0.2, 0.7, 0.3), "green"),
        ((0.2, 0.45, 0.95), "blue"), ((0.5, 0.2, 0.8), "purple"), ((1.0, 0.5, 0.75), "pink"),
        ((0.45, 0.28, 0.12), "brown"),
        ((0.05, 0.05, 0.06), "black"), ((0.97, 0.97, 0.97), "white"), ((0.5, 0.5, 0.52), "gray"),
    ],
)  # fmt: skip
def test_plain_colours_have_their_names(rgb, name):
    assert dominant(flat(*rgb)) == name


def test_hsv_is_its_own_way_back():
    rgb = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(to_rgb(to_hsv(rgb)), rgb, atol=1e-5)


@pytest.mark.parametrize("colour", [name for name in HUES if name != "red"])
def test_a_recoloured_red_is_of_that_colour(colour):
    turned = recolour(flat(0.9, 0.15, 0.1), colour)
    assert turned is not None and dominant(turned) == colour


def test_grey_things_have_no_hue_to_turn():
    assert recolour(flat(0.5, 0.5, 0.5), "blue") is None


def test_an_empty_picture_has_no_colours():
    assert shares(torch.zeros(4, 8, 8)) == {} and dominant(torch.zeros(4, 8, 8)) is None


def test_colour_under_clear_pixels_does_not_count():
    picture = flat(0.9, 0.1, 0.1)
    picture[:, :, 3:] = 0
    assert shares(picture) == {"red": 1.0}

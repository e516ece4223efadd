"""The eye: unit vectors of pictures and texts in one space."""

from dataclasses import replace

import pytest
import torch

from limner.models.eye import Eye, EyeConfig

TINY = EyeConfig(pixels=32, widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1), text=12, space=10, styles=3)


@pytest.fixture
def eye() -> Eye:
    torch.manual_seed(0)
    return Eye(TINY).eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (128, 128), (64, 96), (16, 40)])
def test_pictures_of_every_size_become_unit_vectors(eye, height, width):
    seen = eye.see(torch.rand(3, 4, height, width))
    assert seen.shape == (3, TINY.space)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(3))


def test_texts_become_unit_vectors_of_the_same_space(eye):
    read = eye.read(torch.randn(5, TINY.text) * 30)
    assert read.shape == (5, TINY.space)
    torch.testing.assert_close(read.norm(dim=1), torch.ones(5))


def test_the_scale_of_a_text_does_not_count(eye):
    pooled = torch.randn(2, TINY.text)
    torch.testing.assert_close(eye.read(pooled * 7), eye.read(pooled), rtol=0, atol=1e-4)


def test_styles_are_read_from_the_features(eye):
    assert eye.style_out(eye.features(torch.rand(2, 4, 32, 32))).shape == (2, TINY.styles)


@pytest.mark.parametrize(("widths", "pixels"), [((8,), 16), ((8, 8), 32), ((8, 8, 8, 8, 8), 64)])
def test_an_eye_may_have_any_number_of_widths(widths, pixels):
    config = replace(TINY, widths=widths, blocks=(1,) * len(widths), pixels=pixels)
    assert Eye(config).see(torch.rand(1, 4, pixels, pixels)).shape == (1, TINY.space)


def test_an_empty_picture_is_seen_without_a_division_by_zero(eye):
    assert eye.see(torch.zeros(1, 4, 32, 32)).isfinite().all()


def test_a_picture_does_not_depend_on_who_is_beside_it(eye):
    pictures = torch.rand(3, 4, 32, 32)
    torch.testing.assert_close(eye.see(pictures[1:2])[0], eye.see(pictures)[1], rtol=0, atol=1e-5)

import random

import pytest
import torch

from limner.palette import dominant
from limner.train import compose
from limner.train.data import Words

THING = Words("k", "apple", (), "noto", "apple")


@pytest.fixture
def disc() -> torch.Tensor:
    """A red disc on a clear ground: 4 64 64, premultiplied."""
    at = torch.linspace(-1, 1, 64)
    inside = (at[:, None] ** 2 + at**2 < 0.5).float()
    return torch.stack([inside * 0.9, inside * 0.1, inside * 0.1, inside])


def test_every_composition_stays_premultiplied(disc):
    draw = random.Random(1)
    made = [
        compose.mirrored(disc, THING),
        compose.recoloured(disc, THING, draw),
        compose.grounded(disc, draw),
        compose.at_night(disc, draw),
        compose.counted(disc, draw),
        compose.paired(disc, disc, "dog"),
        compose.hatted(disc, disc, "top hat"),
    ]
    for picture, _ in filter(None, made):
        assert picture.shape == disc.shape
        assert picture.min() >= 0 and picture[3].max() <= 1 + 1e-6
        assert (picture[:3] <= picture[3:] + 1e-5).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_recoloured_thing_has_the_colour_that_the_scene_says(disc, seed):
    made = compose.recoloured(disc, THING, random.Random(seed))
    assert made is not None
    assert dominant(made[0]) == made[1].colour != "red"


def test_a_count_puts_that_many_things(disc):
    picture, scene = compose.counted(disc, random.Random(0))
    assert scene.count in (2, 3, 4)
    assert picture[3].sum() == pytest.approx(scene.count * compose.shrunk(disc, 0.5)[3].sum().item(), rel=0.2)


@pytest.mark.parametrize("name", ["left arrow", "A button (blood type)", "three o’clock", "flag: Peru"])
def test_signs_and_directions_are_not_mirrored(disc, name):
    assert compose.mirrored(disc, Words("k", name)) is None


def test_people_keep_their_colours(disc):
    assert compose.recoloured(disc, Words("k", "woman: dark skin tone", (), "noto"), random.Random(0)) is None


def test_only_heads_wear_hats():
    assert compose.can_wear(Words("k", "cat face"))
    assert not compose.can_wear(Words("k", "apple"))

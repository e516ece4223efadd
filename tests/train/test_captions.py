import random

import pytest

from limner.train.captions import Scene, caption, plural, thing
from limner.train.data import Words

APPLE = Words("k", "red apple", ("fruit", "food"), "noto", "apple")


def many(scene: Scene, words: Words = APPLE, count: int = 400) -> list[str]:
    draw = random.Random(0)
    return [caption(words, scene, draw) for _ in range(count)]


def test_a_tenth_of_the_captions_is_empty():
    assert 0.05 < many(Scene(), count=2000).count("") / 2000 < 0.15


def test_a_recoloured_thing_is_always_told_its_new_colour_and_never_its_old_one():
    told = [text for text in many(Scene("recolour", colour="blue")) if text]
    assert all("blue apple" in text and "red" not in text.split() for text in told)


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (Scene("ground", ground="pink"), "on a pink background"),
        (Scene("night"), "at night"),
        (Scene("count", count=3), "three red apples"),
        (Scene("pair", other="dog"), "dog"),
    ],
)
def test_what_was_composed_is_said(scene, words):
    assert all(words in text for text in many(scene) if text)


def test_skin_tones_are_not_called_colours():
    assert thing("woman: dark skin tone", "brown", random.Random(0), always=True) == "woman: dark skin tone"


@pytest.mark.parametrize(("one", "more"), [("cat", "cats"), ("box", "boxes"), ("cherry", "cherries"), ("key", "keys")])
def test_plurals(one, more):
    assert plural(one) == more


def test_the_same_draws_give_the_same_captions():
    assert many(Scene(colour="red")) == many(Scene(colour="red"))

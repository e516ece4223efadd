from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.errors import BadInput
from limner.pipeline import Model, load
from limner.place import find_place
from limner.tasks.describe import Description, describe, keywords


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(str(tiny_folder), find_place("cpu", torch.float32))


def half_red() -> torch.Tensor:
    picture = torch.zeros(4, 64, 64)
    picture[0, :, :32] = picture[3, :, :32] = 1
    return picture


def test_a_description_has_names_styles_colours_and_how_much_is_clear(model: Model):
    found = describe(model, half_red(), top=3)
    assert len(found.names) == 3 and {name for name, _ in found.names} <= set(model.names)
    scores = [score for _, score in found.names]
    assert scores == sorted(scores, reverse=True)
    assert len(found.styles) == 3 and found.styles[0][1] >= found.styles[1][1]
    assert found.colours == [("red", 1.0)]
    assert found.clear == 0.5
    assert 0 <= len(found.keywords) <= 8 and all(0.1 <= share <= 1 for _, share in found.keywords)


def test_scores_are_the_eyes(model: Model):
    picture = half_red()
    found = dict(describe(model, picture, top=99).names)
    want = dict(zip(model.names, model.likeness(picture[None], model.names)[0].tolist(), strict=True))
    assert found == pytest.approx(want)


def test_an_empty_picture_is_called_one(model: Model):
    found = describe(model, torch.zeros(4, 64, 64))
    assert found.sentence() == "an empty picture" and found.clear == 1


def test_doubt_is_said():
    sure = Description([("cat", 0.6)], [("noto", 0.9)], [], 0.0, True, [], True)
    assert sure.sentence() == "cat, noto"
    assert replace(sure, sure=False).sentence() == "not sure; perhaps cat, noto"
    assert replace(sure, style_sure=False).sentence() == "cat, perhaps noto"


def test_keywords_are_what_likely_names_have_in_common():
    names = ["full moon", "new moon face", "o’clock", "blood moons", "moss"]
    found = keywords(names, [0.3, 0.2, 0.05, 0.05, 0.4], least=0.15)
    assert [word for word, _ in found] == ["moon", "moss", "full", "face", "new"]
    assert [share for _, share in found] == pytest.approx([0.55, 0.4, 0.3, 0.2, 0.2])


def test_a_word_counts_once_a_name_and_small_ones_do_not():
    assert keywords(["the cat and the cats", "a 7"], [0.6, 0.4]) == [("cat", 0.6)]
    assert keywords(["cat", "dog"], [0.05, 0.05]) == []


def test_a_model_without_names_cannot_describe(model: Model):
    with pytest.raises(BadInput, match=r"no names\.txt"):
        describe(replace(model, names=()), half_red())

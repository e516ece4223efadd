from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.errors import BadInput
from limner.pipeline import Model, load
from limner.place import find_place
from limner.tasks.describe import Description, describe


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


def test_scores_are_the_eyes(model: Model):
    picture = half_red()
    found = dict(describe(model, picture, top=99).names)
    want = dict(zip(model.names, model.likeness(picture[None], model.names)[0].tolist(), strict=True))
    assert found == pytest.approx(want)


def test_an_empty_picture_is_called_one(model: Model):
    found = describe(model, torch.zeros(4, 64, 64))
    assert found.sentence() == "an empty picture" and found.clear == 1


def test_doubt_is_said():
    sure = Description([("cat", 0.6)], [("noto", 0.9)], [], 0.0, True)
    assert sure.sentence() == "cat, noto"
    assert replace(sure, sure=False).sentence() == "not sure; perhaps cat, noto"


def test_a_model_without_names_cannot_describe(model: Model):
    with pytest.raises(BadInput, match=r"no names\.txt"):
        describe(replace(model, names=()), half_red())

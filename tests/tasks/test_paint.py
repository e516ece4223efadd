import pytest
import torch

from limner.errors import BadInput, UnknownName
from limner.pipeline import load
from limner.place import find_place
from limner.recipe import Recipe
from limner.tasks.describe import describe
from limner.tasks.paint import begin, paint, painting, run
from limner.types import Step


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(str(tiny_folder), find_place("cpu", torch.float32))


RECIPE = Recipe(prompt="a cat", steps=3, seed=5)


def test_a_recipe_is_the_same_picture_again(model):
    assert torch.equal(paint(model, RECIPE), paint(model, RECIPE))


def test_picture_i_of_a_batch_is_that_of_its_seed(model):
    together = paint(model, RECIPE, 3)
    for i in range(3):
        assert (together[i] - paint(model, RECIPE.but(seed=5 + i))[0]).abs().max() <= 1 / 255


def test_steps_are_yielded_one_by_one(model):
    steps = list(run(model, RECIPE))
    assert [step.i for step in steps] == [0, 1, 2] and steps[-1].t == 0


def test_more_pictures_than_a_batch_holds_come_in_batches(model):
    events = list(painting(model, RECIPE.but(steps=1), 10))
    assert [len(e) for e in events if isinstance(e, list)] == [8, 2]
    assert sum(isinstance(e, Step) for e in events) == 2


def test_best_of_keeps_what_the_eye_likes_best(model):
    tried = paint(model, RECIPE, 4)
    kept = paint(model, RECIPE.but(best_of=4))
    scores = model.likeness(tried, ["a cat"])[:, 0]
    assert (kept[0] - tried[int(scores.argmax())]).abs().max() <= 1 / 255


def test_the_prompt_the_style_and_the_negative_count(model):
    pictures = [
        paint(model, RECIPE.but(**change))
        for change in ({}, {"prompt": "a dog"}, {"style": "flat"}, {"negative": "dog"})
    ]
    for i, one in enumerate(pictures):
        assert all(not torch.equal(one, other) for other in pictures[i + 1 :])


def test_an_empty_prompt_paints(model):
    assert torch.isfinite(paint(model, Recipe(steps=2))).all()


def test_what_a_model_cannot_do_is_refused_before_it_begins(model):
    with pytest.raises(UnknownName, match="did you mean euler"):
        begin(model, prompt="a cat", sampler="eulr")
    with pytest.raises(BadInput, match="nearest is 96x128"):
        begin(model, prompt="a cat", width=100)
    with pytest.raises(BadInput, match="prompt is empty"):
        begin(model, best_of=4)


def test_names_of_the_field_are_brought_to_one_spelling(model):
    assert begin(model, sampler="DPM++ 2M").sampler == "dpmpp_2m"


def test_describe_says_names_style_and_colours(model):
    picture = torch.zeros(4, 128, 128)
    picture[0, 30:90, 30:90] = picture[3, 30:90, 30:90] = 1
    found = describe(model, picture, top=3)
    assert len(found.names) == 3 and found.colours == [("red", 1.0)]
    assert found.clear == pytest.approx(1 - 60 * 60 / 128**2)
    assert [score for _, score in found.names] == sorted((score for _, score in found.names), reverse=True)


def test_an_empty_picture_is_described_as_one(model):
    assert describe(model, torch.zeros(4, 128, 128)).sentence() == "an empty picture"

from collections.abc import Callable

import pytest
import torch

from limner.errors import BadInput
from limner.pipeline import Model
from limner.tasks.guidance import guidance
from limner.tasks.run import begin, paint, painting, walks
from limner.tasks.task import Beside

SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 3}


@pytest.mark.parametrize("family", ["mini", "sdxl"])
def test_recipes_of_other_words_walk_together_and_are_what_they_are_alone(family: str, model, painter):
    it = model if family == "mini" else painter(family)
    words = [("a cat", ""), ("a red house, small", "blue"), ("a", "a dog in the sun"), ("a cat", "")]
    recipes = [begin(it, **SMALL | {"prompt": p, "negative": n, "seed": i}) for i, (p, n) in enumerate(words)]
    assert len(walks(recipes)) == 1
    together = [one for event in painting(it, recipes) if isinstance(event, list) for one in event]
    for recipe, one in zip(recipes, together, strict=True):
        assert one.recipe == recipe
        assert torch.allclose(one.picture, paint(it, recipe)[0], atol=1 / 255)


def test_recipes_that_differ_otherwise_walk_apart(model: Model):
    recipe = begin(model, **SMALL)
    others = [recipe.but(**change) for change in ({"steps": 4}, {"cfg_scale": 2.0}, {"width": 96}, {"prompt": ""})]
    assert [len(walk.recipes) for walk in walks([recipe, *others])] == [1] * 5
    large = [begin(model, **SMALL | {"width": 512, "height": 512, "seed": i}) for i in range(9)]
    assert [len(walk.recipes) for walk in walks(large)] == [8, 1]


def test_a_prompt_that_changes_on_its_way_walks_with_its_like_alone(painter: Callable[[str], Model]):
    it = painter("sd15")
    recipes = [begin(it, **SMALL | {"prompt": p, "seed": i}) for i, p in enumerate(["[a cat:a dog:0.5]", "a cat"])]
    assert len(walks(recipes)) == 2
    assert len(walks([recipes[0], recipes[0].but(seed=9)])) == 1


def test_a_region_is_painted_by_its_own_words(model: Model):
    plain = paint(model, begin(model, **SMALL))[0]
    regions = [{"box": "left:0-0.5", "prompt": "a dog", "negative": "red"}]
    split = paint(model, begin(model, **SMALL, regions=regions))[0]
    assert (split - plain)[:, :, :32].abs().mean() > 1.5 * (split - plain)[:, :, 32:].abs().mean()


def test_a_blend_of_0_and_1_is_either_prompt(model: Model):
    plain, other = begin(model, **SMALL), begin(model, **SMALL | {"prompt": "a dog"})
    assert torch.equal(paint(model, plain.but(toward="a dog", blend=0)), paint(model, plain))
    assert torch.allclose(paint(model, plain.but(toward="a dog", blend=1)), paint(model, other), atol=1 / 255)


@pytest.mark.parametrize("family", ["mini", "sd15", "sd3"])
def test_a_texture_joins_with_itself(family: str, model: Model, painter):
    """What is rolled before it is decoded comes out rolled: no border is left."""
    it = model if family == "mini" else painter(family)
    wishes = SMALL | {"task": "tile", "width": 64, "height": 64}
    events = list(painting(it, begin(it, **wishes)))
    assert events[-1][0].picture.shape == (4, 64, 64)


def test_on_a_torus_that_turns_parts_of_a_step_are_computed_and_whole_answers_carried_where_they_lie(
    model: Model, monkeypatch
):
    wishes = SMALL | {"task": "tile", "steps": 8, "late": 0.7}
    exact = paint(model, begin(model, **wishes))
    assert torch.equal(paint(model, begin(model, **wishes, deep_every=2, guide_every=2)), exact)
    monkeypatch.setattr("limner.tasks.guidance._guided", lambda *_: lambda x, _: x)
    stations = [1 - i / 8 for i in range(9)]
    carrying = guidance(model, [begin(model, **wishes, ask_every=3)], stations, (8, 8, 8), Beside())
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert all(torch.allclose(carrying(x, t), x) for t in stations)


@pytest.mark.parametrize(("window", "overlap"), [(60, 0), (64, 10), (64, 64)])
def test_tiles_that_do_not_fit_the_grid_are_refused(model: Model, window: int, overlap: int):
    with pytest.raises(BadInput, match="takes multiples of 16"):
        paint(model, begin(model, **SMALL, window=window, overlap=overlap))

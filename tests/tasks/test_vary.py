import pytest
import torch

from limner.errors import BadInput
from limner.pipeline import Model
from limner.tasks.run import begin, paint
from limner.tasks.vary import morphed, variations

SMALL = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 3}


def test_distance_grows_with_the_amount(model: Model):
    recipe = begin(model, **SMALL)
    itself = paint(model, recipe)[0]
    far = []
    for amount in (0.0, 0.1, 0.3, 1.0):
        found = [paint(model, each)[0] for each in variations(recipe, amount, 3, 50)]
        far.append(float(torch.stack([(one - itself).abs().mean() for one in found]).mean()))
    assert far[0] == 0 and far == sorted(far) and far[1] < 0.7 * far[3]


def test_at_1_a_variation_is_what_its_seed_paints(model: Model):
    recipe = begin(model, **SMALL)
    (one,) = variations(recipe, 1.0, 1, 50)
    assert torch.allclose(paint(model, one), paint(model, recipe.but(seed=50)), atol=1 / 255)


@pytest.mark.parametrize(("toward", "seed"), [("a dog", None), (None, 9), ("a dog", 9)])
def test_a_morph_begins_and_ends_where_it_was_told(model: Model, toward: str | None, seed: int | None):
    recipe = begin(model, **SMALL)
    frames = morphed(recipe, toward, seed, 5)
    assert frames[0].id == recipe.but(toward=frames[0].toward, subseed=frames[0].subseed).id
    end = recipe.but(prompt=toward or recipe.prompt, seed=seed if seed is not None else recipe.seed)
    pictures = [paint(model, frame)[0] for frame in frames]
    assert torch.equal(pictures[0], paint(model, recipe)[0])
    assert torch.equal(pictures[-1], paint(model, end)[0])
    steps = [float((a - b).abs().mean()) for a, b in zip(pictures[1:], pictures, strict=False)]
    assert min(steps) > 0


def test_a_morph_of_one_frame_is_refused(model: Model):
    with pytest.raises(BadInput, match="2 frames or more"):
        morphed(begin(model, **SMALL), "a dog", None, 1)


def test_a_morph_to_where_it_begins_is_refused(model: Model):
    with pytest.raises(BadInput, match="lead nowhere"):
        morphed(begin(model, **SMALL), "a cat", 3, 4)

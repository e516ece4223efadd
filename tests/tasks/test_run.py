from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limner.diffusion.samplers import SAMPLERS
from limner.errors import BadInput, LimnerError, UnknownName
from limner.pipeline import Model
from limner.tasks.run import BATCH, Painted, begin, paint, painting, run, walks
from limner.types import Step

NEAR = 1 / 255


def small(model: Model, **wishes: object):
    return begin(model, **{"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 7} | wishes)


def test_what_is_not_said_the_family_says(model: Model):
    recipe, ours = begin(model, prompt="a cat"), model.family.defaults
    assert (recipe.width, recipe.height) == ours.size
    assert (recipe.steps, recipe.sampler, recipe.schedule) == (ours.steps, ours.sampler, ours.schedule)
    assert (recipe.cfg_scale, recipe.cfg_interval) == (ours.cfg_scale, ours.cfg_interval)
    assert [begin(model, effort=effort).late for effort in ("exact", "balanced", "fast")] == [ours.late] * 3
    assert begin(model, effort="fast", late=0.6).late == 0.6


def test_names_are_brought_to_one_spelling(model: Model):
    recipe = begin(model, sampler="DPM++ 2M SDE", schedule="SGM Uniform")
    assert (recipe.sampler, recipe.schedule) == ("dpmpp_2m_sde", "sgm_uniform")
    assert recipe.id == begin(model, sampler="dpmpp_2m_sde", schedule="sgm_uniform").id


@pytest.mark.parametrize(
    ("wishes", "kind", "said"),
    [
        ({"sampler": "eulr"}, UnknownName, "no sampler is called 'eulr': did you mean euler"),
        ({"schedule": "kerras"}, UnknownName, "no schedule is called 'kerras': did you mean karras"),
        ({"style": "blobs"}, UnknownName, "no style is called 'blobs': did you mean blob"),
        ({"width": 100}, BadInput, "the nearest is 96x128"),
        ({"best_of": 2, "prompt": ""}, BadInput, "the prompt is empty"),
        ({"steps": 0}, BadInput, "steps should be"),
    ],
)
def test_what_cannot_be_painted_is_refused_at_once(model: Model, wishes: dict, kind: type, said: str):
    with pytest.raises(kind, match=said):
        begin(model, **{"prompt": "a cat"} | wishes)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_is_its_pictures_alone(model: Model, sampler: str):
    recipe = small(model, sampler=sampler)
    together = paint(model, recipe, 3)
    for i in range(3):
        assert torch.allclose(together[i], paint(model, recipe.but(seed=7 + i))[0], atol=NEAR)
    assert not torch.allclose(together[0], together[1], atol=20 * NEAR)


def test_the_same_recipe_is_the_same_picture(model: Model):
    assert torch.equal(paint(model, small(model)), paint(model, small(model)))


def test_many_pictures_go_in_batches_and_in_the_order_of_their_seeds(model: Model):
    recipe = small(model, steps=1)
    events = list(painting(model, recipe, BATCH + 3))
    finished = [event for event in events if isinstance(event, list)]
    assert [len(batch) for batch in finished] == [BATCH, 3]
    assert [one.recipe.seed for batch in finished for one in batch] == list(range(7, 7 + BATCH + 3))
    assert len([event for event in events if isinstance(event, Step)]) == 2 * recipe.steps


def test_a_later_picture_is_repeated_by_its_own_recipe(model: Model):
    last = [event for event in painting(model, small(model), BATCH + 2) if isinstance(event, list)][-1][-1]
    assert last.recipe.seed == 7 + BATCH + 1
    assert torch.allclose(paint(model, last.recipe)[0], last.picture, atol=NEAR)


def test_best_of_keeps_what_the_eye_likes_and_repeats(model: Model):
    recipe = small(model, best_of=5, best_after=1)
    painted = [one for event in painting(model, recipe, 2) if isinstance(event, list) for one in event]
    assert [one.recipe.seed for one in painted] == [7, 12]
    for one in painted:
        tried = paint(model, one.recipe.but(best_of=1), 5)
        likes = model.likeness(tried, [recipe.prompt])[:, 0]
        assert one.seed - one.recipe.seed == int(likes.argmax())
        assert torch.allclose(one.picture, tried[likes.argmax()], atol=NEAR)
        assert torch.allclose(paint(model, one.recipe)[0], one.picture, atol=NEAR)


@pytest.mark.parametrize("count", [1, 3])
def test_best_of_finishes_the_seed_whose_early_steps_promise_most(model: Model, count: int):
    recipe = small(model, best_of=5)
    assert (recipe.best_after, recipe.glance) == (0.33, 1)
    events = list(painting(model, recipe, count))
    painted = [one for event in events if isinstance(event, list) for one in event]
    assert [one.recipe.seed for one in painted] == [7, 12, 17][:count]
    for one in painted:
        alone = [one.recipe.but(best_of=1, seed=one.recipe.seed + i) for i in range(5)]
        early = torch.cat([model.to_image(next(run(model, each)).x0) for each in alone])
        assert one.seed == alone[int(model.likeness(early, [recipe.prompt])[:, 0].argmax())].seed
        assert torch.allclose(one.picture, paint(model, recipe.but(best_of=1, seed=one.seed))[0], atol=NEAR)
        assert torch.allclose(paint(model, one.recipe)[0], one.picture, atol=NEAR)
    steps = sum(isinstance(event, Step) for event in events)
    assert steps == sum(walk.steps for walk in walks([one.recipe for one in painted])) == {1: 4, 3: 5}[count]


def test_the_second_walk_is_for_the_seed_that_was_kept(model: Model):
    recipe = small(model, best_of=3, hires=2.0, best_after=0.9)
    (one,) = [one for event in painting(model, recipe) if isinstance(event, list) for one in event]
    first = paint(model, recipe.but(best_of=1, hires=1.0), 3)
    assert one.seed == 7 + int(model.likeness(first, [recipe.prompt])[:, 0].argmax())
    assert torch.allclose(one.picture, paint(model, recipe.but(best_of=1, seed=one.seed))[0], atol=NEAR)


def test_an_empty_prompt_paints_without_words_and_without_guidance(model: Model):
    recipe = small(model, prompt="")
    assert torch.equal(paint(model, recipe), paint(model, recipe.but(cfg_scale=1)))


def test_words_style_and_what_should_not_be_there_count(model: Model):
    plain = paint(model, small(model))
    changes = {"prompt": "a dog", "style": "noto", "negative": "red", "cfg_scale": 1.0, "cfg_rescale": 0.7}
    for name, value in changes.items():
        assert not torch.equal(paint(model, small(model, **{name: value})), plain), name


def test_a_walk_can_be_looked_at_and_left(model: Model):
    walk = run(model, small(model))
    step = next(walk)
    assert (step.i, step.n) == (0, 3)
    assert model.to_image(step.x0).shape == (1, 4, 64, 64)


def test_a_picture_finished_is_whole(model: Model):
    one = next(event[0] for event in painting(model, small(model)) if isinstance(event, list))
    assert isinstance(one, Painted) and one.picture.shape == (4, 64, 64)
    assert one.picture.min() >= 0 and one.picture.max() <= 1


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"fast_decode": True}, "no tiny decoder"),
        ({"window": 70}, "tiles of 70 pixels"),
        ({"regions": [{"box": "lft:0-1", "prompt": "a"}]}, "did you mean left"),
        ({"task": "tile", "width": 1001, "height": 1024}, "multiples of 16, not 1001x1024"),
    ],
)
def test_what_only_a_walk_would_find_out_is_refused_before_it(model: Model, wishes: dict, said: str):
    with pytest.raises(LimnerError, match=said):
        begin(model, **{"prompt": "a cat"} | wishes)


def test_a_region_has_the_style_of_its_own_picture(model: Model):
    recipe = small(model, regions=[{"box": "left:0-0.5", "prompt": "a dog"}])
    both = [recipe.but(style=style) for style in model.family.styles[:2]]
    together = [one.picture for event in painting(model, both) if isinstance(event, list) for one in event]
    for one, picture in zip(both, together, strict=True):
        assert torch.allclose(picture, paint(model, one)[0], atol=NEAR)


def test_a_refiner_ends_the_second_pass_too(model: Model, tiny_folder: Path):
    """With the same weights on both sides of the handover, the picture is that of one model."""
    recipe = small(model, hires=1.5, hires_strength=1.0)
    handed = paint(model, recipe.but(refiner=str(tiny_folder), refine_at=0.4))
    assert torch.allclose(handed, paint(model, recipe), atol=NEAR)


@pytest.mark.parametrize("thrift", [{"effort": "fast"}, {"deep_every": 6, "guide_every": 6}])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral"])
def test_a_thrifty_batch_is_its_pictures_alone(model: Model, sampler: str, thrift: dict):
    recipe = small(model, sampler=sampler, steps=8, **thrift)
    together = paint(model, recipe, 3)
    for i in range(3):
        assert torch.allclose(together[i], paint(model, recipe.but(seed=7 + i))[0], atol=NEAR)


def test_thrift_asks_less_and_stays_near(painter: Callable[[str], Model]):
    asked, model = [], painter("sd15")
    hook = model.nets["denoiser"].middle_block[0].register_forward_hook(lambda *_: asked.append(1))
    wishes = {"steps": 12, "sampler": "dpmpp_2m"}
    exact = paint(model, small(model, **wishes))
    whole = len(asked)
    near = paint(model, small(model, **wishes, effort="balanced"))
    thrifty = len(asked) - whole
    rough = paint(model, small(model, **wishes, deep_every=12, guide_every=12, late=1.0))
    hook.remove()
    assert (whole, thrifty) == (24, 2 * 7)
    assert 0 < (near - exact).square().mean() < (rough - exact).square().mean()


def test_every_step_whole_changes_nothing(model: Model):
    assert torch.equal(paint(model, small(model, late=0.9)), paint(model, small(model)))


def test_thin_attention_is_for_unets(model: Model):
    with pytest.raises(BadInput, match="few_keys thins out the attention of UNets; mini has another denoiser"):
        small(model, few_keys=2)


def test_a_model_that_computes_otherwise_does_not_paint_a_recipe(model: Model):
    other = "bf16" if model.place.precision == "fp32" else "fp32"
    with pytest.raises(BadInput, match=f"the recipe is painted in {other}, and the model is loaded for "):
        small(model, precision=other)
    assert small(model, precision=model.place.precision).precision
    with pytest.raises(BadInput, match="the recipe is painted by openvino, and the model is loaded for torch"):
        small(model, engine="openvino")


def test_perturbed_attention_is_left_out_at_a_scale_of_0_and_works_without_words(model: Model):
    for prompt in ("a cat", ""):
        plain, turned = (small(model, prompt=prompt, pag_scale=scale, pag_interval=(0.0, 1.0)) for scale in (0, 2))
        assert not torch.equal(paint(model, plain), paint(model, turned))
        late = turned.but(pag_interval=(0.0, 0.0))  # no step stands there
        assert torch.equal(paint(model, plain), paint(model, late))

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import BadInput, UnknownName
from limner.recipe import EFFORTS, MAX_SEED, Recipe, renewed

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VERSION_1 = (
    '{"best_of":1,"cfg_interval":[0.1,1.0],"cfg_rescale":0.0,"cfg_scale":5.0,"height":128,"model":"mini",'
    '"negative":"","prompt":"a red apple","sampler":"euler_ancestral","schedule":"uniform","seed":7,"steps":24,'
    '"style":"flat","task":"paint","version":1,"width":128}'
)


@given(prompt=WORDS, negative=WORDS, seed=st.integers(0, MAX_SEED), scale=st.floats(0, 100), best=st.integers(1, 64))
def test_json_and_back_is_the_same_recipe(prompt: str, negative: str, seed: int, scale: float, best: int):
    recipe = Recipe(prompt=prompt, negative=negative, seed=seed, cfg_scale=scale, best_of=best)
    again = Recipe.from_json(recipe.canonical())
    assert again == recipe
    assert again.id == recipe.id


def test_version_1_keeps_loading():
    recipe = Recipe.from_json(VERSION_1)
    assert recipe == Recipe(prompt="a red apple", seed=7, style="flat", ease_in=False)
    assert json.loads(recipe.canonical()).items() >= (json.loads(VERSION_1) | {"version": 9}).items()


def test_older_versions_finished_every_seed_before_they_were_compared():
    assert Recipe.from_json('{"version": 4, "best_of": 8}') == Recipe(best_of=8, best_after=1.0, ease_in=False)
    since = {"version": 9, "pag_scale": 0.0, "ease_in": False, "late": 0.7}
    assert renewed({"version": 4, "prompt": "x"}) == since | {"prompt": "x", "best_after": 1.0}
    assert renewed({"version": 5, "best_of": 8}) == since | {"best_of": 8}
    assert Recipe.from_json('{"version": 6, "deep_every": 4, "guide_every": 2}').ease_in is False
    assert Recipe.from_json('{"version": 7, "deep_every": 4, "guide_every": 4}').ask_every == 1
    assert renewed({"version": 8}) == {"version": 9} and renewed({"version": 9}) == {"version": 9} and renewed({}) == {}
    assert renewed({"prompt": "x"}) == {"prompt": "x"} and renewed({"version": "new"}) == {"version": "new"}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"best_of": 1}, 0), ({}, 8), ({"best_after": 1.0}, 0), ({"best_after": 0.0}, 1), ({"steps": 1}, 0),
     ({"steps": 1, "hires": 2.0}, 1), ({"best_after": 0.99, "hires": 2.0}, 24), ({"task": "edit", "strength": 0.5}, 4),
     ({"task": "edit", "strength": 0.0}, 0)],
)  # fmt: skip
def test_seeds_are_compared_after_a_share_of_the_first_walk(changes: dict, steps: int):
    assert Recipe(**{"best_of": 8, "best_after": 0.33, "steps": 24} | changes).glance == steps


def test_an_effort_is_a_word_for_fields_and_those_that_are_told_stay():
    recipe = Recipe.of({"effort": "balanced", "late": 0.5})
    assert recipe == Recipe(ask_apart=EFFORTS["balanced"]["ask_apart"], late=0.5)
    assert Recipe.of({"effort": "exact"}) == Recipe()
    assert "effort" not in recipe.model_dump()
    with pytest.raises(UnknownName, match="no effort is called 'fst': did you mean fast"):
        Recipe.of({"effort": "fst"})


def test_guidance_is_never_taken_from_features_of_different_ages():
    even = {"deep_every": 4, "ease_in": False}
    for fits in (1, 2, 4, 8):
        assert Recipe.of(even | {"guide_every": fits}).guide_every == fits
    with pytest.raises(BadInput, match=r"guide_every should divide deep_every \(4\) or be a multiple of it, not 6"):
        Recipe.of(even | {"guide_every": 6})
    for fits in ((4, 1), (4, 4), (1, 4)):
        assert Recipe.of(dict(zip(("deep_every", "guide_every"), fits, strict=True))).ease_in
    with pytest.raises(BadInput, match=r"guide_every should be 1 or deep_every \(4\), where gaps ease in, not 8"):
        Recipe.of({"deep_every": 4, "guide_every": 8})


def test_what_is_carried_over_whole_is_not_carried_over_in_parts_too():
    assert Recipe.of({"ask_every": 3}).ask_every == 3 and Recipe.of({"ask_apart": 0.3}).ask_apart == 0.3
    for part in ("deep_every", "guide_every"):
        with pytest.raises(BadInput, match="ask_every should be 1 where deep_every or guide_every is more than 1"):
            Recipe.of({"ask_every": 2, part: 2})
        with pytest.raises(BadInput, match="ask_apart should be 0 where deep_every or guide_every is more than 1"):
            Recipe.of({"effort": "balanced", part: 4})
    with pytest.raises(BadInput, match="ask_apart should be 0 where ask_every is more than 1"):
        Recipe.of({"ask_apart": 0.1, "ask_every": 3})


def test_the_id_tells_recipes_apart_and_nothing_else():
    recipe = Recipe(prompt="a cat")
    assert recipe.id == Recipe(prompt="a cat", seed=0).id
    assert recipe.id != recipe.but(seed=1).id
    assert len(recipe.id) == 64


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", 0, "steps should be greater than or equal to 1, not 0"),
        ("steps", 1001, "less than or equal to 1000"),
        ("seed", -3, "seed should be greater than or equal to 0, not -3"),
        ("seed", MAX_SEED + 1, "seed should be less than"),
        ("seed", 1.5, "valid integer"),
        ("width", 0, "width should be greater than 0"),
        ("cfg_scale", math.nan, "cfg_scale should be a number from 0 to 100, not nan"),
        ("cfg_scale", math.inf, "cfg_scale should be a number from 0 to 100, not inf"),
        ("cfg_scale", -1, "cfg_scale should be a number from 0 to 100"),
        ("cfg_rescale", math.nan, "cfg_rescale should be"),
        ("cfg_interval", (0.9, 0.1), "two numbers from 0 to 1, the lower first"),
        ("cfg_interval", (math.nan, 1), "two numbers from 0 to 1"),
        ("cfg_interval", [0.1], r"cfg_interval\.1 is missing from \[0.1\]"),
        ("best_of", 65, "best_of should be less than or equal to 64"),
        ("task", "fly", "task should be 'paint', 'edit'"),
        ("prompt", 3, "prompt should be a valid string, not 3"),
        ("prompt", "caf\udce9", "prompt should be text in UTF-8"),
        ("prompt", ["x" * 1000], r"xxx\.\.\.$"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(field: str, value: object, said: str):
    with pytest.raises(BadInput, match=said) as caught:
        Recipe.of({field: value})
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_told_the_nearest():
    with pytest.raises(UnknownName, match="did you mean prompt"):
        Recipe.of({"promt": "a cat"})


def test_but_checks_again():
    with pytest.raises(BadInput, match="steps"):
        Recipe().but(steps=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not the JSON of a recipe"),
        ("[1]", "no object"),
        ('{"version": 10}', "of version 10; this Limner knows up to 9"),
        ('{"version": "new"}', "version should be 9, not 'new'"),
        ('{"version": 0}', "version should be 9, not 0"),
        ('{"cfg_scale": NaN}', "cfg_scale should be"),
    ],
)
def test_json_that_is_no_recipe_is_refused(text: str, said: str):
    with pytest.raises(BadInput, match=said):
        Recipe.from_json(text)


def test_canonical_json_has_sorted_keys_and_plain_letters():
    text = Recipe(prompt="ein Bär").canonical()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert "Bär" in text

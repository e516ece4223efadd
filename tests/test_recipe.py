import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import BadInput
from limner.recipe import Recipe

OLD = '{"version": 1, "prompt": "a red apple", "seed": 7}'  # as the first version wrote them: it must keep loading


@given(st.text(max_size=40), st.integers(0, 2**63 - 1), st.floats(0, 100))
def test_json_and_back(prompt, seed, scale):
    if any("\ud800" <= mark <= "\udfff" for mark in prompt):
        return
    recipe = Recipe(prompt=prompt, seed=seed, cfg_scale=scale)
    again = Recipe.from_json(recipe.canonical())
    assert again == recipe and again.id == recipe.id


def test_an_old_recipe_loads_with_the_defaults_of_its_time():
    assert Recipe.from_json(OLD) == Recipe(prompt="a red apple", seed=7)


def test_the_id_hangs_on_every_field():
    one = Recipe(prompt="a cat")
    assert len({one.id, one.but(seed=1).id, one.but(style="flat").id, one.but(best_of=2).id}) == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"seed": -5}, "seed"),
        ({"cfg_scale": float("nan")}, "0 to 100"),
        ({"cfg_scale": "much"}, "cfg_scale"),
        ({"cfg_interval": (0.9, 0.1)}, "lower first"),
        ({"best_of": 0}, "best_of"),
        ({"prompt": "\udc80"}, "UTF-8"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields, said):
    with pytest.raises(BadInput, match=said):
        Recipe.of(fields)


def test_an_unknown_field_is_refused():
    with pytest.raises(Exception, match="stepz"):
        Recipe.of({"stepz": 3})


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"version": 99}'])
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(BadInput):
        Recipe.from_json(text)


def test_a_recipe_is_frozen():
    with pytest.raises(Exception, match="frozen"):
        Recipe().seed = 3


def test_canonical_json_is_sorted_and_tight():
    text = Recipe(prompt="ü").canonical()
    assert list(json.loads(text)) == sorted(json.loads(text)) and '": ' not in text and "ü" in text

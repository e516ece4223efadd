"""The prompts are drawn fairly, and a picture of a batch is the picture that its recipe paints alone."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from limner.errors import BadInput
from limner.evaluate import samples
from limner.evaluate.samples import Case, Plan
from limner.pipeline import load
from limner.place import find_place
from limner.recipe import Recipe
from limner.tasks.run import paint
from limner.train.data import Words, pack

CPU = find_place("cpu", torch.float32)
CASES = [Case(i, f"thing {i % 60}", "abc"[i % 3], f"c{i % 60}") for i in range(180)]


def test_cells_take_the_plainest_picture_of_each_style_and_concept():
    words = [
        Words("a", "cook: dark skin tone", style="noto", concept="cook"),
        Words("b", "cook", style="noto", concept="cook"),
        Words("c", "cook", style="elsewhere", concept="cook"),
        Words("d", "cat", style="noto", concept="cat"),
    ]
    found = samples.cells(words, [True, True, True, False])
    assert [case.row for case in found] == [1, 2]


def test_rounds_take_styles_by_turns():
    drawn = list(samples.rounds(samples.by_style(CASES), random.Random(0)))
    assert len(drawn) == 180 and len(set(drawn)) == 180
    assert all(len({case.style for case in drawn[i : i + 3]}) == 3 for i in range(0, 180, 3))


def test_texts_are_balanced_unlike_and_fixed_by_the_seed():
    groups = samples.by_style(CASES)
    found = samples.texts(CASES[0], groups, 31, 5)
    assert found[0] == CASES[0].name and len(found) == len(set(found)) == 31
    assert found == samples.texts(CASES[0], groups, 31, 5) != samples.texts(CASES[0], groups, 31, 6)
    assert "thing 7" not in samples.texts(Case(-1, "7", "", ""), groups, 60, 5, word="7")


def test_unlike_shares_neither_concept_nor_name():
    cases = [Case(0, "A", "x", "1"), Case(1, "a", "x", "2"), Case(2, "b", "x", "1"), Case(3, "c", "x", "3")]
    assert [case.row for case in samples.unlike(cases, 9)] == [0, 3]


def test_halves_are_apart_and_alike_in_style():
    one, two = samples.halves(samples.by_style(CASES), 60, random.Random(1))
    assert len(one) == len(two) == 60 and not set(one) & set(two)
    assert Counter(c.style for c in one) == Counter(c.style for c in two) == {"a": 20, "b": 20, "c": 20}


@pytest.mark.parametrize("quick", [True, False])
def test_plans(quick: bool):
    assert Plan.of(10, 3, quick).prompts == 10
    assert Plan.of(10, 3, quick).spread == 40
    with pytest.raises(BadInput, match="at least 2"):
        Plan.of(1, 0, quick)


def test_a_batch_of_many_recipes_equals_each_alone(tiny_folder: Path):
    model = load(str(tiny_folder), CPU)
    recipes = [
        Recipe(prompt="word1 thing", style="noto", seed=5, steps=4),
        Recipe(prompt="", seed=6, steps=4),
        Recipe(prompt="a red word2 apple", seed=5, steps=4),
    ]
    together = samples.paint_batch(model, recipes)
    alone = torch.cat([paint(model, recipe) for recipe in recipes])
    assert torch.allclose(together, alone, atol=1 / 255)
    assert not torch.allclose(together[0], together[2], atol=0.02)
    assert torch.cat(list(samples.paint_many(model, recipes, 2))).shape == (3, 4, 128, 128)


def test_a_batch_with_noise_on_the_way_keeps_each_pictures_stream(tiny_folder: Path):
    model = load(str(tiny_folder), CPU)
    recipes = [Recipe(prompt="cat", seed=seed, steps=3, sampler="euler_ancestral") for seed in (40, 7)]
    alone = torch.cat([paint(model, recipe) for recipe in recipes])
    assert torch.allclose(samples.paint_batch(model, recipes), alone, atol=1 / 255)


def test_recipes_that_differ_otherwise_are_refused(tiny_folder: Path):
    model = load(str(tiny_folder), CPU)
    with pytest.raises(BadInput, match="prompt, style and seed"):
        samples.paint_batch(model, [Recipe(steps=3), Recipe(steps=4)])


def test_the_baseline_by_text_finds_the_name_and_prefers_the_style(tiny_folder: Path, shards: Path, tmp_path: Path):
    model, pictures = load(str(tiny_folder), CPU), pack(shards, tmp_path)
    found = samples.ByText(model, pictures, range(len(pictures)))
    rows = found([Recipe(prompt="word3 thing", style=style) for style in ("flat", "pixel art", "blob")])
    words = [pictures.words[row] for row in rows]
    assert {w.name for w in words} == {"word3 thing"}
    assert [w.style for w in words[:2]] == ["flat", "pixel art"]

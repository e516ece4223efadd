"""Parts of the figures whose answers are known beforehand."""

import torch

from limner.evaluate import figures
from limner.evaluate.figures import hits, some_names

NAMES = ("apple", "cat", "kitten", "dog", "house", "tree", "sword")
CONCEPTS = {"apple": {"1"}, "cat": {"2"}, "kitten": {"2"}, "dog": {"3"}, "house": {"4"}, "tree": {"5"}, "sword": {"6"}}


def test_a_guess_is_right_by_any_name_of_the_concept():
    scores = torch.tensor([[0.1, 0.0, 0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]])
    found = hits(scores, ["2", "6"], NAMES, CONCEPTS)
    assert found.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]  # the sword stands at seven


def test_few_names_are_those_that_are_wanted_and_drawn_ones(monkeypatch):
    monkeypatch.setattr(figures, "FEW", 4)
    few = some_names(NAMES, CONCEPTS, {"2", "6"}, seed=0)
    assert few == sorted(few) and len(set(few)) == 4 and {1, 2, 6} <= set(few)
    assert few == some_names(NAMES, CONCEPTS, {"2", "6"}, seed=0)
    assert {tuple(some_names(NAMES, CONCEPTS, {"2", "6"}, seed)) for seed in range(20)} != {tuple(few)}
    assert some_names(NAMES, CONCEPTS, {"1", "2", "3", "4"}, seed=0) == [0, 1, 2, 3, 4]  # more than were asked for
    monkeypatch.setattr(figures, "FEW", 99)
    assert some_names(NAMES, CONCEPTS, {"2"}, seed=0) == list(range(7))

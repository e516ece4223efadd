"""Names of weights, theirs and ours: there and back again, and nothing gets lost on the way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import BadWeights
from limner.weights.layout import Rule, account, rename, translate

RULES = [
    Rule("model.layers.{}.attn.{}.weight", "blocks.{}.{}.weight"),
    Rule("model.head.weight", "head.weight", "transpose"),
    Rule("model.position_ids", None),
    Rule("bert.{}", "text.{}"),
]


def test_names_go_there_and_back():
    theirs = ["model.layers.0.attn.q.weight", "model.layers.11.attn.to_out.0.weight", "bert.a.b.c"]
    ours = ["blocks.0.q.weight", "blocks.11.to_out.0.weight", "text.a.b.c"]
    assert [move and move[0] for move in rename(theirs, RULES).values()] == ours
    assert [move and move[0] for move in rename(ours, RULES, back=True).values()] == theirs


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from("qkv")), unique=True))
def test_tensors_go_there_and_back(places):
    theirs = {f"model.layers.{i}.attn.{part}.weight": torch.full((2, 2), float(i)) for i, part in places}
    theirs["model.head.weight"] = torch.arange(6.0).view(2, 3)
    again = translate(translate(theirs, RULES), RULES, back=True)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.items())


def test_what_a_rule_drops_is_gone():
    assert translate({"model.position_ids": torch.arange(3)}, RULES) == {}


def test_a_matrix_is_turned():
    head = torch.arange(6.0).view(2, 3)
    turned = translate({"model.head.weight": head}, RULES)["head.weight"]
    assert torch.equal(turned, head.T)
    assert turned.is_contiguous()


def test_the_first_rule_that_matches_decides():
    rules = [Rule("a.b", "first"), Rule("a.{}", "then.{}")]
    assert rename(["a.b", "a.c"], rules) == {"a.b": ("first", "same"), "a.c": ("then.c", "same")}


def test_a_dot_in_a_rule_is_a_dot():
    with pytest.raises(BadWeights):
        rename(["modelxhead.weight"], RULES)


def test_a_rule_matches_whole_names_only():
    for name in ("model.head.weight.more", "more.model.head.weight", "bert."):
        with pytest.raises(BadWeights):
            rename([name], RULES)


def test_unmatched_names_are_counted_and_listed():
    with pytest.raises(BadWeights, match=r"4 names match no rule of this layout, the first: a, b, c$"):
        rename(["a", "b", "bert.x", "c", "d"], RULES)


def test_two_names_that_become_one_are_refused():
    rules = [Rule("a.{}", "{}"), Rule("b.{}", "{}")]
    with pytest.raises(BadWeights, match=r"'a.x' and 'b.x' would both become 'x'"):
        translate({"a.x": torch.ones(1), "b.x": torch.zeros(1)}, rules)


def test_a_rule_whose_sides_do_not_fit_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="different numbers"):
        Rule("a.{}.{}", "b.{}")


WANTED = {"blocks.0.weight": (4, 4), "blocks.0.bias": (4,), "head.weight": (2, 4)}


def test_names_and_shapes_that_agree_are_let_through():
    account({name: torch.Size(shape) for name, shape in WANTED.items()}, WANTED, "file")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blocks.0.wieght": (4, 4)}, r"^file: 1 tensors fill nothing, the first is 'blocks.0.wieght'"),
        ({"head.weight": None}, r"^file: 1 weights are missing, the first is 'head.weight'"),
        ({"head.weight": (4, 2)}, r"^file: 'head.weight' has shape \[4, 2\] and the config wants \[2, 4\]"),
        ({"blocks.0.bias": (4, 1)}, r"'blocks.0.bias' has shape \[4, 1\] and the config wants \[4\]"),
        ({"blocks.0.weight": None, "blocks.0.wieght": (4, 4)}, r"the nearest that is wanted is 'blocks.0.weight'"),
        ({"blocks.0.weight": None}, r"'blocks.0.weight'; the nearest in the file is '(blocks.0.bias|head.weight)'"),
    ],
)
def test_what_does_not_agree_is_refused_with_the_nearest_name(change, sentence):
    found = {name: shape for name, shape in {**WANTED, **change}.items() if shape is not None}
    with pytest.raises(BadWeights, match=sentence):
        account(found, WANTED, "file")

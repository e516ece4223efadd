"""Names of weights, theirs and ours: there and back again, and nothing gets lost on the way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import BadWeights
from limner.weights.layout import Rule, account, plan, reshaped, translate, under

RULES = [
    Rule("model.layers.{}.attn.{}.weight", "blocks.{}.{}.weight"),
    Rule("model.head.weight", "head.weight", "transpose"),
    Rule("model.position_ids", None),
    Rule("bert.{}", "text.{}"),
]


def test_names_go_there_and_back():
    theirs = ["model.layers.0.attn.q.weight", "model.layers.11.attn.to_out.0.weight", "bert.a.b.c"]
    ours = ["blocks.0.q.weight", "blocks.11.to_out.0.weight", "text.a.b.c"]
    assert [move.targets for move in plan(theirs, RULES)] == [(name,) for name in ours]
    assert [move.targets for move in plan(ours, RULES, back=True)] == [(name,) for name in theirs]
    assert [move.sources for move in plan(theirs, RULES)] == [(name,) for name in theirs]


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
    moves = plan(["a.b", "a.c"], rules)
    assert [(move.sources, move.targets, move.op) for move in moves] == [
        (("a.b",), ("first",), "same"),
        (("a.c",), ("then.c",), "same"),
    ]


def test_a_dot_in_a_rule_is_a_dot():
    with pytest.raises(BadWeights):
        plan(["modelxhead.weight"], RULES)


def test_a_rule_matches_whole_names_only():
    for name in ("model.head.weight.more", "more.model.head.weight", "bert."):
        with pytest.raises(BadWeights):
            plan([name], RULES)


def test_unmatched_names_are_counted_and_listed():
    with pytest.raises(BadWeights, match=r"4 names match no rule of this layout, the first: a, b, c$"):
        plan(["a", "b", "bert.x", "c", "d"], RULES)


def test_two_names_that_become_one_are_refused():
    rules = [Rule("a.{}", "{}"), Rule("b.{}", "{}")]
    with pytest.raises(BadWeights, match=r"'a.x' and 'b.x' would both become 'x'"):
        translate({"a.x": torch.ones(1), "b.x": torch.zeros(1)}, rules)


def test_a_rule_whose_sides_do_not_fit_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="different numbers"):
        Rule("a.{}.{}", "b.{}")


JOINED = [
    Rule("layers.{}.in_proj.{}", ("blocks.{}.q.{}", "blocks.{}.k.{}", "blocks.{}.v.{}")),
    Rule(("up.{}.value.weight", "up.{}.gate.weight"), "up.{}.both.weight"),
]


def test_one_tensor_of_theirs_is_several_of_ours():
    whole = torch.arange(12.0).view(6, 2)
    made = translate({"layers.3.in_proj.weight": whole}, JOINED)
    assert list(made) == ["blocks.3.q.weight", "blocks.3.k.weight", "blocks.3.v.weight"]
    assert [part.tolist() for part in made.values()] == [part.tolist() for part in whole.chunk(3)]
    assert made["blocks.3.k.weight"].data_ptr() == whole[2:].data_ptr()  # a view: nothing is copied
    again = translate(made, JOINED, back=True)
    assert torch.equal(again["layers.3.in_proj.weight"], whole)


def test_several_of_theirs_are_one_of_ours():
    theirs = {"up.0.gate.weight": torch.ones(2, 3), "up.0.value.weight": torch.zeros(2, 3)}  # in any order
    made = translate(theirs, JOINED)
    assert made["up.0.both.weight"].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
    again = translate(made, JOINED, back=True)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.items())


def test_of_names_that_belong_together_none_may_be_missing():
    with pytest.raises(BadWeights, match=r"^file: 'up.1.value.weight' and 'up.1.gate.weight' belong together"):
        plan(["up.0.value.weight", "up.0.gate.weight", "up.1.value.weight"], JOINED, where="file")
    ours = [f"blocks.0.{part}.bias" for part in "qv"]
    with pytest.raises(BadWeights, match=r"'blocks.0.k.bias' belong together, and one of them is missing"):
        plan(ours, JOINED, back=True)


def test_only_one_side_can_be_of_several_names():
    with pytest.raises(ValueError, match="only one side"):
        Rule(("a", "b"), ("c", "d"))
    with pytest.raises(ValueError, match="different numbers"):
        Rule("a.{}", ("b.{}", "c"))


def test_a_matrix_is_a_pointwise_convolution():
    rules, matrix = [Rule("to_q.weight", "q.weight", "pointwise")], torch.arange(6.0).view(2, 3)
    made = translate({"to_q.weight": matrix}, rules)["q.weight"]
    assert made.shape == (2, 3, 1, 1)
    assert torch.equal(translate({"q.weight": made}, rules, back=True)["to_q.weight"], matrix)


def test_halves_change_places_both_ways():
    rules, whole = [Rule("norm.bias", "end.bias", "swap")], torch.arange(4.0)
    made = translate({"norm.bias": whole}, rules)["end.bias"]
    assert made.tolist() == [2, 3, 0, 1]
    assert torch.equal(translate({"end.bias": made}, rules, back=True)["norm.bias"], whole)


def test_rules_behind_a_prefix():
    rules = under([Rule("a.{}", ("q.{}", "k.{}")), Rule("b", None), Rule("c", "c", "swap")], "theirs.{}.", "ours.{}.")
    assert rules == [
        Rule("theirs.{}.a.{}", ("ours.{}.q.{}", "ours.{}.k.{}")),
        Rule("theirs.{}.b", None),
        Rule("theirs.{}.c", "ours.{}.c", "swap"),
    ]
    assert under(rules) == rules


def test_the_nearest_rule_is_named():
    with pytest.raises(
        BadWeights, match=r"the first: model.haed.weight; the nearest that is known is model.head.weight"
    ):
        plan(["model.haed.weight"], RULES)


def test_shapes_go_the_way_of_tensors():
    shapes = {"layers.0.in_proj.weight": (6, 2), "up.0.value.weight": (2, 3), "up.0.gate.weight": (2, 3)}
    ours = reshaped(shapes, JOINED)
    assert ours == {f"blocks.0.{part}.weight": (2, 2) for part in "qkv"} | {"up.0.both.weight": (4, 3)}
    assert reshaped(ours, JOINED, back=True) == shapes
    huge = reshaped({"model.head.weight": (10**6, 10**6)}, RULES)  # nothing is allocated
    assert huge == {"head.weight": (10**6, 10**6)}


@pytest.mark.parametrize(
    ("name", "shape", "rules"),
    [
        ("a", (), [Rule("a", "b", "pointwise")]),
        ("a", (), [Rule("a", "b", "swap")]),
        ("a", (2,), [Rule("a", "b", "transpose")]),
        ("a", (2,), [Rule("a", ("q", "k", "v"))]),
        ("a", (4, 2), [Rule("a", ("q", "k", "v"))]),
    ],
)
def test_shapes_that_cannot_go_are_refused(name, shape, rules):
    with pytest.raises(BadWeights, match=r"^file"):
        reshaped({name: shape}, rules, where="file")


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


def test_partial_lets_names_be_over_and_missing_and_tells_which():
    found = {"blocks.0.weight": (4, 4), "blocks.0.bias": (4,), "blocks.1.bias": (4,)}
    assert account(found, WANTED, "file", partial=True) == ["head.weight"]
    assert account(WANTED, WANTED, "file", partial=True) == []
    with pytest.raises(BadWeights, match=r"'blocks.0.bias' has shape \[5\] and the config wants \[4\]"):
        account(found | {"blocks.0.bias": (5,)}, WANTED, "file", partial=True)

"""Choices in prompts: what may come out, how often, and that a seed always says the same."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import BadInput
from limner.wildcards import MOST, expand


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "cats.txt").write_text("# kinds\nsiamese\n\n  tabby  \n3::persian\n", encoding="utf-8")
    (tmp_path / "colours.txt").write_text("\ufeffred\n{dark|light} blue\n", encoding="utf-8")
    (tmp_path / "scene.txt").write_text("a __colours__ __animals/cats__\n", encoding="utf-8")
    (tmp_path / "loop.txt").write_text("x __pool__\n")
    (tmp_path / "pool.txt").write_text("y __loop__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "zero.txt").write_text("0::never\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    return tmp_path


def seen(text: str, folder=None, seeds: int = 200) -> Counter[str]:
    return Counter(expand(text, seed, folder) for seed in range(seeds))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a (b:1.2) [c|d] :) }", "a (b:1.2) [c|d] :) }"),
        ("{masterpiece} {}", "{masterpiece} {}"),
        (r"\{a|b\} \(c\) \\ \_\_d__", r"{a|b} \(c\) \\ __d__"),
        (r"\__colours__", "__colours__"),
        ("{a}", "{a}"),
        ("{1$$a}", "a"),
        ("{0$$a|b}c", "c"),
        ("{0::a|b}", "b"),
        ("{1::a|0::b}", "a"),
        (r"{0::a|b\|c}", r"b\|c"),
        ("{0::x|[a|b]}", "[a|b]"),
        ("{0::x|{0::y|z} w}", "z w"),
        ("snake_case __ ____ _a_", "snake_case __ ____ _a_"),
    ],
)
def test_what_leaves_no_choice(text, said):
    assert seen(text, seeds=5) == {said: 5}


def test_every_option_comes_as_often_as_its_weight_says():
    plain = seen("{a|b|c}", seeds=900)
    assert set(plain) == set("abc") and all(250 < n < 350 for n in plain.values())
    weighed = seen("{3::a|b}", seeds=800)
    assert 560 < weighed["a"] < 640
    assert set(seen("{a|}")) == {"a", ""}
    assert set(seen("{a|{b|c}}")) == set("abc")


def test_several_options_are_different_ones():
    assert set(seen("{2$$a|b|c}")) == {f"{x}, {y}" for x in "abc" for y in "abc" if x != y}
    assert set(seen("{2$$ and $$a|b}")) == {"a and b", "b and a"}
    assert set(seen("{1-2$$+$$a|b}")) == {"a", "b", "a+b", "b+a"}


def test_a_seed_says_the_same_and_choices_stand_alone():
    assert expand("{a|b|c} {d|e|f}", 7) == expand("{a|b|c} {d|e|f}", 7) == "c e"
    for seed in range(20):
        assert expand("{a|b|c} {d|e|f}", seed)[2] == expand("{x|y|z} and {d|e|f}", seed)[-1]


def test_wildcards_are_lines_of_files(folder):
    cats = seen("__animals/cats__", folder, 500)
    assert set(cats) == {"siamese", "tabby", "persian"} and 250 < cats["persian"] < 350
    assert set(seen("__colours__", folder)) == {"red", "dark blue", "light blue"}
    assert seen("__scene__!", folder).keys() == {f"a {c} {k}!" for c in seen("__colours__", folder) for k in cats}
    assert set(seen("{0::x|__colours__}", folder)) == {"red", "dark blue", "light blue"}


@pytest.mark.parametrize(
    ("text", "column", "sentence"),
    [
        ("a {b|c", 3, r"the \{ at column 3 is never closed; a brace as a letter is written \\\{"),
        ("a {b|{c}", 3, "never closed"),
        ("{3$$a|b}", 1, r"the \{ at column 1 asks for 3 of 2 options"),
        ("{2-1$$a|b}", 1, "asks for 2 to 1 of 2 options"),
        ("{2$$a|0::b}", 1, "asks for 2 of 1 options"),
        ("{0::a|0::b}", 1, "asks for 1 of 0 options"),
        ("a __color__", 3, "no wildcard at column 3 is called 'color': did you mean colours"),
        ("__animals/../colours__", 1, "names no file inside the folder"),
        ("__a//b__", 1, "names no file inside the folder"),
        (
            "__loop__",
            3,
            "in the wildcard 'loop': in the wildcard 'pool': .* at column 3 leads back to itself: loop > pool > loop",
        ),
        ("__empty__", 1, "a file without options"),
        ("__zero__", 1, "a file without options"),
        ("{a|" * 102 + "b" + "}" * 102, 304, "nested more than 100 deep"),
    ],
)
def test_a_slip_is_refused_at_its_column(folder, text, column, sentence):
    with pytest.raises(BadInput, match=sentence) as refusal:
        for seed in range(400):
            expand(text.replace("{a|", "{0::a|") if len(text) > 300 else text, seed, folder)
    assert "at column" in str(refusal.value) and str(refusal.value).endswith("^")
    if len(text) < 300:
        assert f"at column {column}" in str(refusal.value)


def test_other_refusals(folder):
    with pytest.raises(BadInput, match="asks for a folder of wildcard files, and none is given"):
        expand("__colours__", 0)
    with pytest.raises(BadInput, match="the wildcard 'latin' is not readable as UTF-8"):
        expand("__latin__", 0, folder)


def test_files_that_double_each_other_are_stopped(folder):
    for level in range(40):
        (folder / f"w{level}.txt").write_text(f"__w{level + 1}__ __w{level + 1}__\n")
    (folder / "w40.txt").write_text("end\n")
    with pytest.raises(BadInput, match=f"more than {MOST} choices"):
        expand("__w0__", 0, folder)


@given(text=st.text(alphabet="ab{}|$:\\[]_1.-# ", max_size=30), seed=st.integers())
@settings(max_examples=200, deadline=None)
def test_a_text_expands_or_is_refused(text, seed):
    try:
        said = expand(text, seed)
    except BadInput:
        return
    assert said == expand(text, seed)
    if not set(text) & set("{}\\"):
        assert said == text

"""The languages of prompts: what each says, what is refused and where, and that nothing else is ever raised."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import BadInput, UnknownName
from limner.models.text.prompt import BREAK, DEPTH, SYNTAXES, Break, Lora, Piece, parse


def pieces(text: str, syntax: str = "a1111") -> list[tuple[str, float] | Break]:
    (part,) = parse(text, syntax).parts
    (stage,) = part.stages
    return [piece if isinstance(piece, Break) else (piece.text, piece.weight) for piece in stage.pieces]


def stages(text: str, steps: int = 10) -> list[tuple[int, str]]:
    """Each stage's last step and words; weights that are not 1 stand after a colon."""
    (part,) = parse(text, "a1111", steps).parts
    said = []
    for stage in part.stages:
        words = [p.text if p.weight == 1 else f"<{p.text}:{p.weight:.3g}>" for p in stage.pieces]
        said.append((round(stage.until * steps), "".join(words)))
    return said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", [("", 1.0)]),
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("an [unimportant] word", [("an ", 1.0), ("unimportant", 1 / 1.1), (" word", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        (r"a\\b \x \: c\[d\) e", [(r"a\b x : c[d) e", 1.0)]),
        ("trailing \\", [("trailing ", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("(a:1.2)", [("a", 1.2)]),
        ("(a: 1.2 )", [("a", 1.2)]),
        ("(a:.5) (b:-2) (c:+3.)", [("a", 0.5), (" ", 1.0), ("b", -2.0), (" ", 1.0), ("c", 3.0)]),
        ("(a:0)", [("a", 0.0)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("((a:1.3) b:1.5)", [("a", 1.3 * 1.5), (" b", 1.5)]),
        ("([a])", [("a", 1 / 1.1 * 1.1)]),
        ("(:1.2)()", [("", 1.0)]),
        ("a :) b] c", [("a :) b] c", 1.0)]),
        ("Re:Zero (Re:Zero) at 12:30", [("Re:Zero ", 1.0), ("Re:Zero", 1.1), (" at 12:30", 1.0)]),
        ("(time 12:30pm)", [("time 12:30pm", 1.1)]),
        ("[x:y] [z:]", [("x:y", 1 / 1.1), (" ", 1.0), ("z:", 1 / 1.1)]),
        ("a | b", [("a | b", 1.0)]),
        ("(a|b)", [("a|b", 1.1)]),
        ("a BREAK b", [("a ", 1.0), BREAK, (" b", 1.0)]),
        ("(a BREAK b:1.2)BREAK", [("a ", 1.2), BREAK, (" b", 1.2), BREAK]),
        ("BREAKFAST aBREAK SAND break and", [("BREAKFAST aBREAK SAND break and", 1.0)]),
    ],
)
def test_a1111(text, said):
    assert pieces(text) == said


def test_a1111_multiplies_from_the_inside_out():
    assert pieces("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)") == [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(foo)(bar)", [("foo", 1.1), ("bar", 1.1)]),
        ("(foo:2.0)", [("foo", 2.0)]),
        ("((foo))", [("foo", 1.1 * 1.1)]),
        ("((foo):1.1)", [("foo", 1.1 * 1.1)]),
        ("((foo:1.1))", [("foo", 1.1)]),
        ("((foo:1.0):0.0)", [("foo", 1.0)]),
        (
            "foo ((((lol (cat:666) attack):100))) baz",
            [("foo ", 1.0), ("lol ", 1.1 * 100), ("cat", 666.0), (" attack", 1.1 * 100), (" baz", 1.0)],
        ),
        (r"\(a\) b\c [d|e] x AND y BREAK z:1.2", [(r"(a) b\c [d|e] x AND y BREAK z:1.2", 1.0)]),
        ("[a:b:0.5]", [("[a:b:0.5]", 1.0)]),
        ("(:1.2)", [(":1.2", 1.1)]),
    ],
)
def test_comfy(text, said):
    assert pieces(text, "comfy") == said


def test_plain_reads_every_sign_as_a_letter():
    text = r"(a:1.2) [b|c] BREAK x AND y <lora:z:1> \( :( {d|e}"
    assert pieces(text, "plain") == [(text, 1.0)]
    assert parse(text, "plain").loras == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a <b:0.826>")]),
        ("[(a:2):3]", [(3, ""), (10, "<a:2>")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b::.5] c", [(5, "a b c"), (10, "a  c")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:0.0]", [(10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1]", [(1, "a"), (10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:0.37]", [(3, "a"), (10, "b")]),
        ("[a:a:5]", [(10, "a")]),
        ("([a:b:5] c:2)", [(5, "<a c:2>"), (10, "<b c:2>")]),
        ("[fe|]male", [(k + 1, "male" if k % 2 else "female") for k in range(10)]),
        ("[a|(b:1.1)]", [(k + 1, "<b:1.1>" if k % 2 else "a") for k in range(10)]),
        ("[a|b|c]", [(k + 1, "abc"[k % 3]) for k in range(10)]),
        ("[[a|b]:c:2]", [(1, "a"), (2, "b"), (10, "c")]),
        ("[a:[b|c]:8]", [(8, "a"), (9, "b"), (10, "c")]),
        (r"[a\|b] [c\:d:5]", [(5, "<a|b:0.909> "), (10, "<a|b:0.909> c:d")]),
    ],
)
def test_stages_of_edits_and_alternations(text, said):
    assert stages(text) == said


def test_edits_of_a_long_prompt():
    text = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][: in background:0.25] [shoddy:masterful:0.5]"
    )
    start = "fantasy landscape with a "
    assert stages(text, 100) == [
        (25, start + "mountain and an oak in foreground shoddy"),
        (50, start + "lake and an oak in foreground in background shoddy"),
        (60, start + "lake and an oak in foreground in background masterful"),
        (75, start + "lake and an oak in background masterful"),
        (100, start + "lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49, 50])
@pytest.mark.parametrize("when", [0, 1, 2, 5, 48])
def test_a_step_reads_its_stage(steps, when):
    (part,) = parse(f"[a:b:{when}]", steps=steps).parts
    read = [part.at(i, steps)[0] for i in range(steps)]
    assert read == [Piece("a" if i < when else "b") for i in range(steps)]


def test_and_joins_prompts_with_weights():
    prompt = parse("a cat:1.2 AND a (dog:1.3):-.5 AND [c:d:1] AND the e:f", steps=2)
    assert [part.weight for part in prompt.parts] == [1.2, -0.5, 1.0, 1.0]
    assert [part.at(1, 2) for part in prompt.parts] == [
        (Piece("a cat"),),
        (Piece(" a "), Piece("dog", 1.3)),
        (Piece(" d "),),
        (Piece(" the e:f"),),
    ]
    assert [len(part.stages) for part in prompt.parts] == [1, 1, 2, 1]


def test_a_weight_without_and_is_text():
    assert pieces("ratio 16:9") == [("ratio 16:9", 1.0)]


@pytest.mark.parametrize("syntax", ["a1111", "comfy"])
def test_loras_are_told_apart(syntax):
    prompt = parse("a <lora:ink v2:0.8>cat<lora:x> <lora:y:0.5:-1><b>", syntax)
    assert prompt.loras == (Lora("ink v2", 0.8, 0.8), Lora("x", 1.0, 1.0), Lora("y", -1.0, 0.5))
    assert prompt.parts[0].at(0, 1) == (Piece("a cat <b>"),)


@pytest.mark.parametrize(
    ("text", "column", "sentence"),
    [
        ("a (b", 3, r"the \( at column 3 is never closed"),
        ("a (b [c]", 3, r"never closed"),
        ("a [unbalanced", 3, r"the \[ at column 3 is never closed; a bracket as a letter is written \\\["),
        ("((a][:b:c [d:3]", 11, r"never closed|still open"),
        ("[a (b] c)", 4, r"the \( at column 4 is still open where \] stands at column 6"),
        ("(a:1,2)", 3, r"the weight of a bracket at column 3 is '1,2'; a number such as 1.2 was expected"),
        ("(a:1.2.3)", 3, "is '1.2.3'"),
        ("(happy :)", 8, "is nothing"),
        ("(a:" + "9" * 400 + ")", 3, "a number such as 1.2"),
        ("a:1..2 AND b", 2, "the weight of a prompt at column 2 is '1..2'"),
        ("[a:b:2.5]", 1, "an edit at 2.5: write a share up to 1.0, or whole steps"),
        ("[a:b:-1]", 1, "an edit at -1"),
        ("[a:b:c:0.5]", 1, "an edit of 3 texts; it takes one or two"),
        ("[a|b:0.5]", 1, "alternate, which take no number"),
        ("(a AND b)", 4, r"AND at column 4 joins whole prompts, and the \( at column 1 is open"),
        ("a AND ", 3, "AND at column 3 joins two prompts, and one of them is empty"),
        ("AND a", 1, "one of them is empty"),
        ("<lora:x:y>", 1, "was expected to read <lora:name:0.8>"),
        ("<lora::1>", 1, "was expected to read"),
        ("b <lora:x:1", 3, "the < at column 3 is never closed with >"),
        ("<lora:x:" + "9" * 400 + ">", 1, "too large"),
        ("(" * (DEPTH + 1), DEPTH + 1, f"more than {DEPTH} brackets are open"),
    ],
)
def test_a_slip_is_refused_at_its_column(text, column, sentence):
    with pytest.raises(BadInput, match=sentence) as refusal:
        parse(text)
    _, shown, caret = str(refusal.value).split("\n")
    assert caret.index("^") < len(shown)
    if "|still" not in sentence:
        assert shown[caret.index("^")] == text[column - 1]


def test_the_caret_of_a_long_prompt_stays_near():
    with pytest.raises(BadInput) as refusal:
        parse("a very long\nprompt, " * 30 + "(b, " + "c, " * 100)
    sentence, shown, caret = str(refusal.value).split("\n")
    assert "at column 601" in sentence
    assert len(shown) < 100 and shown[caret.index("^")] == "("


def test_deep_brackets_that_are_allowed():
    (piece,) = parse("(" * DEPTH + "a" + ")" * DEPTH).parts[0].at(0, 1)
    assert piece.weight == pytest.approx(1.1**DEPTH)


def test_other_refusals():
    with pytest.raises(UnknownName, match=r"no prompt syntax is called 'a111'.*did you mean a1111"):
        parse("a", "a111")
    with pytest.raises(BadInput, match="1 step or more, not for 0"):
        parse("a", steps=0)


MARKS = st.text(alphabet="ab 1.05,:|()[]<>\\{}AND\n", max_size=40)
TOKENS = st.lists(
    st.sampled_from([*"a ()[]:|3\\", "b ", "0.5", "BREAK", " AND ", "<lora:x:1>", ":1.2)"]), max_size=20
).map("".join)


@given(text=MARKS | TOKENS | st.text(max_size=30), syntax=st.sampled_from(SYNTAXES), steps=st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_a_prompt_is_read_or_refused_with_a_sentence(text, syntax, steps):
    try:
        prompt = parse(text, syntax, steps)
    except BadInput as refusal:
        assert str(refusal).count("\n") == 2
        return
    for part in prompt.parts:
        ends = [stage.until for stage in part.stages]
        assert ends == sorted(set(ends)) and ends[0] > 0 and ends[-1] == 1
        assert all(stage.pieces for stage in part.stages)
        assert [part.at(i, steps) for i in (0, steps - 1)] == [part.stages[0].pieces, part.stages[-1].pieces]


@given(text=st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_text_that_is_escaped_comes_back(text):
    escaped = "".join(f"\\{sign}" if sign in "\\()[]:|" else sign for sign in text)
    if not any(word in text for word in ("AND", "BREAK", "<lora:")):
        assert pieces(escaped) == [(text, 1.0)]


@given(
    words=st.lists(
        st.tuples(st.text("abc ", min_size=1, max_size=5), st.floats(-9, 9).map(lambda w: round(w, 3))), max_size=6
    )
)
@settings(max_examples=60, deadline=None)
def test_weights_come_back(words):
    read = pieces("".join(f"({word}:{weight:.3f})" for word, weight in words), "comfy")
    assert read == ([(word, weight) for word, weight in words] or [("", 1.0)])

"""Rows of 77 tokens, folded as each program folds them, and the arithmetic of weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import BadInput, UnknownName
from limner.models.text.chunks import Chunks, chunks, line, weigh_a1111, weigh_comfy
from limner.models.text.clip_pieces import END, START, ClipPieces
from limner.models.text.prompt import BREAK, Piece, parse

CLIP, BIG = ClipPieces(), ClipPieces(pad=0)
CAT, RED, COMMA = (CLIP.ids(word)[0] for word in ("cat", "red", ","))


def read(text: str, syntax: str = "a1111", tokenizer: ClipPieces = CLIP, **learned: torch.Tensor) -> Chunks:
    return chunks(parse(text, syntax).parts[0].at(0, 1), tokenizer, syntax, learned)


def inside(found: Chunks) -> list[list[int]]:
    """The tokens of each row between start and the first end."""
    return [row[1 : row.index(END)] for row in found.ids.tolist()]


@pytest.mark.parametrize("tokenizer", [CLIP, BIG], ids=["clip-l", "openclip"])
@pytest.mark.parametrize("syntax", ["a1111", "comfy", "plain"])
@pytest.mark.parametrize("text", ["", "a red cat", "cat " * 75])
def test_a_prompt_that_fits_is_the_tokenizers_own_row(tokenizer, syntax, text):
    found = read(text, syntax, tokenizer)
    assert torch.equal(found.ids, tokenizer([text]))
    assert found.ids.dtype == torch.int64 and found.fills == () and len(found) == 1
    assert torch.equal(found.weights, torch.ones(1, 77))


def test_weights_stand_at_their_tokens():
    found = read("a (red cat:1.3), [dog]")
    assert found.weights[0, :7].tolist() == pytest.approx([1, 1, 1.3, 1.3, 1, 1 / 1.1, 1])


def test_a_long_prompt_without_commas_is_cut_at_75():
    found = read("cat " * 80)
    assert inside(found) == [[CAT] * 75, [CAT] * 5]
    assert found.ids[:, 0].tolist() == [START, START]
    assert found.ids[1, 6:].tolist() == [END] * 71
    assert read("cat " * 80, tokenizer=BIG).ids[1, 6:].tolist() == [END] + [0] * 70


@pytest.mark.parametrize(
    ("before", "first"),
    [(54, 75), (55, 56), (60, 61), (74, 75)],  # cats before the comma, tokens left in the first row
)
def test_a1111_takes_what_follows_a_near_comma_along(before, first):
    found = inside(read("cat " * before + ", " + "red " * (85 - before)))
    assert [len(row) for row in found] == [first, 86 - first]
    assert found[0][before] == COMMA


def test_a_comma_that_does_not_fit_begins_the_next_row():
    assert inside(read("cat " * 75 + ", red")) == [[CAT] * 75, [COMMA, RED]]


def test_weights_move_with_their_tokens():
    found = read("cat " * 70 + ", (" + "red " * 10 + ":1.5)")
    assert inside(found) == [[CAT] * 70 + [COMMA], [RED] * 10]
    assert found.weights[0].unique().tolist() == [1.0]
    assert found.weights[1, :12].tolist() == [1.0] + [1.5] * 10 + [1.0]


def test_break_begins_a_row():
    assert inside(read("cat BREAK red")) == [[CAT], [RED]]
    assert inside(read("cat BREAK BREAK red BREAK")) == [[CAT], [], [RED]]
    assert inside(read("BREAK cat")) == [[], [CAT]]
    assert inside(chunks([BREAK], CLIP)) == [[]]
    assert inside(read("cat, BREAK " + "red " * 80)) == [[CAT, COMMA], [RED] * 75, [RED] * 5]


def test_comfy_moves_a_short_bracket_and_cuts_a_long_one():
    short = read("cat " * 70 + "(" + "red " * 7 + ":1.5)", "comfy")
    assert inside(short) == [[CAT] * 70, [RED] * 7]
    long = read("cat " * 70 + "(" + "red " * 8 + ":1.5)", "comfy")
    assert inside(long) == [[CAT] * 70 + [RED] * 5, [RED] * 3]
    assert long.weights[1, :5].tolist() == [1, 1.5, 1.5, 1.5, 1]
    assert inside(read("cat " * 160, "comfy")) == [[CAT] * 75, [CAT] * 75, [CAT] * 10]


def test_comfy_looks_for_no_comma():
    assert [len(row) for row in inside(read("cat " * 70 + ", " + "red " * 10, "comfy"))] == [75, 6]


def test_learned_words_stand_where_they_are_called():
    vectors = torch.arange(6.0).reshape(3, 2)
    found = read("a (bad-hands:1.4), cat", **{"bad-hands": vectors, "bad": torch.zeros(1, 2)})
    assert [(row, at) for row, at, _ in found.fills] == [(0, 2), (0, 3), (0, 4)]
    assert torch.equal(torch.stack([vector for _, _, vector in found.fills]), vectors)
    assert found.ids[0, 2:7].tolist() == [0, 0, 0, COMMA, CAT]
    assert found.weights[0, 1:6].tolist() == pytest.approx([1, 1.4, 1.4, 1.4, 1])


def test_a_learned_word_with_signs_is_found_beside_others():
    found = read("a (<cat-toy>:1.2), <cat-toy>,red <cat", **{"<cat-toy>": torch.ones(2, 2), "cat": torch.zeros(1, 2)})
    assert inside(found)[0][1:7] == [0, 0, COMMA, 0, 0, COMMA]
    assert [(at, vector[0].item()) for _, at, vector in found.fills] == [(2, 1), (3, 1), (5, 1), (6, 1), (10, 0)]


def test_a_learned_word_of_a1111_is_not_cut():
    found = read("cat " * 73 + "blob red", blob=torch.ones(4, 2))
    assert inside(found) == [[CAT] * 73, [0, 0, 0, 0, RED]]
    assert [(row, at) for row, at, _ in found.fills] == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_learned_word_moves_with_its_comma():
    found = read("cat " * 60 + ", blob " + "red " * 20, blob=torch.ones(2, 2))
    assert inside(found) == [[CAT] * 60 + [COMMA], [0, 0] + [RED] * 20]
    assert [(row, at) for row, at, _ in found.fills] == [(1, 1), (1, 2)]


def test_comfy_calls_learned_words_by_name():
    blob = torch.ones(2, 2)
    for text in ("cat embedding:blob, red", "cat embedding:blob.safetensors, red"):
        assert inside(read(text, "comfy", blob=blob)) == [[CAT, 0, 0, COMMA, RED]]
    assert inside(read("embedding:blob", "comfy", blob=blob)) == [[0, 0]]
    assert read("(embedding:blob:1.2)", "comfy", blob=blob).weights[0, :4].tolist() == pytest.approx([1, 1.2, 1.2, 1])
    assert read("a blob", "comfy", blob=blob).fills == ()
    with pytest.raises(BadInput, match="no embedding is called 'blub': did you mean blob"):
        read("embedding:blub", "comfy", blob=blob)
    with pytest.raises(BadInput, match="no embedding is called 'blub': there are none"):
        read("embedding:blub", "comfy")


def test_refusals():
    with pytest.raises(BadInput, match="'blob' has 76 vectors, and a row holds 75"):
        read("cat", blob=torch.ones(76, 2))
    with pytest.raises(UnknownName, match="no prompt syntax is called 'x'"):
        chunks([Piece("a")], CLIP, "x")


def test_a_line_has_no_start_and_is_cut():
    class Letters:
        pad, length = 0, 8

        def ids(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

        def row(self, ids: list[int]) -> list[int]:
            return [*ids, 1, *[0] * (7 - len(ids))]

    found = line([Piece("ab"), BREAK, Piece("c", 1.5)], Letters())
    assert found.ids.tolist() == [[97, 98, 99, 1, 0, 0, 0, 0]]
    assert found.weights.tolist() == [[1, 1, 1.5, 1, 1, 1, 1, 1]]
    assert line([Piece("abcdefghij", 2.0)], Letters()).ids.tolist() == [[97, 98, 99, 100, 101, 102, 103, 1]]
    assert line([Piece("a embedding:b")], Letters(), "comfy").ids[0, :3].tolist() == [97, 32, 1]


PROMPTS = st.lists(
    st.sampled_from(["cat ", "red, ", "(red:1.2) ", " BREAK ", "extraordinarily ", "blob "]), max_size=150
)


@given(words=PROMPTS, syntax=st.sampled_from(["a1111", "comfy"]), vectors=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_no_token_is_lost_or_doubled(words, syntax, vectors):
    text = "".join(words).replace("blob", "embedding:blob" if syntax == "comfy" else "blob")
    pieces = parse(text, syntax).parts[0].at(0, 1)
    found = chunks(pieces, CLIP, syntax, {"blob": torch.ones(vectors, 2)})
    flat = [token for row in inside(found) for token in row]
    want = []
    for piece in pieces:
        if isinstance(piece, Piece):
            for i, part in enumerate(piece.text.replace("embedding:", "").split("blob")):
                want += ([0] * vectors if i else []) + CLIP.ids(part)
    assert flat == want
    assert len(found.fills) == vectors * words.count("blob ")
    assert found.ids.shape == found.weights.shape == (len(found), 77)
    assert all(found.ids[row, at] == 0 for row, at, _ in found.fills)


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(2, 77, 5, generator=torch.Generator().manual_seed(3)) + 0.3


def test_a1111_keeps_the_mean_of_each_row(states):
    weights = torch.ones(2, 77)
    weights[0, 3:6] = 1.4
    found = weigh_a1111(states, weights)
    torch.testing.assert_close(found.mean((1, 2)), states.mean((1, 2)))
    assert torch.equal(found[1], states[1])
    scale = found[0, 0] / states[0, 0]
    torch.testing.assert_close(scale, scale[:1].expand(5))
    torch.testing.assert_close(found[0, 3], states[0, 3] * 1.4 * scale)


def test_a1111_by_hand():
    found = weigh_a1111(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[1.0, 2.0]]))  # mean 2, then 3.5
    torch.testing.assert_close(found, torch.tensor([[[1.0], [6.0]]]) * 2 / 3.5)


def test_comfy_moves_away_from_the_empty_prompt(states):
    empty = torch.randn(1, 77, 5, generator=torch.Generator().manual_seed(4))
    weights = torch.ones(2, 77)
    weights[0, 3], weights[1, 4], weights[1, 5] = 1.5, 0.0, -1.0
    found = weigh_comfy(states, weights, empty)
    torch.testing.assert_close(found[0, 3], empty[0, 3] + 1.5 * (states[0, 3] - empty[0, 3]))
    torch.testing.assert_close(found[1, 4], empty[0, 4])
    torch.testing.assert_close(found[1, 5], 2 * empty[0, 5] - states[1, 5])
    assert torch.equal(found[weights == 1], states[weights == 1])
    assert torch.equal(weigh_comfy(states, weights, empty[0]), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_weights_states_stay_and_types_too(states, dtype):
    z, ones = states.to(dtype), torch.ones(2, 77)
    for found in (weigh_a1111(z, ones), weigh_comfy(z, ones, z[:1] * 0)):
        assert found.dtype == dtype and torch.equal(found, z)

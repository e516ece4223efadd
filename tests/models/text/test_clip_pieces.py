"""CLIP's tokens against the reference that reads the files we write."""

import time

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.models.text import clip_pieces
from limner.models.text.clip_pieces import END, START, ClipPieces, clip_files, merges, vocabulary

TEXTS = [
    "", "a red apple", "A RED   apple\n\ton a Table", "it's we'll they've don't I'm he'd you're", "3.14 x 2,000",
    "café naïve façade", "cafe\u0301", "über-straße", "日本語の猫", "привет мир", "🎉🐈 party", "x" * 300,
    "(a:1.2), [b]|{c}", "<|endoftext|> hidden <|startoftext|>", "<|ENDOFTEXT|>", "\u00a0nbsp\u2003em\u200bzero",
    "½ ² Ⅷ ١٢٣", "İstanbul ǅ ﬁ", "\x00\x07\x7f", "<lora:x:1>", "masterpiece, 8k uhd, dslr, film grain, Fuji XT3 " * 6,
]  # fmt: skip
REFERENCE = transformers.CLIPTokenizer(vocab=vocabulary(), merges=list(merges()))


@pytest.fixture(scope="module", params=[END, 0], ids=["clip-l", "openclip"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, text in clip_files(request.param).items():
        (folder / name).write_text(text, encoding="utf-8")
    return ClipPieces(request.param), transformers.CLIPTokenizer.from_pretrained(folder)


def theirs_of(theirs, texts: list[str]) -> torch.Tensor:
    return theirs(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids


def test_the_vocabulary_is_clips():
    assert len(merges()) == 48894
    assert (len(vocabulary()), max(vocabulary().values())) == (49408, 49407)
    assert vocabulary()["!"] == 0 and vocabulary()[",</w>"] == 267 and vocabulary()["<|startoftext|>"] == 49406
    assert merges()[0] == ("i", "n") and merges()[-1] == ("jeky", "ll</w>")


def test_known_words_have_their_published_ids():
    assert ClipPieces()(["a photo of a cat"])[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]


def test_every_text_is_read_as_the_reference_reads_it(pair):
    ours, theirs = pair
    assert torch.equal(ours(TEXTS), theirs_of(theirs, TEXTS))


def test_the_reference_takes_our_pad_and_length(pair):
    ours, theirs = pair
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.model_max_length) == (ours.pad, END, 77)


@given(text=st.text(max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_text_is_read_as_the_reference_reads_it(text):
    assert ClipPieces().ids(text) == REFERENCE(text, add_special_tokens=False).input_ids


def test_a_row_has_borders_and_is_padded():
    row = ClipPieces(0).row([5, 6])
    assert row[:5] == [START, 5, 6, END, 0] and len(row) == 77
    assert ClipPieces()(["cat " * 100])[0, -2:].tolist() == [2368, END]


def test_it_is_built_when_first_asked_for_and_quickly():
    for cached in (clip_pieces.merges, clip_pieces.vocabulary, clip_pieces._tokenizer):
        cached.cache_clear()
    ClipPieces()
    assert not clip_pieces.merges.cache_info().currsize
    begin = time.process_time()
    ClipPieces().ids("cat")
    first = time.process_time() - begin
    assert first < 1.0  # under 0.2 s on an idle core; the bound forgives a busy machine
    assert clip_pieces._tokenizer() is clip_pieces._tokenizer()

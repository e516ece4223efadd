"""T5's tokens from a tokenizer.json that the reference wrote."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from limner.errors import BadInput
from limner.models.text.chunks import line
from limner.models.text.prompt import parse
from limner.models.text.t5_pieces import T5Pieces, t5_file

WORDS = ["▁", "▁a", "▁red", "▁cat", "s", "c", "a", "t", "r", "e", "d", ",", "▁ca", "ts"]
TEXTS = ["", "a red cat", "a  red\ncats, cat", "A red dog?", "red " * 40, "</s> a", "<extra_id_0>"]


@pytest.fixture(scope="module")
def theirs():
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -1.0 - i / 10) for i, w in enumerate(WORDS))]
    return transformers.T5Tokenizer(vocab=vocabulary)


@pytest.fixture(scope="module")
def json(theirs, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    return (folder / t5_file(entry.name for entry in folder.iterdir())).read_text(encoding="utf-8")


@pytest.mark.parametrize("length", [16, 77])
def test_every_text_is_read_as_the_reference_reads_it(json, theirs, length):
    want = theirs(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids
    assert torch.equal(T5Pieces(json, length)(TEXTS), want)


def test_weights_stand_at_their_tokens(json):
    found = line(parse("a (red:1.5) cat").parts[0].at(0, 1), T5Pieces(json, 8))
    assert found.ids.tolist() == T5Pieces(json, 8)(["a red cat"]).tolist()
    assert found.weights.tolist() == [[1, 1.5, 1, 1, 1, 1, 1, 1]]


def test_which_file_is_read():
    assert t5_file(["spiece.model", "tokenizer.json"]) == "tokenizer.json"
    with pytest.raises(BadInput, match=r"spiece.model is not read: put beside it the tokenizer.json"):
        t5_file(["spiece.model", "tokenizer_config.json"])
    with pytest.raises(BadInput, match=r"has a tokenizer.json; found: nothing"):
        t5_file([])


def test_other_files_are_refused():
    with pytest.raises(BadInput, match=r"tokenizer.json of T5 is not readable"):
        T5Pieces("{")
    other = Tokenizer(Unigram([("<pad>", 0.0), ("a", 0.0)], unk_id=0))
    with pytest.raises(BadInput, match=r"has 2 tokens; T5's has at most 32128, with </s> and <pad>"):
        T5Pieces(other.to_str())

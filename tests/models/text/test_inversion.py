"""Learned words of the published kinds, and what is none."""

import pytest
import torch

from limner.errors import BadInput
from limner.models.text.inversion import read_inversion, vectors_for

ONES = torch.ones


@pytest.mark.parametrize("width", [768, 1024, 1280])
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("emb_params", ("neg",)),
        ("string_to_param.*", ("neg",)),
        ("<cat-toy>", ("<cat-toy>", "neg")),
        ("neg", ("neg",)),
    ],
)
def test_one_tensor(key, words, width):
    found = read_inversion({key: torch.full((3, width), 0.5, dtype=torch.float16)}, "neg")
    assert found.words == words and len(found) == 3
    assert found.vectors[width].shape == (3, width) and found.vectors[width].dtype == torch.float32
    assert set(vectors_for([found], width)) == set(words)


def test_a_single_vector_may_come_without_its_count():
    assert read_inversion({"<x>": ONES(768)}, "x").vectors[768].shape == (1, 768)


def test_both_encoders_of_sdxl():
    found = read_inversion({"clip_l": ONES(2, 768), "clip_g": 2 * ONES(2, 1280)}, "style")
    assert found.words == ("style",) and len(found) == 2
    assert vectors_for([found], 1280)["style"].unique().tolist() == [2]
    assert vectors_for([found], 768)["style"].shape == (2, 768)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({}, "one tensor, or clip_l and clip_g, were expected, not none"),
        ({"a": ONES(1, 768), "b": ONES(1, 768)}, "x is no textual inversion: .* not a, b"),
        ({"clip_l": ONES(2, 768), "clip_g": ONES(3, 1280)}, "2 vectors in clip_l and 3 in clip_g"),
        ({"clip_l": ONES(2, 1280), "clip_g": ONES(2, 768)}, r"x: clip_l has the shape \[2, 1280\]; vectors of 768"),
        ({"emb_params": ONES(2, 512)}, r"\[2, 512\]; vectors of 768 \(CLIP-L\) or 1024 \(OpenCLIP-H\) or 1280"),
        ({"emb_params": ONES(2, 3, 768)}, r"the shape \[2, 3, 768\]"),
        ({"emb_params": torch.tensor(1.0)}, r"the shape \[\]"),
        ({"emb_params": ONES(76, 768)}, "76 vectors; a prompt has room for 1 to 75"),
        ({"emb_params": ONES(0, 768)}, "0 vectors"),
        ({"emb_params": ONES(1, 768, dtype=torch.int64)}, "torch.int64"),
        ({"emb_params": ONES(1, 768) / 0}, "not all finite"),
    ],
)
def test_what_is_none_is_refused(tensors, sentence):
    with pytest.raises(BadInput, match=sentence):
        read_inversion(tensors, "x")


def test_words_for_another_encoder_and_doubles_are_refused():
    one, two = read_inversion({"<x>": ONES(768)}, "one"), read_inversion({"<x>": ONES(768)}, "two")
    with pytest.raises(BadInput, match="the embedding '<x>' was made for CLIP-L, not for OpenCLIP-H"):
        vectors_for([one], 1024)
    with pytest.raises(BadInput, match="two embeddings are called '<x>'"):
        vectors_for([one, two], 768)

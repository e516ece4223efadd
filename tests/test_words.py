"""Words as the text towers of published families read them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from limner.errors import BadInput
from limner.models.text.chunks import weigh_a1111, weigh_comfy
from limner.models.text.clip_pieces import ClipPieces
from limner.models.text.inversion import Inversion
from limner.pipeline import Model, load
from limner.place import find_place
from limner.tasks.run import begin, paint, prepare, run
from limner.weights.io import write_tensors
from limner.words import Reading

pytestmark = pytest.mark.filterwarnings("ignore:.*holds T5 but no tokenizer:UserWarning")  # of the tiny sd3

CPU = find_place("cpu", torch.float32)
A1111, COMFY = Reading("a1111"), Reading("comfy")
LONG = ", ".join(["a red apple on a table"] * 20)  # 139 tokens: two rows


@pytest.fixture(scope="module")
def painter(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    return cache(lambda name: load(str(tiny_checkpoint(name)), CPU))


def told(model: Model, prompt: str, how: Reading = A1111) -> torch.Tensor:
    return model.encode([prompt], how=how).tokens[0]  # L D


def picture(model: Model, prompt: str, **wishes: object) -> torch.Tensor:
    small = {"width": 64, "height": 64, "steps": 4, "sampler": "euler", "schedule": "trailing", "seed": 3}
    return paint(model, begin(model, prompt=prompt, **small | wishes))[0]


def weights_of(words: str, weight: float, before: int) -> torch.Tensor:
    """1 77: one weight for the tokens of some words, which stand behind the start and `before` others."""
    weights = torch.ones(1, 77)
    weights[0, 1 + before : 1 + before + len(ClipPieces().ids(words))] = weight
    return weights


def test_weights_are_a1111s_formula_on_the_states(painter):
    model = painter("sd15")
    found, plain = told(model, "a (red:1.3) apple"), told(model, "a red apple")
    z, w = plain[None], weights_of("red", 1.3, before=1)
    y = z * w[..., None]
    assert torch.allclose(found, (y * z.mean() / y.mean())[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(found, weigh_a1111(z, w)[0])
    assert not torch.allclose(found, plain, atol=1e-2)
    assert torch.allclose(told(model, "a ((red)) apple"), told(model, "a (red:1.21) apple"), atol=1e-5)


def test_weights_are_comfys_formula_on_the_states(painter):
    model = painter("sd15")
    plain, empty = told(model, "a red apple", COMFY), told(model, "", COMFY)
    w = weights_of("red", 1.3, before=1)
    found = told(model, "a (red:1.3) apple", COMFY)
    assert torch.allclose(found, empty + w[0, :, None] * (plain - empty), rtol=1e-5, atol=1e-6)
    assert torch.equal(found, weigh_comfy(plain[None], w, empty)[0])


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sd3"])
def test_a_long_prompt_is_read_in_rows_of_77(family, painter):
    model = painter(family)
    rows = 77 * 2 + (256 if family == "sd3" else 0)
    states = told(model, LONG)
    assert states.shape[0] == rows
    short = told(model, "a red apple")
    assert short.shape[0] == rows - 77


def test_each_row_is_read_alone_and_the_first_is_pooled(painter):
    model = painter("sdxl")
    words = model.encode(["a red apple BREAK a blue house"], how=A1111)
    first, second = (model.encode([each], how=A1111) for each in ("a red apple", "a blue house"))
    assert torch.allclose(words.tokens, torch.cat([first.tokens, second.tokens], dim=1), atol=1e-6)
    assert torch.allclose(words.pooled, first.pooled, atol=1e-6)


def test_of_prompts_read_together_the_shorter_is_filled_with_empty_rows(painter):
    model = painter("sd15")
    both = model.encode(["a red apple", LONG], how=A1111).tokens  # 2 154 D
    assert torch.allclose(both[0], torch.cat([told(model, "a red apple"), told(model, "")]), atol=1e-6)
    assert torch.allclose(both[1], told(model, LONG), atol=1e-6)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sdxl-refiner", "sd3"])
def test_an_empty_negative_is_zeros_for_sdxl_alone(family, painter):
    model = painter(family)
    empty = model.encode([""], how=replace(A1111, negative=True))
    said = model.encode(["a blue house"], how=replace(A1111, negative=True))
    assert bool(said.tokens.any())
    assert bool(empty.tokens.any()) == (family != "sdxl")
    if empty.pooled is not None and "text_2" in model.family.nets:
        assert bool(empty.pooled.any()) == (family != "sdxl")
    assert bool(model.encode([""], how=A1111).tokens.any())  # an empty prompt is read; only a negative one is not


def test_sizes_are_told_height_first(painter):
    how = Reading(size=(640, 512))
    assert painter("sdxl").encode(["x", "y"], how=how).sizes.tolist() == [[512, 640, 0, 0, 512, 640]] * 2
    refiner = painter("sdxl-refiner")
    assert refiner.encode(["x"], how=how).sizes.tolist() == [[512, 640, 0, 0, 6.0]]
    assert refiner.encode(["x"], how=replace(how, negative=True)).sizes.tolist() == [[512, 640, 0, 0, 2.5]]
    assert painter("sd15").encode(["x"], how=how).sizes is None
    assert painter("sd3").encode(["x"], how=how).sizes is None


def test_clip_skip_leaves_out_layers(painter):
    model = painter("sdxl")
    found = [told(model, "a red apple", replace(A1111, clip_skip=skip)) for skip in range(4)]
    assert torch.equal(found[0], found[2])  # SDXL was trained with the layer before the last
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[3])
    with pytest.raises(BadInput, match="clip_skip 4 asks for layer 0 of the text tower, which has 1 to 3"):
        told(model, "a red apple", replace(A1111, clip_skip=4))


def test_sd2_takes_the_same_layer_of_a_folder_that_lacks_the_last(painter, tiny_diffusers):
    whole, folder = painter("sd2"), load(str(tiny_diffusers("sd2")), CPU)
    for skip in (0, 2, 3):
        how = replace(A1111, clip_skip=skip)
        assert torch.equal(told(whole, "a red apple", how), told(folder, "a red apple", how))


def test_sd3_without_t5_has_zeros_in_its_place(tiny_checkpoint):
    with pytest.warns(UserWarning, match=r"holds T5 but no tokenizer for it: it paints without"):
        model = load(str(tiny_checkpoint("sd3")), CPU)
    states = told(model, "a red apple")
    assert states.shape == (77 + 256, 256)
    assert not states[77:].any()
    assert not states[:77, 64 + 128 :].any()  # beside CLIP-L's 64 and bigG's 128


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red apple", f"{LONG}"),
        ("a red apple, a blue house", "a red apple BREAK a blue house"),
        ("a red apple", "a red apple AND a blue house"),
        ("a red apple AND a blue house", "a red apple AND a blue house:0.3"),
        ("a red apple", "a [red:blue:0.5] apple"),
        ("a blue apple", "a [red:blue:0.5] apple"),
        ("a [red:blue:0.25] apple", "a [red:blue:0.75] apple"),
        ("a [red|blue] apple", "a red apple"),
        ("a red apple", "a (red:1.5) apple"),
    ],
)
def test_what_is_said_changes_the_picture(one, other, painter):
    model = painter("sd15")
    assert float((picture(model, one) - picture(model, other)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a [red:blue:1.0] apple", "a red apple"),
        ("a [red:blue:0.0] apple", "a blue apple"),
        ("a (red:1.0) apple", "a red apple"),
        ("a \\(red\\) apple", "a \\(red\\)  apple"),
    ],
)
def test_what_says_the_same_paints_the_same(one, other, painter):
    model = painter("sd15")
    assert float((picture(model, one) - picture(model, other)).abs().max()) < 1e-4


def test_an_edit_is_its_two_prompts_one_after_the_other(painter):
    """The estimates of the first half are those of the first prompt alone."""
    model = painter("sd15")
    small = {"width": 64, "height": 64, "steps": 4, "sampler": "euler", "schedule": "trailing", "seed": 3}
    both, first = (
        [step.x0 for step in run(model, begin(model, prompt=prompt, **small))]
        for prompt in ("a [red:blue:0.5] apple", "a red apple")
    )
    same = [torch.equal(mine, other) for mine, other in zip(both, first, strict=True)]
    assert same == [True, True, False, False]


def test_two_prompts_are_composed_by_their_weights(painter):
    """With AND and no weight of its own each pushes away from the negative by the whole scale."""
    model = painter("sd15")
    small = {"width": 64, "height": 64, "steps": 4, "sampler": "euler", "schedule": "trailing", "seed": 3}
    start = prepare(model, begin(model, prompt="a red apple AND a blue house:0.5", cfg_scale=3.0, **small))
    red, blue, none = (
        model.denoiser(model.encode([words], how=A1111)) for words in ("a red apple", "a blue house", "")
    )
    x, t = start.x, 0.7
    want = none(x, t) + 3.0 * ((red(x, t) - none(x, t)) + 0.5 * (blue(x, t) - none(x, t)))
    assert torch.allclose(start.denoiser(x, t), want, rtol=1e-4, atol=1e-4)


def test_a_learned_word_stands_where_its_tokens_would(painter):
    model = painter("sd15")
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    learned = replace(model, learned=(Inversion(("mycat",), {64: vectors}),))
    found = told(learned, "a mycat on a table")
    assert not torch.allclose(found, told(model, "a mycat on a table"), atol=1e-2)
    table = model.nets["text"].text_model["embeddings"]["token_embedding"].weight
    known = replace(model, learned=(Inversion(("mycat",), {64: table[ClipPieces().ids("red apple")].detach()}),))
    assert torch.allclose(told(known, "a mycat on a table"), told(model, "a red apple on a table"), atol=1e-6)
    assert torch.allclose(told(learned, "a red apple"), told(model, "a red apple"), atol=1e-6)


def test_a_learned_word_of_another_width_is_refused(painter):
    wide = replace(painter("sd15"), learned=(Inversion(("mycat",), {768: torch.zeros(1, 768)}),))
    with pytest.raises(BadInput, match="the embedding 'mycat' was made for CLIP-L, not for 64"):
        told(wide, "a mycat")


def test_a_learned_word_comes_from_a_file(tmp_path, tiny_checkpoint):
    write_tensors(tmp_path / "mycat.safetensors", {"emb_params": torch.zeros(1, 768)})
    model = load(str(tiny_checkpoint("sd15")), CPU, embeddings=[str(tmp_path / "mycat.safetensors")])
    assert model.learned[0].words == ("mycat",)
    assert model.learned[0].vectors[768].shape == (1, 768)

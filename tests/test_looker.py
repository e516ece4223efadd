"""Lookers: unit vectors of pictures and words, by the mini model's eye and by CLIP."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import randomised
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from limner.errors import BadInput
from limner.families.seeing import CLIP_WITH_EYES
from limner.image import fitted, from_pil
from limner.looker import clip_looker, find_looker, mini_looker, quick_gelu
from limner.models.clip_vision import ClipWithEyes, with_eyes_config_of
from limner.models.text.clip_pieces import END, START, VOCABULARY, ClipPieces
from limner.pipeline import load
from limner.place import find_place
from limner.weights.io import sha256, write_tensors
from limner.weights.layout import reshaped, translate

CPU = find_place("cpu", torch.float32)
TEXTS = ["a red apple", "Two dogs, in the snow", "", "word " * 74]


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (90, 50), (33, 64)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8), "RGB") for w, h in sizes]


def reference() -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
        bos_token_id=START, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    joint = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    return randomised(CLIPModel(joint))


@pytest.fixture(scope="module")
def theirs() -> CLIPModel:
    return reference()


@pytest.fixture(scope="module")
def files(theirs, tmp_path_factory) -> dict[str, Path]:
    """The same CLIP as a folder in transformers' names, whole and in shards, and as a file in OpenCLIP's."""
    folder = tmp_path_factory.mktemp("clip") / "transformers"
    theirs.save_pretrained(folder)
    theirs.save_pretrained(folder.parent / "shards", max_shard_size="4MB")
    rules = CLIP_WITH_EYES.naming("transformers").reads({})
    state = theirs.state_dict()
    config = with_eyes_config_of(reshaped({name: tuple(value.shape) for name, value in state.items()}, rules))
    net = ClipWithEyes(config)
    net.load_state_dict(translate(state, rules))
    single = folder.parent / "openai.safetensors"
    write_tensors(single, translate(net.state_dict(), CLIP_WITH_EYES.naming("openclip").writes(config), back=True))
    return {"transformers": folder, "shards": folder.parent / "shards", "openclip": single}


@pytest.mark.parametrize("layout", ["transformers", "shards", "openclip"])
def test_clip_sees_and_reads_as_the_reference(layout, files, theirs):
    looker = find_looker(str(files[layout]), CPU)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})(
        images(), return_tensors="pt"
    )["pixel_values"]
    with torch.inference_mode():
        want = theirs(input_ids=ClipPieces()(TEXTS), pixel_values=pixels)
    seen, read = looker.see([from_pil(image) for image in images()]), looker.read(TEXTS)
    assert torch.allclose(read, want.text_embeds, atol=1e-5)
    assert ((seen * want.image_embeds).sum(1) > 0.999).all()  # pictures are resized with other roundings
    assert looker.scale == pytest.approx(float(theirs.logit_scale.detach().exp()))
    assert looker.name == files[layout].stem


@pytest.mark.parametrize("layout", ["transformers", "openclip"])
def test_a_clip_is_found_by_its_path_and_known_by_its_digest(layout, files):
    looker = find_looker(str(files[layout]), CPU)
    file = files[layout] if files[layout].is_file() else files[layout] / "model.safetensors"
    assert looker.digest == sha256(file)


def test_the_minis_eye_looks(tiny_folder):
    model = load(str(tiny_folder), CPU)
    looker = mini_looker(model)
    pictures = [from_pil(image) for image in images()]
    seen, read = looker.see(pictures), looker.read(["a red apple", "a cat"])
    assert seen.shape == (3, 16) and read.shape == (2, 16)
    assert torch.allclose(seen.norm(dim=1), torch.ones(3)) and torch.allclose(read.norm(dim=1), torch.ones(2))
    alone = torch.stack([fitted(image, model.eye.config.pixels) for image in images()])
    want = model.likeness(alone, ["a red apple", "a cat"])
    assert torch.allclose(seen @ read.T, want, atol=1e-4)
    assert looker.scale == pytest.approx(float(model.eye.scale.exp()))
    assert looker.digest == sha256(tiny_folder / "eye.safetensors")
    found = find_looker(str(tiny_folder), CPU)
    assert (found.name, found.digest) == ("tiny", looker.digest)


def test_in_bf16_clip_looks_nearly_the_same(files):
    half, whole = (
        clip_looker(files["openclip"], find_place("cpu", dtype)) for dtype in (torch.bfloat16, torch.float32)
    )
    pictures = [from_pil(image) for image in images()]
    assert ((half.see(pictures) * whole.see(pictures)).sum(1) > 0.999).all()
    assert ((half.read(TEXTS) * whole.read(TEXTS)).sum(1) > 0.999).all()


def test_nothing_gives_no_rows(files, tiny_folder):
    for looker, width in ((clip_looker(files["openclip"], CPU), 24), (mini_looker(load(str(tiny_folder), CPU)), 16)):
        assert looker.see([]).shape == looker.read([]).shape == (0, width)


def test_many_pictures_are_the_same_as_one_by_one(files, monkeypatch):
    looker = clip_looker(files["openclip"], CPU)
    pictures = [from_pil(image) for image in images()]
    whole = looker.see(pictures)
    monkeypatch.setattr("limner.looker.AT_ONCE", 2)
    assert torch.allclose(looker.see(pictures), whole, atol=1e-6)
    assert torch.allclose(torch.cat([looker.see([picture]) for picture in pictures]), whole, atol=1e-6)


def test_a_long_text_is_cut_with_a_word(files):
    looker = clip_looker(files["openclip"], CPU)
    with pytest.warns(UserWarning, match="cut after 75 word pieces"):
        cut = looker.read(["word " * 100])
    assert torch.allclose(cut, looker.read(["word " * 75]), atol=1e-6)


def test_a_model_without_an_eye_is_refused(tiny_checkpoint):
    with pytest.raises(BadInput, match="this sd15 model has no eye"):
        find_looker(str(tiny_checkpoint("sd15")), CPU)


@pytest.mark.parametrize(
    "name,told,quick",
    [
        ("config.json", {"vision_config": {"patch_size": 14, "hidden_act": "gelu"}}, False),
        ("config.json", {"vision_config": {"patch_size": 32}}, True),
        ("config.json", {"patch_size": 14, "hidden_act": "gelu"}, False),
        ("config.json", {"hidden_act": "gelu"}, None),
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 512}}, False),
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}, True),
    ],
)
def test_the_activation_is_read_beside_the_weights(name, told, quick, tmp_path):
    (tmp_path / name).write_text(json.dumps(told))
    assert quick_gelu(tmp_path) is quick
    assert quick_gelu(tmp_path / "model.safetensors") is quick


@pytest.mark.parametrize("name,quick", [("CLIP-ViT-B-32-laion2B-s34B-b79K", False), ("clip-vit-base", None)])
def test_the_activation_goes_with_the_name(name, quick, tmp_path):
    assert quick_gelu(tmp_path / f"{name}.safetensors") is quick

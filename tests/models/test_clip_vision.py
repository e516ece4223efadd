"""CLIP's image tower, and CLIP whole, against transformers', in every layout that is published."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import randomised
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from limner.families.seeing import CLIP_VISION, CLIP_WITH_EYES
from limner.image import from_pil
from limner.models.clip import ClipConfig
from limner.models.clip_vision import (
    ClipVision,
    ClipVisionConfig,
    ClipWithEyes,
    ClipWithEyesConfig,
    config_of,
    prepare_clip,
    with_eyes_config_of,
)
from limner.weights.layout import translate

START, END = 97, 98
SMALL = ClipVisionConfig(width=128, layers=3, heads=2, hidden=96, patch=8, side=32, projection=20)
KINDS = {"openai": SMALL, "openclip": replace(SMALL, quick=False), "sixteenths": replace(SMALL, patch=16, side=64)}
TEXT = ClipConfig(vocabulary=99, width=64, layers=2, heads=1, hidden=96, projection=20)
BOTH = ClipWithEyesConfig(TEXT, SMALL)
PUBLISHED = {  # width, layers, hidden, patch -> heads and activation
    "ViT-B/32": ((768, 12, 3072, 32), (12, True)),
    "ViT-B/16": ((768, 12, 3072, 16), (12, True)),
    "ViT-L/14": ((1024, 24, 4096, 14), (16, True)),
    "ViT-H/14": ((1280, 32, 5120, 14), (16, False)),
    "ViT-bigG/14": ((1664, 48, 8192, 14), (16, False)),
}


def their_config(config: ClipVisionConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.side,
        patch_size=config.patch,
        projection_dim=config.projection,
        hidden_act="quick_gelu" if config.quick else "gelu",
    )


def whole() -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=TEXT.vocabulary,
        hidden_size=TEXT.width,
        intermediate_size=TEXT.hidden,
        num_hidden_layers=TEXT.layers,
        num_attention_heads=TEXT.heads,
        projection_dim=TEXT.projection,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
    )
    joint = CLIPConfig(text_config=text.to_dict(), vision_config=their_config(SMALL).to_dict(), projection_dim=20)
    return randomised(CLIPModel(joint))


def near(found: Tensor, want: Tensor) -> bool:
    return found.shape == want.shape and float((found - want).abs().max() / want.abs().max()) < 1e-5


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_vector_and_the_states_are_the_references(kind):
    config = KINDS[kind]
    theirs = randomised(CLIPVisionModelWithProjection(their_config(config)))
    net = ClipVision(config).eval()
    net.load_state_dict(translate(theirs.state_dict(), CLIP_VISION.naming("transformers").reads({})))
    pictures = drawn(2, 3, config.side, config.side)
    want = theirs(pictures, output_hidden_states=True)
    vector, states = net(pictures)
    assert near(vector, want.image_embeds)
    assert near(states, want.hidden_states[-2])


@torch.no_grad()
def test_clip_whole_is_the_reference():
    theirs, net = whole(), ClipWithEyes(BOTH).eval()
    net.load_state_dict(translate(theirs.state_dict(), CLIP_WITH_EYES.naming("transformers").reads({})))
    pictures = drawn(3, 3, 32, 32)
    ids = torch.randint(1, START, (2, 77), generator=torch.Generator().manual_seed(1))
    ids[0, 9:], ids[1, 76] = END, END
    want = theirs(input_ids=ids, pixel_values=pictures)
    seen, read = net.see(pictures), net.read(ids, torch.tensor([9, 76]))
    assert near(seen, want.image_embeds)
    assert near(read, want.text_embeds)
    assert near(net.logit_scale.exp() * seen @ read.T, want.logits_per_image)


@pytest.mark.parametrize("layout", ["transformers", "openclip"])
def test_names_go_there_and_back(layout):
    net, naming = randomised(ClipWithEyes(BOTH)), CLIP_WITH_EYES.naming(layout)
    theirs = translate(net.state_dict(), naming.writes(BOTH), back=True)
    assert all(mark in theirs for mark in naming.marks)
    again = translate(theirs, naming.reads({}))
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())
    alone = translate(theirs, CLIP_VISION.naming(layout).reads({}))
    assert alone.keys() == net.vision.state_dict().keys()
    assert all(torch.equal(value, alone[name]) for name, value in net.vision.state_dict().items())


def test_openclips_names_are_those_that_are_published():
    net = ClipWithEyes(BOTH)
    theirs = translate(net.state_dict(), CLIP_WITH_EYES.naming("openclip").writes(BOTH), back=True)
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    assert shapes["visual.proj"] == (128, 20)
    assert shapes["visual.positional_embedding"] == (17, 128)
    assert shapes["visual.transformer.resblocks.2.attn.in_proj_weight"] == (384, 128)
    assert shapes["transformer.resblocks.1.attn.in_proj_bias"] == (192,)
    assert shapes["text_projection"] == (64, 20)
    assert {"visual.class_embedding", "visual.ln_pre.bias", "visual.ln_post.weight", "logit_scale"} <= shapes.keys()
    block = {name.split(".", 4)[4] for name in shapes if name.startswith("visual.transformer.resblocks.0.")}
    parts = ("attn.in_proj_", "attn.out_proj.", "ln_1.", "ln_2.", "mlp.c_fc.", "mlp.c_proj.")
    assert block == {part + kind for part in parts for kind in ("weight", "bias")}


def test_names_and_shapes_tell_the_config():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in ClipWithEyes(BOTH).state_dict().items()}
    assert with_eyes_config_of(shapes) == BOTH


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_towers_are_told_from_shapes(name):
    (width, layers, hidden, patch), (heads, quick) = PUBLISHED[name]
    config = ClipVisionConfig(width, layers, heads, hidden, patch, 224, 512, quick)
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in ClipVision(config).state_dict().items()}
    assert config_of(shapes) == config


@pytest.mark.parametrize("size", [(224, 224), (640, 480), (333, 517), (97, 61), (50, 301), (3, 2)])
def test_pictures_are_prepared_as_the_reference_does(size):
    width, height = size
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(rough, "RGB").resize(size, Image.Resampling.BILINEAR)
    want = torch.from_numpy(CLIPImageProcessorPil()(image, return_tensors="np")["pixel_values"][0])
    found = prepare_clip(from_pil(image), 224)
    assert found.shape == want.shape
    apart = (found - want).abs() * 0.27  # in levels of the picture, of which 8 bits have steps of 1/255
    assert float(apart.max()) < 2.1 / 255
    assert float(apart.mean()) < 0.3 / 255  # Pillow rounds between its two passes


def test_clear_pixels_are_seen_white():
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    found = prepare_clip(torch.zeros(4, 20, 30), 32)
    assert torch.allclose(found, white[:, None, None].expand(3, 32, 32), atol=1e-6)

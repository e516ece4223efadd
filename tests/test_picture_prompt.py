"""Picture prompts: from files and a picture to what a UNet attends to, as the reference pipeline makes them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import TINY, randomised
from tests.models.test_ip_adapter import made_for, near, nested
from tests.models.test_unet import case, ours, reference
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from limner.errors import BadInput, BadWeights
from limner.image import from_pil
from limner.models.clip_vision import ClipVision, ClipVisionConfig
from limner.models.ip_adapter import IpAdapter
from limner.models.unet import UnetConfig
from limner.picture_prompt import Prompter, find_prompter, picture_prompt
from limner.place import find_place
from limner.weights.io import write_tensors

CPU = find_place("cpu", torch.float32)
UNET: UnetConfig = TINY["sd15"]["denoiser"]
WIDTHS = {"plain": 24, "plus": 128, "full": 128}  # of the vector, and of the states


def adapter_for(kind: str, unet: UnetConfig = UNET) -> IpAdapter:
    return randomised(IpAdapter(replace(made_for(unet, kind), seen=WIDTHS[kind])))


def tower(projection: int = 24, width: int = 128) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8, projection_dim=projection, hidden_act="gelu",
    )  # fmt: skip
    return randomised(CLIPVisionModelWithProjection(config))


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "RGB")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """As they are published: adapters in a folder, the image encoder in a folder beside them."""
    tower().save_pretrained(tmp_path / "models" / "image_encoder")
    for kind in WIDTHS:
        write_tensors(tmp_path / "models" / f"{kind}.safetensors", adapter_for(kind).state_dict())
    return tmp_path / "models"


@pytest.mark.parametrize("kind", WIDTHS)
@torch.no_grad()
def test_a_picture_becomes_what_the_reference_makes_of_it(kind, files):
    prompter = find_prompter(files / f"{kind}.safetensors", None, CPU)
    positive, negative = picture_prompt(prompter, from_pil(image()), UNET, 0.6)
    theirs = reference(UNET)
    net = ours(theirs, UNET)
    theirs._load_ip_adapter_weights([nested(adapter_for(kind))], low_cpu_mem_usage=False)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(image(), return_tensors="pt")["pixel_values"]
    both = tower()(torch.cat([pixels, torch.zeros_like(pixels)]), output_hidden_states=True)
    seen = both.hidden_states[-2] if kind != "plain" else both.image_embeds * torch.tensor([[1.0], [0.0]])
    x, t, cond = case(UNET, (8, 8))
    for row, found in enumerate((positive, negative)):
        told = cond.row(row)
        added = {"image_embeds": [seen[row : row + 1, None]]}
        want = theirs(x[:1], t[:1], told.tokens, added_cond_kwargs=added).sample
        assert near(net(x[:1], t[:1], replace(told, seen=(found,))), want)


def test_in_bf16_it_says_nearly_the_same(files):
    half, whole = (
        picture_prompt(
            find_prompter(files / "plus.safetensors", None, find_place("cpu", dtype)), from_pil(image()), UNET
        )[0]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert all(
        float((a - b).norm() / b.norm()) < 0.02 and a.dtype == torch.float32 for a, b in zip(half, whole, strict=True)
    )


def test_another_tower_can_be_named(files, tmp_path):
    tower(24, 256).save_pretrained(tmp_path / "other")
    assert find_prompter(files / "plain.safetensors", tmp_path / "other", CPU).eyes.config.width == 256
    with pytest.raises(BadInput, match="reads states 128 wide, and the image encoder gives 256"):
        find_prompter(files / "plus.safetensors", tmp_path / "other", CPU)


def test_the_tower_that_fits_is_found(files, tmp_path):
    """SDXL's folder has a larger one of its own, and some of its adapters are made for that of the folder models."""
    tower(48, 128).save_pretrained(tmp_path / "sdxl_models" / "image_encoder")
    file = tmp_path / "sdxl_models" / "plain.safetensors"
    write_tensors(file, adapter_for("plain").state_dict())
    assert find_prompter(file, None, CPU).eyes.config.projection == 24
    write_tensors(file, randomised(IpAdapter(replace(made_for(UNET, "plain"), seen=48))).state_dict())
    assert find_prompter(file, None, CPU).eyes.config.projection == 48


def test_without_a_tower_it_is_said_where_one_belongs(tmp_path, monkeypatch):
    monkeypatch.setattr("limner.picture_prompt.home", lambda: tmp_path / "store")
    file = tmp_path / "plain.safetensors"
    write_tensors(file, adapter_for("plain").state_dict())
    with pytest.raises(BadInput, match=r"needs the image encoder that it was trained with, a CLIP, as .*image_encoder"):
        find_prompter(file, None, CPU)


def test_what_is_no_adapter_is_refused(tiny_checkpoint):
    with pytest.raises(BadWeights, match="ip-adapter"):
        find_prompter(tiny_checkpoint("sd15"), None, CPU)


def test_another_unet_is_refused_before_anything_is_computed():
    eyes = ClipVision(ClipVisionConfig(width=64, layers=1, heads=1, hidden=64, patch=8, side=32, projection=24))
    prompter = Prompter(adapter_for("plain"), eyes, CPU)
    with pytest.raises(BadInput, match="made for a UNet of context 64, the model's has 192"):
        picture_prompt(prompter, torch.ones(4, 9, 9), TINY["sdxl"]["denoiser"])

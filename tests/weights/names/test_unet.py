"""Names of the UNet: diffusers' at the published sizes fill ours, and go back with the same bits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import nn

from limner.errors import BadWeights
from limner.models.unet import Unet, UnetConfig, config_of
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.unet import diffusers

SD15 = UnetConfig()
SD2 = replace(SD15, context=1024, heads=0, linear=True)
SDXL = replace(
    SD2, multiples=(1, 2, 4), depths=(0, 2, 10), middle=10, context=2048, vector=1280 + 6 * 256
)  # fmt: skip
REFINER = UnetConfig(
    width=384, depths=(0, 4, 4, 0), middle=4, context=1280, heads=0, linear=True, vector=1280 + 5 * 256
)
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP = "CrossAttnUpBlock2D", "UpBlock2D"
XL: dict[str, Any] = {
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
}  # fmt: skip
PUBLISHED: dict[str, tuple[UnetConfig, int, int, dict[str, Any]]] = {  # ours, tensors, parameters, their config.json
    "sd15": (SD15, 686, 859_520_964, {"cross_attention_dim": 768, "attention_head_dim": 8}),
    "sd15 inpaint": (
        replace(SD15, channels=9), 686, 859_535_364,
        {"cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 9},
    ),
    "sd2": (
        SD2, 686, 865_910_724,
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    ),
    "sdxl": (
        SDXL, 1680, 2_567_463_684,
        {
            "block_out_channels": [320, 640, 1280], "down_block_types": [PLAIN, CROSS, CROSS],
            "up_block_types": [UP_CROSS, UP_CROSS, UP], "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
            "projection_class_embeddings_input_dim": 2816, **XL,
        },
    ),
    "sdxl-refiner": (
        REFINER, 1220, 2_259_526_660,
        {
            "block_out_channels": [384, 768, 1536, 1536], "down_block_types": [PLAIN, CROSS, CROSS, PLAIN],
            "up_block_types": [UP, UP_CROSS, UP_CROSS, UP], "transformer_layers_per_block": 4,
            "attention_head_dim": [6, 12, 24, 24], "cross_attention_dim": 1280,
            "projection_class_embeddings_input_dim": 2560, **XL,
        },
    ),
}  # fmt: skip


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config, tensors, parameters, told = PUBLISHED[name]
    with torch.device("meta"):
        theirs, ours = UNet2DConditionModel(**told), Unet(config)
    rules = diffusers(config.blocks, config.depths)
    found = reshaped(shapes_of(theirs), rules)
    assert account(found, shapes_of(ours), name) == []
    assert config_of(found) == config
    assert reshaped(found, rules, back=True) == shapes_of(theirs)
    assert len(found) == tensors
    assert sum(value.numel() for value in ours.parameters()) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_reference_reads_our_names_as_a_published_file(name):
    config, _, _, told = PUBLISHED[name]
    with torch.device("meta"):
        theirs, ours = UNet2DConditionModel(**told), Unet(config)
    state = {f"model.diffusion_model.{key}": value for key, value in ours.state_dict().items()}
    made = convert_ldm_unet_checkpoint(state, dict(theirs.config))
    assert {key: tuple(value.shape) for key, value in made.items()} == shapes_of(theirs)


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_bits_are_the_same_there_and_back_and_where_the_reference_puts_them(name):
    small = replace(PUBLISHED[name][0], width=32, context=8)
    small = replace(small, vector=16 if small.vector else 0, depths=tuple(min(d, 2) for d in small.depths), middle=2)
    small = small if name == "sdxl" else replace(small, middle=1)
    torch.manual_seed(0)
    with torch.device("meta"):
        ours = {key: torch.randn(value.shape, device="cpu") for key, value in Unet(small).state_dict().items()}
    rules = diffusers(small.blocks, small.depths)
    theirs = translate(ours, rules, back=True)
    again = translate(theirs, rules)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], value) for key, value in ours.items())
    told = dict(PUBLISHED[name][3]) | {"layers_per_block": 2, "class_embed_type": None}
    state = {f"model.diffusion_model.{key}": value for key, value in ours.items()}
    with torch.device("meta"):
        made = convert_ldm_unet_checkpoint(state, dict(UNet2DConditionModel(**told).config))
    assert made.keys() == theirs.keys()
    assert all(torch.equal(made[key], value) for key, value in theirs.items())


def test_the_published_names_are_ours():
    with torch.device("meta"):
        sd15, sdxl = Unet(SD15).state_dict(), Unet(SDXL).state_dict()
    for name, shape in {
        "time_embed.0.weight": (1280, 320),
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.bias": (1280,),
        "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        "out.2.weight": (4, 320, 3, 3),
    }.items():
        assert tuple(sd15[name].shape) == shape, name
    assert tuple(sdxl["label_emb.0.0.weight"].shape) == (1280, 2816)
    assert tuple(sdxl["input_blocks.8.1.transformer_blocks.9.norm3.bias"].shape) == (1280,)
    assert tuple(sdxl["output_blocks.2.2.conv.weight"].shape) == (1280, 1280, 3, 3)


def test_a_name_of_another_network_is_refused():
    with pytest.raises(BadWeights, match="1 names match no rule"):
        reshaped({"down_blocks.9.resnets.0.norm1.weight": (2,)}, diffusers(2, SD15.depths))

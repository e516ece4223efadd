"""ControlNets against the field's reference, alone and inside a whole UNet, and their own refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from tests.conftest import randomised
from tests.models.test_unet import KINDS, asked, case, ours, reference
from torch import Tensor

from limner.models.controlnet import ControlNet, ControlNetConfig, config_of
from limner.types import Cond
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.controlnet import diffusers

HINT = (8, 16, 24, 32)
CONTROLS = {name: ControlNetConfig(**vars(KINDS[name]) | {"out": 0}, hint=HINT) for name in ("sd15", "sd2", "sdxl")}
CONTROLS["sdxl mid"] = replace(CONTROLS["sdxl"], depths=(0, 1, 1), middle=1)
CONTROLS["sdxl small"] = replace(CONTROLS["sdxl"], depths=(0, 0, 0), middle=0, context=0, heads=8, linear=False)
PUBLISHED = {  # config, tensors and parameters of the released files
    "sd15": (ControlNetConfig(out=0), 340, 361_279_120),
    "sdxl": (
        ControlNetConfig(
            multiples=(1, 2, 4), depths=(0, 2, 10), middle=10, context=2048, heads=0, linear=True, vector=2816
        ),
        844, 1_251_014_160,
    ),
}  # fmt: skip


def their_config(config: ControlNetConfig) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if config.vector:
        told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        told["projection_class_embeddings_input_dim"] = config.vector
    return {
        "block_out_channels": tuple(config.width * m for m in config.multiples),
        "layers_per_block": config.blocks,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in config.depths),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if config.middle else "UNetMidBlock2D",
        "cross_attention_dim": config.context or 40,
        "attention_head_dim": config.heads or tuple(config.width * m // 64 for m in config.multiples),
        "transformer_layers_per_block": [depth or config.middle or 1 for depth in config.depths],
        "use_linear_projection": config.linear,
        "norm_num_groups": config.groups,
        "conditioning_embedding_out_channels": config.hint,
        **told,
    }


def control_reference(config: ControlNetConfig) -> ControlNetModel:
    return randomised(ControlNetModel(**their_config(config)), seed=5)


def our_control(theirs: ControlNetModel, config: ControlNetConfig) -> ControlNet:
    net = ControlNet(config).eval()
    net.load_state_dict(translate(theirs.state_dict(), diffusers(config.blocks, config.depths)))
    return net


def hint_for(x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    return torch.rand(len(x), 3, 8 * h, 8 * w, generator=torch.Generator().manual_seed(3))


def their_answer(
    theirs: ControlNetModel, x: Tensor, t: Tensor, cond: Cond, hint: Tensor
) -> tuple[list[Tensor], Tensor]:
    added = {} if cond.sizes is None else {"text_embeds": cond.pooled, "time_ids": cond.sizes}
    sides, centre = theirs(x, t, cond.tokens, hint, added_cond_kwargs=added, return_dict=False)
    return list(sides), centre


def off(found: Tensor, want: Tensor) -> float:
    assert found.shape == want.shape
    return float((found - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("kind", CONTROLS)
@torch.no_grad()
def test_it_answers_as_the_reference(kind):
    config = CONTROLS[kind]
    theirs = control_reference(config)
    x, t, cond = case(config)
    sides, centre = their_answer(theirs, x, t, cond, hint_for(x))
    found = our_control(theirs, config)(x, t, cond, hint_for(x))
    assert len(found) == len(sides) + 1
    assert max(off(mine, want) for mine, want in zip(found, [*sides, centre], strict=True)) < 1e-5


@pytest.mark.parametrize("kind", CONTROLS)
@torch.no_grad()
def test_a_whole_unet_is_steered_as_the_reference_is(kind):
    config, unet = CONTROLS[kind], KINDS[kind.partition(" ")[0]]
    theirs, their_control = reference(unet), control_reference(config)
    x, t, cond = case(unet)
    sides, centre = their_answer(their_control, x, t, cond, hint_for(x))
    added = {} if cond.sizes is None else {"text_embeds": cond.pooled, "time_ids": cond.sizes}
    want = theirs(
        x, t, cond.tokens, added_cond_kwargs=added, down_block_additional_residuals=sides,
        mid_block_additional_residual=centre,
    ).sample  # fmt: skip
    mine = ours(theirs, unet)
    found = mine(x, t, replace(cond, control=our_control(their_control, config)(x, t, cond, hint_for(x))))
    assert off(found, want) < 1e-5
    assert off(mine(x, t, cond), asked(theirs, x, t, cond)) < 1e-5
    assert off(found, asked(theirs, x, t, cond)) > 0.01  # and it is steered


@torch.no_grad()
def test_what_belongs_to_the_unet_alone_does_not_reach_it():
    config = CONTROLS["sd15"]
    net = our_control(control_reference(config), config)
    x, t, cond = case(config)
    more = replace(cond, image=x, hints=(x,), control=(x,), seen=((x, x),))
    pairs = zip(net(x, t, cond, hint_for(x)), net(x, t, more, hint_for(x)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match="takes 4 channels, not 8"):
        net(torch.cat([x, x], 1), t, cond, hint_for(x))


@pytest.mark.parametrize("kind", CONTROLS)
def test_names_and_shapes_tell_the_config(kind):
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in ControlNet(CONTROLS[kind]).state_dict().items()}
    assert config_of(shapes) == CONTROLS[kind]


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config, tensors, parameters = PUBLISHED[name]
    with torch.device("meta"):
        theirs, mine = ControlNetModel(**their_config(config)), ControlNet(config)
    wanted = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in mine.state_dict().items()}
    rules = diffusers(config.blocks, config.depths)
    assert account(reshaped(wanted, rules), shapes, name) == []
    assert reshaped(shapes, rules, back=True) == wanted
    assert config_of(shapes) == config
    assert len(shapes) == tensors
    assert sum(value.numel() for value in mine.parameters()) == parameters


def test_the_published_names_are_ours():
    with torch.device("meta"):
        sd15 = ControlNet(ControlNetConfig()).state_dict()
    for name, shape in {
        "input_hint_block.0.weight": (16, 3, 3, 3),
        "input_hint_block.4.weight": (32, 16, 3, 3),
        "input_hint_block.14.weight": (320, 256, 3, 3),
        "zero_convs.0.0.weight": (320, 320, 1, 1),
        "zero_convs.11.0.bias": (1280,),
        "middle_block_out.0.weight": (1280, 1280, 1, 1),
        "middle_block.2.in_layers.0.weight": (1280,),
        "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        "time_embed.2.bias": (1280,),
    }.items():
        assert tuple(sd15[name].shape) == shape, name


@pytest.mark.parametrize("kind", CONTROLS)
def test_bits_are_the_same_there_and_back(kind):
    config = CONTROLS[kind]
    weights = randomised(ControlNet(config)).state_dict()
    rules = diffusers(config.blocks, config.depths)
    again = translate(translate(weights, rules, back=True), rules)
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], value) for name, value in weights.items())

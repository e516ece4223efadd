"""Names of the autoencoder: diffusers' at the published size fill ours, and go back with the same bits."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import nn

from limner.models.vae import Vae, VaeConfig, config_of
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.vae import ORIGINAL, diffusers

SD15 = VaeConfig()
SD3 = replace(SD15, channels=16, quant=False)
PUBLISHED = {"sd15, sd2, sdxl": (SD15, 248, 83_653_863), "sd3": (SD3, 244, 83_819_683)}
TINY = VaeConfig(width=32, multiples=(1, 1, 2, 2))


def reference(config: VaeConfig) -> AutoencoderKL:
    levels = len(config.multiples)
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=[config.width * m for m in config.multiples],
            latent_channels=config.channels,
            layers_per_block=config.blocks,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            use_quant_conv=config.quant,
            use_post_quant_conv=config.quant,
        )


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def drawn(config: VaeConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device("meta"):
        return {name: torch.randn(value.shape, device="cpu") for name, value in Vae(config).state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config, tensors, parameters = PUBLISHED[name]
    theirs = reference(config)
    with torch.device("meta"):
        ours = Vae(config)
    found = reshaped(shapes_of(theirs), diffusers(4))
    assert account(found, shapes_of(ours), name) == []
    assert config_of(found) == config
    assert reshaped(found, diffusers(4), back=True) == shapes_of(theirs)
    assert len(found) == tensors
    assert sum(value.numel() for value in ours.parameters()) == parameters


@pytest.mark.parametrize("config", [TINY, replace(TINY, channels=16, quant=False)], ids=["4 channels", "16 channels"])
def test_bits_are_the_same_there_and_back_and_where_the_reference_puts_them(config):
    ours = drawn(config)
    theirs = translate(ours, diffusers(4), back=True)
    again = translate(theirs, diffusers(4))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], value) for name, value in ours.items())
    state = {f"first_stage_model.{name}": value for name, value in ours.items()}
    made = convert_ldm_vae_checkpoint(state, dict(reference(config).config))
    assert made.keys() == theirs.keys()
    assert all(torch.equal(made[name].view(value.shape), value) for name, value in theirs.items())


def test_the_published_names_are_ours():
    with torch.device("meta"):
        ours = Vae(SD15).state_dict()
    for name, shape in {
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.3.block.2.conv2.bias": (512,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }.items():
        assert tuple(ours[name].shape) == shape, name
    assert "decoder.up.0.upsample.conv.weight" not in ours
    assert "encoder.down.3.downsample.conv.weight" not in ours


def test_the_attentions_names_of_2022_are_read_and_written_as_todays():
    ours = drawn(TINY)
    theirs = translate(ours, diffusers(4), back=True)
    before = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(theirs)
    for name in theirs:
        if (part := next((now for now in before if f"attentions.0.{now}." in name), "")) != "":
            old[name.replace(part, before[part])] = old.pop(name)
    assert len(old.keys() - theirs.keys()) == 16
    again = translate(old, diffusers(4))
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_the_discriminator_of_a_training_checkpoint_is_dropped():
    ours = drawn(TINY)
    left = {"loss.logvar": torch.ones(()), "loss.discriminator.main.0.weight": torch.ones(2, 2)}
    assert translate(ours | left, ORIGINAL).keys() == ours.keys()

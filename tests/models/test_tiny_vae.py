"""The tiny autoencoder against the field's reference."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny

from limner.models.tiny_vae import TinyVAE, TinyVAEConfig, config_of
from limner.weights.layout import translate
from limner.weights.names.tiny_vae import tiny_vae_rules

KINDS = {"4": TinyVAEConfig(width=8), "16": TinyVAEConfig(channels=16, width=8), "short": TinyVAEConfig(3, 8, (2, 1))}


def pair(config: TinyVAEConfig) -> tuple[TinyVAE, AutoencoderTiny]:
    torch.manual_seed(0)
    widths = (config.width,) * len(config.blocks)
    theirs = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        latent_channels=config.channels,
        num_encoder_blocks=config.blocks,
        num_decoder_blocks=config.blocks[::-1],
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    ours = TinyVAE(config).eval()
    ours.load_state_dict(translate(theirs.state_dict(), tiny_vae_rules()))
    return ours, theirs


def error(found: torch.Tensor, want: torch.Tensor) -> float:
    assert want.std() > 0.01
    return float((found - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_latents_and_pictures_are_those_of_the_reference(config):
    ours, theirs = pair(config)
    picture = torch.rand(2, 3, 24, 40)
    latent = ours.encode(picture)
    factor = 2 ** (len(config.blocks) - 1)
    assert latent.shape == (2, config.channels, 24 // factor, 40 // factor)
    assert error(latent, theirs.encode(picture * 2 - 1).latents) < 1e-5  # their pictures lie in [-1, 1]
    latent = torch.randn_like(latent) * 4  # beyond the bound
    assert ours.decode(latent).shape == picture.shape
    assert error(ours.decode(latent), theirs.decode(latent).sample / 2 + 0.5) < 1e-5


@torch.no_grad()
def test_in_bfloat16_they_are_those_of_the_reference_in_bfloat16():
    ours, theirs = pair(KINDS["4"])
    picture, latent = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        encoded, decoded = ours.encode(picture), ours.decode(latent)
        latents, pictures = theirs.encode(picture * 2 - 1).latents, theirs.decode(latent).sample / 2 + 0.5
    assert encoded.dtype == decoded.dtype == torch.float32
    assert error(encoded, latents) < 1e-2
    assert error(decoded, pictures) < 1e-2


@torch.no_grad()
def test_latents_are_bounded_softly():
    ours, _ = pair(KINDS["4"])
    far = torch.full((1, 4, 2, 2), 1e4)
    torch.testing.assert_close(ours.decode(far), ours.decode(2 * far), rtol=0, atol=0)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_config_is_read_from_names_and_shapes(config):
    shapes = {name: tuple(value.shape) for name, value in TinyVAE(config).state_dict().items()}
    assert config_of(shapes) == config


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_half_of_it_is_known_and_built_alone(half: str, config: TinyVAEConfig):
    whole = TinyVAE(config).state_dict()
    mine = {name: value for name, value in whole.items() if name.startswith(half)}
    found = config_of({name: tuple(value.shape) for name, value in mine.items()})
    assert found == replace(config, halves=(half,))
    TinyVAE(found).load_state_dict(mine)

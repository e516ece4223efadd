"""Names of TAESD: diffusers' at the published sizes fill ours, and so do the original two files."""

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from limner.models.tiny_vae import Block, TinyVAE, TinyVAEConfig, config_of, conv
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.tiny_vae import taesd_decoder_rules, taesd_encoder_rules, tiny_vae_rules

PUBLISHED = {"taesd": TinyVAEConfig(), "taesd3": TinyVAEConfig(channels=16)}
PARAMETERS = {"taesd": 2_445_063, "taesd3": 2_458_899}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config = PUBLISHED[name]
    with torch.device("meta"):
        theirs, ours = AutoencoderTiny(latent_channels=config.channels), TinyVAE(config)
    found = reshaped(shapes_of(theirs), tiny_vae_rules())
    assert account(found, shapes_of(ours), name) == []
    assert config_of(found) == config
    assert reshaped(found, tiny_vae_rules(), back=True) == shapes_of(theirs)
    assert sum(value.numel() for value in ours.parameters()) == PARAMETERS[name]


def originals(width: int = 8) -> tuple[nn.Sequential, nn.Sequential]:
    """The order of layers in the two files; Identity stands for the bound, which carries no weights but counts."""
    encoder, decoder = [conv(3, width), Block(width)], [nn.Identity(), conv(4, width), nn.ReLU()]
    for _ in range(3):
        encoder += [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
        decoder += [*(Block(width) for _ in range(3)), nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
    return nn.Sequential(*encoder, conv(width, 4)), nn.Sequential(*decoder, Block(width), conv(width, 3))


@torch.no_grad()
def test_the_two_original_files_fill_one_network_and_go_back():
    torch.manual_seed(0)
    encoder, decoder = originals()
    assert {"0.weight", "1.conv.0.weight", "14.bias"} < encoder.state_dict().keys()
    assert {"1.weight", "3.conv.0.weight", "7.weight", "19.bias"} < decoder.state_dict().keys()
    sides = (encoder.state_dict(), taesd_encoder_rules()), (decoder.state_dict(), taesd_decoder_rules())
    ours = TinyVAE(TinyVAEConfig(width=8))
    made = [translate(theirs, rules) for theirs, rules in sides]
    ours.load_state_dict(made[0] | made[1])
    for (theirs, rules), one in zip(sides, made, strict=True):
        again = translate(one, rules, back=True)
        assert again.keys() == theirs.keys()
        assert all(torch.equal(again[name], value) for name, value in theirs.items())
    picture, latent = torch.rand(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    assert torch.equal(ours.encode(picture), encoder(picture))
    assert torch.equal(ours.decode(latent), decoder(3 * torch.tanh(latent / 3)))

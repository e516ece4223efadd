"""The autoencoder against the field's reference."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from tests.conftest import randomised

from limner.models.vae import Vae, VaeConfig, config_of
from limner.weights.layout import translate
from limner.weights.names.vae import diffusers

FOUR = VaeConfig(width=32, multiples=(1, 2, 2), blocks=2)
KINDS = {
    "4 channels": FOUR,
    "16 channels": replace(FOUR, channels=16, quant=False),
    "4 levels": replace(FOUR, multiples=(1, 1, 2, 2), blocks=1),
}


def reference(config: VaeConfig) -> AutoencoderKL:
    levels = len(config.multiples)
    return randomised(
        AutoencoderKL(
            latent_channels=config.channels,
            block_out_channels=tuple(config.width * m for m in config.multiples),
            layers_per_block=config.blocks,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            norm_num_groups=config.groups,
            use_quant_conv=config.quant,
            use_post_quant_conv=config.quant,
        )
    )


def ours(theirs: AutoencoderKL, config: VaeConfig) -> Vae:
    model = Vae(config).eval()
    model.load_state_dict(translate(theirs.state_dict(), diffusers(len(config.multiples))))
    return model


def near(found: torch.Tensor, want: torch.Tensor) -> bool:
    return found.shape == want.shape and float((found - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_reads_and_paints_as_the_reference(kind):
    config = KINDS[kind]
    theirs = reference(config)
    net, draw = ours(theirs, config), torch.Generator().manual_seed(1)
    picture, latent = torch.randn(2, 3, 24, 40, generator=draw), torch.randn(2, config.channels, 6, 5, generator=draw)
    mean, log = net.encode(picture)
    want = theirs.encode(picture).latent_dist
    assert near(mean, want.mean)
    assert near(log, want.logvar)
    assert near(net.decode(latent), theirs.decode(latent).sample)


@torch.no_grad()
def test_in_bf16_it_is_as_near_as_the_reference():
    theirs = reference(FOUR)
    latent = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    want = theirs.decode(latent).sample
    with torch.autocast("cpu", torch.bfloat16):
        off = theirs.decode(latent).sample.float() - want
        mine = ours(theirs, FOUR).decode(latent) - want
    assert mine.std() < 1.25 * off.std()
    assert mine.abs().max() < 1.5 * off.abs().max()


@torch.no_grad()
def test_the_variance_is_bounded_as_the_references():
    theirs = reference(FOUR)
    net = ours(theirs, FOUR)
    for model in (net, theirs):
        model.quant_conv.bias[4:] = torch.tensor([-99.0, -31, 21, 99])
    _, log = net.encode(torch.zeros(1, 3, 16, 16))
    assert (log[0, 0].unique().item(), log[0, 3].unique().item()) == (-30, 20)
    assert near(log, theirs.encode(torch.zeros(1, 3, 16, 16)).latent_dist.logvar)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_tell_the_config(kind):
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Vae(KINDS[kind]).state_dict().items()}
    assert config_of(shapes) == KINDS[kind]

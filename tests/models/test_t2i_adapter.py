"""T2I-Adapters against the field's reference, alone and inside a whole UNet."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import T2IAdapter
from tests.conftest import randomised
from tests.models.test_controlnet import off
from tests.models.test_unet import KINDS, asked, case, ours, reference
from torch import Tensor

from limner.models.t2i_adapter import T2iAdapter, T2iAdapterConfig, config_of
from limner.models.unet import Trunk, UnetConfig
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.t2i_adapter import diffusers

FULL = T2iAdapterConfig(widths=(64, 128, 128))
XL = replace(FULL, factor=16, widths=(64, 128, 128, 128))
LIGHT = replace(FULL, light=True, blocks=4)
ADAPTERS = {
    "full": (FULL, "sd15"),
    "full grey": (replace(FULL, picture=1), "sd15"),
    "light": (LIGHT, "sd2"),
    "xl": (XL, "sdxl"),
    "xl grey": (replace(XL, picture=1), "sdxl"),
}
PUBLISHED = {  # config, tensors, parameters
    "full": (T2iAdapterConfig(), 38, 77_369_280),
    "full sketch": (T2iAdapterConfig(picture=1), 38, 77_000_640),
    "light": (T2iAdapterConfig(light=True, blocks=4), 80, 18_689_200),
    "xl": (T2iAdapterConfig(factor=16), 38, 79_028_160),
}


def their_config(config: T2iAdapterConfig) -> dict[str, Any]:
    kind = "light_adapter" if config.light else "full_adapter_xl" if config.factor == 16 else "full_adapter"
    widths = config.widths[:-1] if config.light else config.widths  # their light one adds a level as wide as the last
    return {
        "in_channels": config.picture, "channels": list(widths), "num_res_blocks": config.blocks,
        "downscale_factor": config.factor, "adapter_type": kind,
    }  # fmt: skip


def rules_of(config: T2iAdapterConfig) -> Any:
    return [*diffusers(len(config.widths), config.blocks, config.light)]


def bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("adapter."): value for name, value in weights.items()}


def pair(config: T2iAdapterConfig) -> tuple[T2IAdapter, T2iAdapter]:
    theirs, mine = randomised(T2IAdapter(**their_config(config)), seed=9), T2iAdapter(config).eval()
    mine.load_state_dict(translate(bare(theirs.state_dict()), rules_of(config)))
    return theirs, mine


def picture_for(x: Tensor, channels: int) -> Tensor:
    h, w = x.shape[2:]
    return torch.rand(len(x), channels, 8 * h, 8 * w, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ADAPTERS)
@torch.no_grad()
def test_it_answers_as_the_reference(kind):
    config, _ = ADAPTERS[kind]
    theirs, mine = pair(config)
    picture = torch.rand(2, config.picture, 9 * 16, 7 * 16, generator=torch.Generator().manual_seed(4))
    want, found = theirs(picture), mine(picture)
    assert len(found) == len(want) == len(config.widths)
    assert max(off(a, b) for a, b in zip(found, want, strict=True)) < 1e-5


@pytest.mark.parametrize("kind", ADAPTERS)
@torch.no_grad()
def test_a_whole_unet_is_hinted_as_the_reference_is(kind):
    """SD's hints join the last step of each level; SDXL's the first downsampling, two levels and the middle."""
    config, family = ADAPTERS[kind]
    unet = KINDS[family]
    theirs = reference(unet)
    their_adapter, adapter = pair(config)
    x, t, cond = case(unet, (16, 12))
    picture = picture_for(x, config.picture)
    added = {} if cond.sizes is None else {"text_embeds": cond.pooled, "time_ids": cond.sizes}
    features = their_adapter(picture)
    want = theirs(
        x, t, cond.tokens, added_cond_kwargs=added, down_intrablock_additional_residuals=list(features)
    ).sample  # fmt: skip
    found = ours(theirs, unet)(x, t, replace(cond, hints=adapter(picture)))
    assert off(found, want) < 1e-5
    assert off(found, asked(theirs, x, t, cond)) > 0.01


@pytest.mark.parametrize("kind", ["full", "light", "xl"])
@pytest.mark.parametrize("sides", [(17, 12), (7, 9)])
@torch.no_grad()
def test_odd_sides_fit_the_unet(kind, sides):
    config, family = ADAPTERS[kind]
    unet = KINDS[family]
    x, t, cond = case(unet, sides)
    net = ours(reference(unet), unet)
    _, adapter = pair(config)
    assert net(x, t, replace(cond, hints=adapter(picture_for(x, config.picture)))).shape == x.shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config, tensors, parameters = PUBLISHED[name]
    with torch.device("meta"):
        theirs, mine = T2IAdapter(**their_config(config)), T2iAdapter(config)
    wanted = {name: tuple(value.shape) for name, value in bare(theirs.state_dict()).items()}
    shapes = {name: tuple(value.shape) for name, value in mine.state_dict().items()}
    assert account(reshaped(wanted, rules_of(config)), shapes, name) == []
    assert reshaped(shapes, rules_of(config), back=True) == wanted
    assert config_of(shapes) == config
    assert (len(shapes), sum(value.numel() for value in mine.parameters())) == (tensors, parameters)


def test_the_published_names_are_ours():
    with torch.device("meta"):
        full, light = T2iAdapter(T2iAdapterConfig()).state_dict(), T2iAdapter(PUBLISHED["light"][0]).state_dict()
    assert full["conv_in.weight"].shape == (320, 192, 3, 3)
    assert full["body.2.in_conv.weight"].shape == (640, 320, 1, 1)
    assert full["body.7.block2.weight"].shape == (1280, 1280, 1, 1)
    assert "body.6.in_conv.weight" not in full
    assert light["body.0.in_conv.weight"].shape == (80, 192, 1, 1)
    assert light["body.3.body.3.block2.bias"].shape == (320,)
    assert light["body.3.out_conv.weight"].shape == (1280, 320, 1, 1)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_bits_are_the_same_there_and_back(kind):
    config, _ = ADAPTERS[kind]
    weights = randomised(T2iAdapter(config)).state_dict()
    again = translate(translate(weights, rules_of(config), back=True), rules_of(config))
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("depths", "ends"), [((1, 1, 1, 0), [2, 5, 8, 11]), ((0, 2, 10), [3, 5, 8]), ((0, 4, 4, 0), [3, 5, 8, 11])]
)
def test_hints_join_the_published_unets_where_they_were_trained_to(depths, ends):
    with torch.device("meta"):
        trunk = Trunk(UnetConfig(multiples=(1, 2, 4, 4)[: len(depths)], depths=depths))
    assert trunk.ends == ends

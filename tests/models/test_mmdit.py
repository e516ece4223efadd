"""The transformer of Stable Diffusion 3 against the field's reference, and its own refusals."""

from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel

from limner.errors import BadInput
from limner.models.mmdit import MMDiT, MMDiTConfig, config_of
from limner.types import Cond
from limner.weights.layout import translate
from limner.weights.names.mmdit import mmdit_rules

PLAIN = MMDiTConfig(channels=4, width=128, depth=3, heads=2, context=40, pooled=24, positions=9)
KINDS = {
    "3 medium": PLAIN,
    "3.5 large": replace(PLAIN, qk_norm="rms"),
    "3.5 medium": replace(PLAIN, qk_norm="rms", dual=2),
}


def reference(config: MMDiTConfig) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=config.patch,
        in_channels=config.channels,
        out_channels=config.channels,
        num_layers=config.depth,
        attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads,
        joint_attention_dim=config.context,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled,
        pos_embed_max_size=config.positions,
        dual_attention_layers=tuple(range(config.dual)),
        qk_norm="rms_norm" if config.qk_norm else None,
    ).eval()
    with torch.no_grad():  # norms that start at 1 and biases that start at 0 would hide a wrong one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.2))
    return model


def ours(theirs: SD3Transformer2DModel, config: MMDiTConfig) -> MMDiT:
    model = MMDiT(config).eval()
    model.load_state_dict(translate(theirs.state_dict(), mmdit_rules(config.depth)))
    return model


def case(h: int = 8, w: int = 12) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    draw = torch.Generator().manual_seed(1)
    cond = Cond(tokens=torch.randn(2, 7, 40, generator=draw), pooled=torch.randn(2, 24, generator=draw))
    return torch.randn(2, 4, h, w, generator=draw), torch.tensor([3.0, 871.25]), cond


def asked(theirs: SD3Transformer2DModel, x: torch.Tensor, t: torch.Tensor, cond: Cond, skip: tuple[int, ...] = ()):
    return theirs(x, cond.tokens, cond.pooled, t, skip_layers=list(skip)).sample


def error(found: torch.Tensor, want: torch.Tensor) -> float:
    assert want.std() > 0.1
    return float((found - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_velocities_are_those_of_the_reference(config):
    theirs = reference(config)
    model, given = ours(theirs, config), case()
    assert error(model(*given), asked(theirs, *given)) < 1e-5
    for skip in ((1,), (0, 2)):
        assert error(model(*given, skip), asked(theirs, *given, skip)) < 1e-5
    assert error(model(*given, (1,)), asked(theirs, *given)) > 1e-3


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_in_bfloat16_they_stay_near(config):
    theirs = reference(config)
    model, given = ours(theirs, config), case()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*given)
    assert found.dtype == torch.float32
    assert error(found, asked(theirs, *given)) < 1e-2


@pytest.mark.parametrize(("h", "w"), [(2, 18), (18, 18), (6, 10)])
@torch.no_grad()
def test_sizes_take_the_middle_of_the_positions(h, w):
    theirs = reference(PLAIN)
    given = case(h, w)
    assert error(ours(theirs, PLAIN)(*given), asked(theirs, *given)) < 1e-5


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_config_is_read_from_names_and_shapes(config):
    with torch.device("meta"):
        model = MMDiT(config)
    assert config_of({name: tuple(value.shape) for name, value in model.state_dict().items()}) == config


def test_heads_of_another_width_are_seen_where_they_are_normalised():
    config = replace(PLAIN, qk_norm="rms", heads=4)
    with torch.device("meta"):
        model = MMDiT(config)
    assert config_of({name: tuple(value.shape) for name, value in model.state_dict().items()}) == config


@torch.no_grad()
def test_every_row_of_a_batch_is_alone():
    model = ours(reference(PLAIN), PLAIN)
    x, t, cond = case()
    one = model(x[1:], t[1:], cond.row(1))
    torch.testing.assert_close(model(x, t, cond)[1:], one, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="width 128 must be a multiple of the 3 heads"):
        MMDiT(replace(PLAIN, heads=3))
    with pytest.raises(ValueError, match="qk_norm 'ln'"):
        MMDiT(replace(PLAIN, qk_norm="ln"))
    model = MMDiT(PLAIN)
    x, t, cond = case(8, 20)
    with pytest.raises(BadInput, match=r"4 x 10 patches does not fit the 9 x 9 positions"):
        model(x, t, cond)
    with pytest.raises(ValueError, match="needs tokens and pooled"):
        model(x, t, replace(cond, pooled=None))


@torch.no_grad()
def test_what_deep_blocks_add_can_stand_for_them():
    config = replace(PLAIN, depth=6, qk_norm="rms", dual=3)
    net = ours(reference(config), config)
    x, t, cond = case()
    plain, gave = net(x, t, cond), []
    torch.testing.assert_close(net(x, t, cond, deep=lambda inner: gave.append(inner()) or gave[0]), plain)
    calls = []
    net.joint_blocks[3].register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(net(x, t, cond, deep=lambda _: gave[0]), plain)
    assert not calls
    assert not torch.allclose(net(x, t, cond, deep=lambda _: gave[0] + 1), plain)

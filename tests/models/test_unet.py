"""The UNet of Stable Diffusion 1, 2 and XL against the field's reference, and its own refusals."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from tests.conftest import randomised
from torch import Tensor

from limner.models.unet import Told, TransformerBlock, Unet, UnetConfig, config_of, thinned
from limner.types import Cond
from limner.weights.layout import translate
from limner.weights.names.unet import diffusers

PLAIN = UnetConfig(width=64, multiples=(1, 2, 2), depths=(1, 1, 0), context=40)
LINEAR = replace(PLAIN, heads=0, linear=True)
XL = replace(LINEAR, depths=(0, 1, 2), middle=2, vector=24 + 6 * 256)
KINDS = {
    "sd15": PLAIN,
    "sd15 inpaint": replace(PLAIN, channels=9),
    "sd15 edit": replace(PLAIN, channels=8),
    "sd2": LINEAR,
    "sd2 depth": replace(LINEAR, channels=5),
    "sdxl": XL,
    "sdxl-refiner": replace(LINEAR, multiples=(1, 2, 2, 2), depths=(0, 2, 2, 0), middle=2, vector=24 + 5 * 256),
}


def reference(config: UnetConfig) -> UNet2DConditionModel:
    cross = ["CrossAttn" if depth else "" for depth in config.depths]
    told: dict[str, Any] = {}
    if config.vector:
        told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        told["projection_class_embeddings_input_dim"] = config.vector
    model = UNet2DConditionModel(
        in_channels=config.channels,
        out_channels=config.out,
        block_out_channels=tuple(config.width * m for m in config.multiples),
        layers_per_block=config.blocks,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in cross),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(cross)),
        cross_attention_dim=config.context,
        attention_head_dim=config.heads or tuple(config.width * m // 64 for m in config.multiples),
        transformer_layers_per_block=[depth or config.middle for depth in config.depths],
        use_linear_projection=config.linear,
        norm_num_groups=config.groups,
        time_cond_proj_dim=config.guidance or None,
        **told,
    )
    return randomised(model)


def ours(theirs: UNet2DConditionModel, config: UnetConfig) -> Unet:
    model = Unet(config).eval()
    model.load_state_dict(translate(theirs.state_dict(), diffusers(config.blocks, config.depths)))
    return model


def case(config: UnetConfig, sides: Sequence[int] = (17, 12)) -> tuple[Tensor, Tensor, Cond]:
    draw = torch.Generator().manual_seed(1)
    tokens, sizes, pooled = torch.randn(2, 9, config.context, generator=draw), None, None
    if config.vector:
        pooled = torch.randn(2, 24, generator=draw)
        sizes = torch.tensor([[512.0, 640, 0, 8, 1024, 768], [64, 64, 3, 0, 64, 64]])[:, : (config.vector - 24) // 256]
    x = torch.randn(2, config.channels, *sides, generator=draw)
    return x, torch.tensor([7.0, 900.5]), Cond(tokens, pooled, sizes=sizes)


def asked(theirs: UNet2DConditionModel, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    added = {} if cond.sizes is None else {"text_embeds": cond.pooled, "time_ids": cond.sizes}
    return theirs(x, t, cond.tokens, added_cond_kwargs=added).sample


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_answers_as_the_reference(kind):
    config = KINDS[kind]
    theirs = reference(config)
    x, t, cond = case(config)
    want = asked(theirs, x, t, cond)
    found = ours(theirs, config)(x, t, cond)
    assert found.shape == (2, config.out, 17, 12)
    assert float((found - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
@torch.no_grad()
def test_in_bf16_it_is_as_near_as_the_reference(kind):
    theirs = reference(KINDS[kind])
    x, t, cond = case(KINDS[kind], (8, 8))
    want = asked(theirs, x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        off = asked(theirs, x, t, cond).float() - want
        mine = ours(theirs, KINDS[kind])(x, t, cond) - want
    assert mine.std() < 1.25 * off.std()  # theirs is 2 % of the answer's on such weights, 6 % for sdxl
    assert mine.abs().max() < 1.5 * off.abs().max()


@torch.no_grad()
def test_a_guidance_scale_that_is_built_in_is_told_as_the_reference_is():
    """LCM's own UNets (arXiv 2310.04378, section 4.2)."""
    config = replace(PLAIN, guidance=32)
    theirs = reference(config)
    x, t, cond = case(config)
    scale = torch.tensor([8.0, 1.5])
    told = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale - 1, embedding_dim=32)
    want = theirs(x, t, cond.tokens, timestep_cond=told).sample
    net = ours(theirs, config)
    assert config_of({name: tuple(value.shape) for name, value in net.state_dict().items()}) == config
    found = net(x, t, replace(cond, guidance=scale))
    assert float((found - want).abs().max() / want.abs().max()) < 5e-4  # cosines of thousands of radians in fp32
    with pytest.raises(ValueError, match="guidance scale"):
        net(x, t, cond)


@pytest.mark.parametrize("sides", [(8, 8), (16, 5), (7, 9)])
@torch.no_grad()
def test_sides_of_every_size_fit(sides):
    theirs = reference(PLAIN)
    x, t, cond = case(PLAIN, sides)
    want = asked(theirs, x, t, cond)
    assert float((ours(theirs, PLAIN)(x, t, cond) - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_shapes_tell_the_config(kind):
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Unet(KINDS[kind]).state_dict().items()}
    assert config_of(shapes) == KINDS[kind]


@torch.no_grad()
def test_what_lies_beside_x_is_part_of_the_input():
    config = KINDS["sd15 inpaint"]
    net = ours(reference(config), config)
    x, t, cond = case(config)
    whole = net(x, t, cond)
    assert torch.equal(net(x[:, :4], t, replace(cond, image=x[:, 4:])), whole)
    assert not torch.equal(net(x[:, :4], t, replace(cond, image=0 * x[:, 4:])), whole)


@torch.no_grad()
def test_every_thing_it_is_told_matters():
    net = ours(reference(XL), XL)
    x, t, cond = case(XL)
    answer = net(x, t, cond)
    for other in (
        replace(cond, tokens=cond.tokens.flip(1) * 2),
        replace(cond, pooled=-cond.pooled),
        replace(cond, sizes=cond.sizes + 100),
    ):
        assert float((net(x, t, other) - answer).abs().max() / answer.abs().max()) > 1e-3
    assert float((net(x, t + 100, cond) - answer).abs().max() / answer.abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@torch.no_grad()
def test_a_perturbed_middle_answers_as_the_reference(kind):
    """Theirs sees each row twice, the second time with each place alone (arXiv 2403.17377)."""
    theirs = reference(KINDS[kind])
    x, t, cond = case(KINDS[kind])
    mine = ours(theirs, KINDS[kind])
    for name, module in theirs.mid_block.named_modules():
        if name.endswith("attn1"):
            module.set_processor(PAGIdentitySelfAttnProcessor2_0())
    plain, want = asked(theirs, x.repeat(2, 1, 1, 1), t.repeat(2), cond.again(2)).chunk(2)
    found = mine(x, t, cond, perturbed=True)
    assert float((found - want).abs().max() / want.abs().max()) < 3e-5  # products of four rows round otherwise
    assert float((plain - want).abs().max() / want.abs().max()) > 1e-3


def test_what_it_cannot_take_is_refused():
    with torch.device("meta"):
        plain, large = Unet(PLAIN), Unet(XL)
    with pytest.raises(ValueError, match="takes 4 channels, not 9"):
        plain(torch.zeros(1, 9, 8, 8, device="meta"), torch.zeros(1, device="meta"), Cond(torch.zeros(1, 9, 40)))
    with pytest.raises(ValueError, match="needs pooled text and sizes"):
        large(torch.zeros(1, 4, 8, 8, device="meta"), torch.zeros(1, device="meta"), Cond(torch.zeros(1, 9, 40)))


def asked_deep(net: Unet, *told: Any, **more: Any) -> tuple[Tensor, list[Tensor]]:
    """The answer with the deep layers asked, and what they gave."""
    gave: list[Tensor] = []

    def deep(inner):
        gave.append(inner())
        return gave[-1]

    return net(*told, deep=deep, **more), gave


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sdxl-refiner"])
@torch.no_grad()
def test_what_deep_layers_gave_can_stand_for_them(kind: str):
    config = KINDS[kind]
    net = randomised(Unet(config).eval())
    x, t, cond = case(config)
    plain = net(x, t, cond)
    answer, gave = asked_deep(net, x, t, cond)
    assert torch.equal(answer, plain)
    calls = []
    hook = net.middle_block.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(net(x, t, cond, deep=lambda _: gave[0]), plain)
    hook.remove()
    assert not calls
    assert not torch.equal(net(x, t, cond, deep=lambda _: gave[0] + 1), plain)


@torch.no_grad()
def test_deep_layers_go_with_controls_hints_and_picture_prompts():
    config = KINDS["sd15"]
    net = randomised(Unet(config).eval())
    x, t, cond = case(config, (16, 16))
    draw = torch.Generator().manual_seed(2)
    kept, middle = net.down(x, Told(net.told(t, cond), cond.tokens), repeat(()))
    control = tuple(torch.randn(k.shape, generator=draw) for k in (*kept, middle))
    attentions = [layer.attn2 for layer in net.modules() if isinstance(layer, TransformerBlock)]
    seen = tuple(torch.randn(2, 3, a.to_k.out_features, generator=draw) for a in attentions for _ in range(2))
    told_all = replace(cond, control=control, seen=(seen,))
    plain = net(x, t, told_all)
    answer, gave = asked_deep(net, x, t, told_all)
    assert torch.equal(answer, plain)
    assert torch.equal(net(x, t, told_all, deep=lambda _: gave[0]), plain)


@torch.no_grad()
def test_few_keys_thin_out_large_pictures_alone():
    config = KINDS["sd15"]
    net = randomised(Unet(config).eval())
    for sides, changes in (((16, 16), False), ((34, 32), True)):
        x, t, cond = case(config, sides)
        assert torch.equal(net(x, t, cond), net(x, t, cond, few=2)) is not changes
    assert thinned(40, 30, 2).tolist()[:16] == [*range(0, 30, 2), 60]
    assert len(thinned(8, 8, 2)) == 64


@pytest.mark.parametrize("told", ["words", "image", "control", "hints", "seen", "deep"])
@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
@torch.no_grad()
def test_fewer_rows_serve_what_is_told_over_and_over(kind: str, told: str):
    config = replace(KINDS[kind], channels=8) if told == "image" else KINDS[kind]
    net = randomised(Unet(config).eval())
    x, t, cond = case(config, (16, 12))
    x, t = x[:, :4] if told == "image" else x, t[:1].repeat(2)
    draw = torch.Generator().manual_seed(2)
    kept, middle = net.down(x.repeat(1, config.channels // 4, 1, 1), Told(net.told(t, cond), cond.tokens), repeat(()))
    beside = torch.randn(2, config.channels - 4, *x.shape[2:], generator=draw)
    attentions = [layer.attn2 for layer in net.modules() if isinstance(layer, TransformerBlock)]
    also = {
        "image": {"image": beside},
        "control": {"control": tuple(torch.randn(k.shape, generator=draw) for k in (*kept, middle))},
        "hints": {"hints": tuple(torch.randn(kept[end].shape, generator=draw) for end in net.ends)},
        "seen": {"seen": (tuple(torch.randn(2, 3, a.to_k.out_features) for a in attentions for _ in range(2)),)},
    }
    cond = replace(cond, **also.get(told, {})).again(2)  # two rows of x, each told two things
    answer = asked_deep(net, x, t, cond)[0] if told == "deep" else net(x, t, cond)
    torch.testing.assert_close(answer, net(x.repeat(2, 1, 1, 1), t.repeat(2), cond), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("kind", "rows"), [("sd15", [1, 2, 2, 2]), ("sdxl", [2, 2, 2, 2])])
@torch.no_grad()
def test_what_the_words_have_not_told_apart_is_computed_once(kind: str, rows: list[int]):
    net = randomised(Unet(KINDS[kind]).eval())
    x, t, cond = case(KINDS[kind])
    seen: list[int] = []
    for layer in net.modules():
        if isinstance(layer, TransformerBlock):
            layer.attn1.register_forward_pre_hook(lambda _, told: seen.append(len(told[0])))
    net(x[:1], t[:1], cond)
    assert seen[:4] == rows

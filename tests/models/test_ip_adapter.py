"""IP-Adapters against diffusers': the tokens, and a whole UNet that attends to them."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from tests.conftest import randomised
from tests.models.test_unet import KINDS as UNETS
from tests.models.test_unet import case, ours, reference
from torch import Tensor

from limner.errors import BadInput, BadWeights
from limner.families.seeing import IP_ADAPTER
from limner.models.ip_adapter import IpAdapter, IpAdapterConfig, Resampler, config_of, walking_order, widths_of
from limner.models.unet import UnetConfig
from limner.weights.layout import translate

SEEN = {"plain": 24, "plus": 40, "full": 40}  # width of what CLIP gives
STATES = 17  # of a small tower; 257 of the published
SD15 = UnetConfig()
SDXL = UnetConfig(multiples=(1, 2, 4), depths=(0, 2, 10), middle=10, context=2048, heads=0, linear=True, vector=2816)


def made_for(unet: UnetConfig, kind: str) -> IpAdapterConfig:
    """As a file tells it: levels down, levels up, the middle."""
    walked, runs = widths_of(unet), []
    order = walking_order(unet)
    for width in (walked[order.index(i)] for i in range(len(order))):
        last = runs[-1] if runs and runs[-1][0] == width else None
        runs = [*runs[:-1], (width, last[1] + 1)] if last else [*runs, (width, 1)]
    more = {"plain": {"tokens": 4}, "plus": {"tokens": 5, "width": 128, "layers": 4, "heads": 2}, "full": {"tokens": 0}}
    return IpAdapterConfig(kind, SEEN[kind], unet.context, runs=tuple(runs), **more[kind])


def drawn(kind: str, rows: int = 2) -> Tensor:
    shape = (rows, SEEN[kind]) if kind == "plain" else (rows, STATES, SEEN[kind])
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def nested(adapter: IpAdapter) -> dict[str, dict[str, Tensor]]:
    """As the first files were, and as diffusers takes them."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in adapter.state_dict().items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return parts


def near(found: Tensor, want: Tensor) -> bool:
    return found.shape == want.shape and float((found - want).abs().max() / want.abs().max()) < 1e-5


def loaded(theirs: UNet2DConditionModel, *adapters: IpAdapter, strength: float = 1.0) -> UNet2DConditionModel:
    theirs._load_ip_adapter_weights([nested(adapter) for adapter in adapters], low_cpu_mem_usage=False)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [strength] * len(adapters)
    return theirs.eval()


def their_answer(theirs, x, t, cond, seen: list[Tensor]) -> Tensor:
    added = {} if cond.sizes is None else {"text_embeds": cond.pooled, "time_ids": cond.sizes}
    return theirs(
        x, t, cond.tokens, added_cond_kwargs=added | {"image_embeds": [each[:, None] for each in seen]}
    ).sample


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("unet", ["sd15", "sdxl"])
@torch.no_grad()
def test_a_unet_that_sees_answers_as_the_reference(unet, kind):
    config = UNETS[unet]
    theirs = reference(config)
    net, adapter = ours(theirs, config), randomised(IpAdapter(made_for(config, kind)))
    x, t, cond = case(config)
    seen = drawn(kind)
    keys = adapter.keys_and_values(adapter.tokens(seen), config, 0.7)
    want = their_answer(loaded(theirs, adapter, strength=0.7), x, t, cond, [seen])
    found = net(x, t, replace(cond, seen=(keys,)))
    assert near(found, want)
    assert not torch.allclose(found, net(x, t, cond), rtol=1e-2)


@torch.no_grad()
def test_two_pictures_are_seen_side_by_side():
    config = UNETS["sd15"]
    theirs = reference(config)
    net = ours(theirs, config)
    adapters = [randomised(IpAdapter(made_for(config, kind)), seed) for seed, kind in enumerate(("plain", "plus"))]
    x, t, cond = case(config)
    seen = [drawn("plain"), drawn("plus")]
    keys = tuple(a.keys_and_values(a.tokens(s), config) for a, s in zip(adapters, seen, strict=True))
    assert near(net(x, t, replace(cond, seen=keys)), their_answer(loaded(theirs, *adapters), x, t, cond, seen))


@torch.no_grad()
def test_without_strength_nothing_changes():
    config = UNETS["sd15"]
    net, adapter = ours(reference(config), config), randomised(IpAdapter(made_for(config, "plain")))
    x, t, cond = case(config)
    keys = adapter.keys_and_values(adapter.tokens(drawn("plain")), config, 0.0)
    assert torch.equal(net(x, t, replace(cond, seen=(keys,))), net(x, t, cond))


@pytest.mark.parametrize("unet,most", [(SD15, 16), (SDXL, 70)])
@pytest.mark.parametrize("kind", SEEN)
def test_names_and_shapes_tell_the_config(kind, unet, most):
    config = replace(made_for(unet, kind))
    with torch.device("meta"):
        state = IpAdapter(config).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert config_of(shapes) == config
    numbers = [int(name.split(".")[1]) for name in shapes if name.endswith("to_v_ip.weight")]
    assert numbers == list(range(1, 2 * most, 2))
    naming = IP_ADAPTER.namings[0]
    assert translate(translate(state, naming.writes(config), back=True), naming.reads({})).keys() == state.keys()


@pytest.mark.parametrize(
    "unet,order", [(SD15, [*range(6), 15, *range(6, 15)]), (SDXL, [*range(24), *range(60, 70), *range(24, 60)])]
)
def test_files_keep_the_middle_last(unet, order):
    assert walking_order(unet) == order


def test_the_published_resampler_has_the_published_names():
    names = Resampler(made_for(UNETS["sd15"], "plus")).state_dict()
    assert {name for name in names if not name.startswith("layers.") or name.startswith("layers.0.")} == {
        "latents", "proj_in.weight", "proj_in.bias", "proj_out.weight", "proj_out.bias", "norm_out.weight",
        "norm_out.bias", "layers.0.0.norm1.weight", "layers.0.0.norm1.bias", "layers.0.0.norm2.weight",
        "layers.0.0.norm2.bias", "layers.0.0.to_q.weight", "layers.0.0.to_kv.weight", "layers.0.0.to_out.weight",
        "layers.0.1.0.weight", "layers.0.1.0.bias", "layers.0.1.1.weight", "layers.0.1.3.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    "unet,told",
    [
        (replace(UNETS["sd15"], context=48), "is made for a UNet of context 40, the model's has 48"),
        (replace(UNETS["sd15"], blocks=1), r"11 cross-attentions of widths \[64, 128\], the model's has 7 of"),
        (replace(UNETS["sd15"], multiples=(2, 2, 2)), r"11 cross-attentions of widths \[64, 128\], the model's has 11"),
    ],
)
def test_another_unet_is_refused(unet, told):
    adapter = IpAdapter(made_for(UNETS["sd15"], "plain"))
    with pytest.raises(BadInput, match=told):
        adapter.keys_and_values(torch.zeros(1, 4, 40), unet)


@pytest.mark.parametrize(
    "extra", [("image_proj.norm.weight", "image_proj.proj.0.weight"), ("ip_adapter.0.to_q_lora.up.weight",)]
)
def test_adapters_for_recognised_faces_are_refused(extra):
    shapes = {"ip_adapter.1.to_k_ip.weight": (64, 40)} | dict.fromkeys(extra, (40,))
    with pytest.raises(BadWeights, match="vectors of a face recogniser"):
        config_of(shapes)

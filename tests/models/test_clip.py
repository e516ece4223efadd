"""CLIP's text tower against transformers', layer by layer."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import randomised
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from limner.models.clip import Clip, ClipConfig, config_of
from limner.weights.layout import translate
from limner.weights.names.clip import BARE, TRANSFORMERS

START, END = 97, 98
SMALL = ClipConfig(vocabulary=99, width=128, layers=3, heads=2, hidden=96)
KINDS = {
    "CLIP-L": SMALL,
    "CLIP-L of SD3": replace(SMALL, projection=128),
    "OpenCLIP": replace(SMALL, projection=20, quick=False),
}


def reference(config: ClipConfig) -> CLIPTextModel | CLIPTextModelWithProjection:
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    return randomised(
        kind(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                intermediate_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                projection_dim=config.projection or config.width,
                hidden_act="quick_gelu" if config.quick else "gelu",
                bos_token_id=START,
                eos_token_id=END,
                pad_token_id=END,
            )
        )
    )


def ours(theirs: torch.nn.Module, config: ClipConfig) -> Clip:
    model, state = Clip(config).eval(), theirs.state_dict()
    model.load_state_dict(translate(state, TRANSFORMERS if "text_projection.weight" in state else BARE))
    return model


def ids(pad: int = END) -> Tensor:
    rows = torch.randint(1, START, (3, 77), generator=torch.Generator().manual_seed(1))
    rows[:, 0] = START
    for row, end in zip(rows, (1, 9, 76), strict=True):
        row[end] = END
        row[end + 1 :] = pad
    return rows


def near(found: Tensor, want: Tensor) -> bool:
    return found.shape == want.shape and float((found - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize("pad", [END, 0])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_layer_and_the_pooled_vector_are_the_references(kind, pad):
    config = KINDS[kind]
    theirs = reference(config)
    net, rows = ours(theirs, config), ids(pad)
    want = theirs(rows, output_hidden_states=True)
    ends = (rows == END).int().argmax(1)
    for layer in range(1, config.layers + 1):
        states, pooled = net(net.embed(rows), ends, layer)
        assert near(states, want.hidden_states[layer]), layer
        assert near(pooled, want.text_embeds if config.projection else want.pooler_output)
    assert near(net.norm(states), want.last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_in_bf16_it_stays_near_the_reference(kind):
    theirs = reference(KINDS[kind])
    net, rows = ours(theirs, KINDS[kind]), ids()
    want = theirs(rows, output_hidden_states=True).hidden_states[-1]
    with torch.autocast("cpu", torch.bfloat16):
        states, _ = net(net.embed(rows), (rows == END).int().argmax(1), KINDS[kind].layers)
    assert float((states - want).abs().max() / want.abs().max()) < 1e-2


@torch.no_grad()
def test_a_word_knows_only_those_before_it():
    net, rows = ours(reference(SMALL), SMALL), ids()
    other = rows.clone()
    other[:, 40] = 5
    ends = torch.full((3,), 76)
    before, after = (net(net.embed(each), ends, 3)[0] for each in (rows, other))
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize("kind", ["CLIP-L", "CLIP-L of SD3"])
def test_names_and_shapes_tell_the_config(kind):
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Clip(KINDS[kind]).state_dict().items()}
    assert config_of(shapes) == KINDS[kind]


@pytest.mark.parametrize("layer", [0, 4])
def test_a_layer_that_is_not_there_is_refused(layer):
    with torch.device("meta"):
        net = Clip(SMALL)
    with pytest.raises(ValueError, match=f"layer {layer} of a tower of 3"):
        net(torch.zeros(1, 77, 128, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"), layer)

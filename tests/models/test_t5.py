"""T5's encoder against the field's reference."""

import pytest
import torch
import transformers

from limner.models.t5 import T5, T5Config, bucket, config_of
from limner.weights.layout import translate
from limner.weights.names.t5 import t5_rules

TINY = T5Config(vocabulary=60, width=32, layers=3, heads=3, head=16, hidden=72, buckets=8)


@pytest.fixture(scope="module")
def theirs() -> transformers.T5EncoderModel:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=TINY.vocabulary,
        d_model=TINY.width,
        d_kv=TINY.head,
        d_ff=TINY.hidden,
        num_layers=TINY.layers,
        num_heads=TINY.heads,
        relative_attention_num_buckets=TINY.buckets,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():  # the reference starts with norms of 1, which would hide a wrong one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.2))
    return model


@pytest.fixture(scope="module")
def ours(theirs) -> T5:
    model = T5(TINY).eval()
    model.load_state_dict(translate(theirs.state_dict(), t5_rules()))
    return model


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(1, 60, (3, 200), generator=torch.Generator().manual_seed(1))  # beyond the farthest distance


def error(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found - want).abs().max() / want.abs().max())


@torch.no_grad()
def test_states_are_those_of_the_reference(theirs, ours, ids):
    assert error(ours(ids), theirs(ids).last_hidden_state) < 1e-5


@torch.no_grad()
def test_with_a_mask_too(theirs, ours, ids):
    mask = torch.arange(200)[None] < torch.tensor([[200], [31], [1]])
    want = theirs(ids, attention_mask=mask.long()).last_hidden_state
    assert error(ours(ids, mask)[mask], want[mask]) < 1e-5
    assert error(ours(ids)[mask], want[mask]) > 1e-2


@torch.no_grad()
def test_bfloat16_costs_what_it_costs_the_reference(theirs, ours, ids):
    want = theirs(ids).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = ours(ids), theirs(ids).last_hidden_state
    assert found.dtype == torch.float32
    assert error(found, want) < 1.25 * error(rounded, want) < 2e-2
    assert (found - want).std() < 1e-2 * want.std()


@pytest.mark.parametrize("buckets", [8, 32])
def test_distances_fall_into_the_buckets_of_the_reference(buckets):
    offset = torch.arange(-600, 601)
    want = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(offset, True, buckets, 128)
    assert torch.equal(bucket(offset, buckets), want)


def test_near_distances_have_a_bucket_each():
    assert bucket(torch.tensor([-7, -1, 0, 1, 7]), 32).tolist() == [7, 1, 0, 17, 23]
    assert bucket(torch.tensor([-5000, -128, -127, 128, 5000]), 32).tolist() == [15, 15, 15, 31, 31]


def test_the_config_is_read_from_names_and_shapes(ours):
    assert config_of({name: tuple(value.shape) for name, value in ours.state_dict().items()}) == TINY

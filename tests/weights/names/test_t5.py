"""Names of T5's encoder: transformers' at the published size fill ours, and go back with the same bits."""

import pytest
import torch
import transformers

from limner.errors import BadWeights
from limner.models.t5 import T5, T5Config, config_of
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.t5 import EMBEDDINGS, t5_rules

XXL = T5Config()
TINY = T5Config(vocabulary=20, width=8, layers=2, heads=2, head=6, hidden=12, buckets=8)


def reference(config: T5Config, device: str, whole: bool = False) -> transformers.PreTrainedModel:
    kind = transformers.T5ForConditionalGeneration if whole else transformers.T5EncoderModel
    with torch.device(device):
        return kind(
            transformers.T5Config(
                vocab_size=config.vocabulary,
                d_model=config.width,
                d_kv=config.head,
                d_ff=config.hidden,
                num_layers=config.layers,
                num_heads=config.heads,
                relative_attention_num_buckets=config.buckets,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            )
        )


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_nothing_is_missing_and_nothing_over_at_the_published_size():
    with torch.device("meta"):
        ours = T5(XXL)
    found = reshaped(shapes_of(reference(XXL, "meta")), t5_rules())
    assert account(found, shapes_of(ours), "t5xxl") == []
    assert config_of(found) == XXL
    assert len(found) == 219
    assert sum(value.numel() for value in ours.parameters()) == 4_762_310_656


@pytest.mark.parametrize("kept", EMBEDDINGS)
def test_either_name_of_the_embedding_will_do(kept):
    torch.manual_seed(0)
    theirs = {name: torch.randn(value.shape) for name, value in reference(TINY, "meta").state_dict().items()}
    for name in EMBEDDINGS:
        theirs.pop(name)
    theirs[kept] = torch.randn(20, 8)
    ours = translate(theirs, t5_rules(kept))
    T5(TINY).load_state_dict(ours)
    again = translate(ours, t5_rules(kept), back=True)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.items())


def test_the_rest_of_a_whole_t5_is_dropped():
    found = reshaped(shapes_of(reference(TINY, "meta", whole=True)), t5_rules())
    with torch.device("meta"):
        assert account(found, shapes_of(T5(TINY)), "t5") == []


def test_the_ungated_feed_forward_of_the_first_t5_does_not_pass():
    found = reshaped({"encoder.block.0.layer.1.DenseReluDense.wi.weight": (12, 8)}, t5_rules())
    with torch.device("meta"), pytest.raises(BadWeights, match=r"fill nothing.*DenseReluDense\.wi\.weight"):
        account(found, shapes_of(T5(TINY)), "t5")

"""Names of SD3's transformer: diffusers' at the published sizes fill ours, and go back with the same bits."""

from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from limner.errors import BadWeights
from limner.models.mmdit import MMDiT, MMDiTConfig, config_of
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.mmdit import mmdit_rules

MEDIUM = MMDiTConfig()  # Stable Diffusion 3 medium
PUBLISHED = {
    "3 medium": MEDIUM,
    "3.5 large": replace(MEDIUM, width=2432, depth=38, heads=38, qk_norm="rms"),
    "3.5 medium": replace(MEDIUM, positions=384, qk_norm="rms", dual=13),
}
PARAMETERS = {"3 medium": 2_028_328_000, "3.5 large": 8_056_627_520, "3.5 medium": 2_243_171_520}
TINY = MMDiTConfig(channels=4, width=128, depth=3, heads=2, context=10, pooled=6, positions=4, qk_norm="rms", dual=2)


def reference(config: MMDiTConfig, device: str) -> SD3Transformer2DModel:
    with torch.device(device):
        return SD3Transformer2DModel(
            in_channels=config.channels,
            out_channels=config.channels,
            num_layers=config.depth,
            num_attention_heads=config.heads,
            joint_attention_dim=config.context,
            caption_projection_dim=config.width,
            pooled_projection_dim=config.pooled,
            pos_embed_max_size=config.positions,
            dual_attention_layers=tuple(range(config.dual)),
            qk_norm="rms_norm" if config.qk_norm else None,
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config, theirs = PUBLISHED[name], reference(PUBLISHED[name], "meta")
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    with torch.device("meta"):
        ours = MMDiT(config)
    wanted = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    found = reshaped(shapes, mmdit_rules(config.depth))
    assert account(found, wanted, name) == []
    assert config_of(found) == config
    assert reshaped(found, mmdit_rules(config.depth), back=True) == shapes
    assert sum(value.numel() for value in ours.parameters()) == PARAMETERS[name]


def test_the_published_names_are_ours():
    with torch.device("meta"):
        ours = MMDiT(TINY).state_dict()
    for name, shape in {
        "pos_embed": (1, 16, 128),
        "x_embedder.proj.weight": (128, 4, 2, 2),
        "t_embedder.mlp.0.weight": (128, 256),
        "y_embedder.mlp.2.bias": (128,),
        "context_embedder.weight": (128, 10),
        "joint_blocks.0.x_block.adaLN_modulation.1.weight": (9 * 128, 128),
        "joint_blocks.0.x_block.attn2.ln_k.weight": (64,),
        "joint_blocks.0.context_block.adaLN_modulation.1.bias": (6 * 128,),
        "joint_blocks.1.context_block.mlp.fc1.weight": (512, 128),
        "joint_blocks.2.x_block.attn.qkv.weight": (384, 128),
        "joint_blocks.2.context_block.adaLN_modulation.1.bias": (2 * 128,),
        "joint_blocks.2.context_block.attn.ln_q.weight": (64,),
        "final_layer.adaLN_modulation.1.weight": (256, 128),
        "final_layer.linear.weight": (16, 128),
    }.items():
        assert tuple(ours[name].shape) == shape, name
    for name in ("2.context_block.attn.proj.weight", "2.context_block.mlp.fc1.weight", "2.x_block.attn2.qkv.weight"):
        assert f"joint_blocks.{name}" not in ours


def test_bits_are_the_same_there_and_back():
    torch.manual_seed(0)
    theirs = {name: torch.randn(value.shape) for name, value in reference(TINY, "meta").state_dict().items()}
    again = translate(translate(theirs, mmdit_rules(3)), mmdit_rules(3), back=True)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("config", [TINY, replace(TINY, qk_norm="", dual=0)], ids=["3.5 medium", "3 medium"])
def test_the_reference_reads_our_names_as_a_published_file(config):
    torch.manual_seed(0)
    with torch.device("meta"):
        ours = {name: torch.randn(value.shape, device="cpu") for name, value in MMDiT(config).state_dict().items()}
    want = convert_sd3_transformer_checkpoint_to_diffusers(dict(ours))  # it empties what it is given
    found = translate(ours, mmdit_rules(config.depth), back=True)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], value) for name, value in want.items())


def test_only_the_last_words_and_the_end_change_halves():
    halves = {
        f"{name}.linear.bias": torch.arange(4.0)
        for name in ("norm_out", "transformer_blocks.0.norm1_context", "transformer_blocks.1.norm1_context")
    }
    made = translate(halves, mmdit_rules(2))
    assert made["final_layer.adaLN_modulation.1.bias"].tolist() == [2, 3, 0, 1]
    assert made["joint_blocks.0.context_block.adaLN_modulation.1.bias"].tolist() == [0, 1, 2, 3]
    assert made["joint_blocks.1.context_block.adaLN_modulation.1.bias"].tolist() == [2, 3, 0, 1]


def test_a_name_that_no_block_has_is_refused():
    with pytest.raises(BadWeights, match="1 names match no rule"):
        reshaped({"transformer_blocks.0.attn.to_w.weight": (2, 2)}, mmdit_rules(2))

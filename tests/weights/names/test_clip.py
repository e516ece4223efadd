"""Names of CLIP's text towers: transformers' at the published sizes fill ours, and OpenCLIP's go there and back."""

from dataclasses import replace

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from limner.errors import BadWeights
from limner.models.clip import Clip, ClipConfig, config_of
from limner.weights.layout import account, reshaped, translate
from limner.weights.names.clip import BARE, OPENCLIP, TRANSFORMERS

L = ClipConfig()
H = ClipConfig(width=1024, layers=24, heads=16, hidden=4096, projection=1024, quick=False)
G = ClipConfig(width=1280, layers=32, heads=20, hidden=5120, projection=1280, quick=False)
PUBLISHED = {  # ours, tensors, parameters
    "CLIP-L": (L, 196, 123_060_480),
    "CLIP-L of SD3": (replace(L, projection=768), 197, 123_650_304),
    "OpenCLIP-H": (H, 389, 354_032_640),
    "OpenCLIP-H of a folder": (replace(H, layers=23, projection=0), 372, 340_387_840),
    "OpenCLIP bigG": (G, 517, 694_659_840),
}
TINY = ClipConfig(vocabulary=20, width=128, layers=2, heads=2, hidden=24, positions=7, projection=10, quick=False)


def reference(config: ClipConfig, device: str = "meta") -> nn.Module:
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    with torch.device(device):
        return kind(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                intermediate_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.positions,
                projection_dim=config.projection or config.width,
            )
        )


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


class OpenClip(nn.Module):
    """The shape of OpenCLIP's tower: PyTorch's own attention, whose three projections are one matrix."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.positions, config.width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(self.block(config) for _ in range(config.layers))
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, config.projection))
        self.logit_scale = nn.Parameter(torch.empty(()))

    @staticmethod
    def block(config: ClipConfig) -> nn.Module:
        block = nn.Module()
        block.ln_1, block.ln_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        block.attn = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        block.mlp = nn.Module()
        block.mlp.c_fc = nn.Linear(config.width, config.hidden)
        block.mlp.c_proj = nn.Linear(config.hidden, config.width)
        return block


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_is_missing_and_nothing_over_at_the_published_sizes(name):
    config, tensors, parameters = PUBLISHED[name]
    theirs = shapes_of(reference(config))
    rules = TRANSFORMERS if config.projection else BARE
    with torch.device("meta"):
        ours = Clip(config)
    found = reshaped(theirs, rules)
    assert account(found, shapes_of(ours), name) == []
    assert config_of(found) == config
    assert reshaped(found, rules, back=True) == theirs
    assert len(found) == tensors
    assert sum(value.numel() for value in ours.parameters()) == parameters


@pytest.mark.parametrize("config", [H, G], ids=["H", "bigG"])
def test_openclips_names_at_the_published_sizes(config):
    with torch.device("meta"):
        theirs, ours = shapes_of(OpenClip(config)), shapes_of(Clip(config))
    found = reshaped(theirs, OPENCLIP)
    assert account(found, ours, "openclip") == []
    assert config_of(found) == config
    assert reshaped(found, OPENCLIP, back=True).items() ^ theirs.items() == {("logit_scale", ())}


@torch.no_grad()
def test_the_joined_attention_computes_what_the_three_do():
    torch.manual_seed(0)
    theirs = OpenClip(TINY)
    for value in theirs.parameters():
        nn.init.normal_(value, std=0.2)
    net = Clip(TINY).eval()
    net.load_state_dict(translate(theirs.state_dict(), OPENCLIP))
    x, mask = torch.randn(2, 7, 128), nn.Transformer.generate_square_subsequent_mask(7)
    want, _ = theirs.transformer.resblocks[1].attn(x, x, x, attn_mask=mask, need_weights=False)
    found = net.text_model["encoder"]["layers"][1].self_attn(x, mask)
    assert float((found - want).abs().max() / want.abs().max()) < 1e-5
    pooled = torch.randn(3, 128)
    assert torch.allclose(net.text_projection(pooled), pooled @ theirs.text_projection, atol=1e-5)


def test_the_reference_reads_our_openclip_names_as_a_published_file():
    torch.manual_seed(0)
    small, model = replace(TINY, positions=77), reference(replace(TINY, positions=77), "cpu")
    theirs = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    ours = translate(theirs, TRANSFORMERS)
    prefix = "conditioner.embedders.1.model."
    state = {prefix + name: value for name, value in translate(ours, OPENCLIP, back=True).items()}
    made = convert_open_clip_checkpoint(model, state, prefix)
    assert small.positions == 77
    assert made.keys() == theirs.keys()
    assert all(torch.equal(made[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("rules", [TRANSFORMERS, OPENCLIP], ids=["transformers", "openclip"])
def test_bits_are_the_same_there_and_back(rules):
    torch.manual_seed(0)
    with torch.device("meta"):
        ours = {name: torch.randn(value.shape, device="cpu") for name, value in Clip(TINY).state_dict().items()}
    again = translate(translate(ours, rules, back=True), rules)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], value) for name, value in ours.items())


def test_what_old_files_carry_beside_is_dropped():
    assert translate({"text_model.embeddings.position_ids": torch.arange(7)}, TRANSFORMERS) == {}
    assert translate({"embeddings.position_ids": torch.arange(7)}, BARE) == {}
    assert translate({"logit_scale": torch.ones(())}, OPENCLIP) == {}


def test_the_tower_that_sees_is_refused():
    with pytest.raises(BadWeights, match="1 names match no rule"):
        reshaped({"visual.conv1.weight": (2, 3, 14, 14)}, OPENCLIP)

"""Networks that see and enlarge are known by their files, whatever their names, and hostile files are refused."""

import pytest
import torch
from tests.conftest import randomised
from tests.models.test_clip_vision import BOTH, SMALL
from tests.models.test_ip_adapter import made_for
from tests.models.test_unet import KINDS as UNETS

from limner.errors import BadWeights
from limner.families import Kind
from limner.families.addons import ADDONS, read_addon
from limner.families.seeing import CLIP_VISION, CLIP_WITH_EYES, COMPACT, IP_ADAPTER, RRDB, SEEING
from limner.models.rrdbnet import CompactConfig, RrdbConfig
from limner.pipeline import build
from limner.weights.io import write_tensors
from limner.weights.layout import translate

CONFIGS = {
    CLIP_WITH_EYES.name: (CLIP_WITH_EYES, BOTH),
    CLIP_VISION.name: (CLIP_VISION, SMALL),
    IP_ADAPTER.name: (IP_ADAPTER, made_for(UNETS["sd15"], "plus")),
    RRDB.name: (RRDB, RrdbConfig(width=8, growth=4, blocks=2)),
    COMPACT.name: (COMPACT, CompactConfig(width=8, blocks=2)),
}
LAYOUTS = [(kind.name, naming.name) for kind in SEEING for naming in kind.namings]


@pytest.mark.parametrize("name,layout", LAYOUTS)
def test_a_file_is_known_and_becomes_the_network(name, layout, tmp_path):
    kind, config = CONFIGS[name]
    net = randomised(kind.build(config))
    file = tmp_path / "some.safetensors"
    write_tensors(file, translate(net.state_dict(), kind.naming(layout).writes(config), back=True))
    part = read_addon(file)
    assert (part.kind, part.layout, part.config) == (kind, layout, config)
    built = build(part).state_dict()
    assert built.keys() == net.state_dict().keys()
    assert all(torch.equal(value, built[key]) for key, value in net.state_dict().items())


def test_of_a_whole_clip_the_eyes_can_be_read_alone(tmp_path):
    net = randomised(CLIP_WITH_EYES.build(BOTH))
    for naming in CLIP_WITH_EYES.namings:
        file = tmp_path / f"{naming.name}.safetensors"
        write_tensors(file, translate(net.state_dict(), naming.writes(BOTH), back=True))
        eyes = build(read_addon(file, CLIP_VISION)).state_dict()
        assert all(torch.equal(value, eyes[name]) for name, value in net.vision.state_dict().items())


def test_every_kind_is_an_addon():
    assert all(any(kind is each for each in ADDONS) for kind in SEEING)


def broken(kind: Kind, name: str, shape: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    tensors = dict(kind.build(CONFIGS[kind.name][1]).state_dict())
    tensors = translate(tensors, kind.namings[0].writes(CONFIGS[kind.name][1]), back=True)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    return tensors


@pytest.mark.parametrize(
    "kind,name,shape",
    [
        (CLIP_WITH_EYES, "vision_model.embeddings.patch_embedding.weight", (8,)),
        (CLIP_WITH_EYES, "vision_model.embeddings.position_embedding.weight", (3, 128)),
        (CLIP_WITH_EYES, "logit_scale", None),
        (CLIP_WITH_EYES, "text_model.strange.weight", (2, 2)),
        (CLIP_VISION, "vision_model.encoder.layers.1.mlp.fc1.weight", None),
        (IP_ADAPTER, "ip_adapter.3.to_k_ip.weight", None),
        (IP_ADAPTER, "ip_adapter.2.to_k_ip.weight", (64, 40)),
        (IP_ADAPTER, "ip_adapter.x.to_k_ip.weight", (64, 40)),
        (IP_ADAPTER, "image_proj.latents", (7,)),
        (RRDB, "conv_up9.weight", (8, 8, 3, 3)),
        (RRDB, "conv_up3.bias", (8,)),
        (RRDB, "conv_last.weight", (8,)),
        (RRDB, "conv_last.weight", (0, 8, 3, 3)),
        (COMPACT, "body.99.weight", (48, 8, 3, 3)),
        (COMPACT, "body.6.weight", (30_000, 8, 3, 3)),
        (COMPACT, "head.weight", (3, 3)),
    ],
)
def test_what_is_not_whole_is_refused(kind, name, shape, tmp_path):
    file = tmp_path / "broken.safetensors"
    write_tensors(file, broken(kind, name, shape))
    with pytest.raises(BadWeights):
        build(read_addon(file, kind))


def test_a_tower_of_more_layers_than_any_has_is_refused_before_it_is_built(tmp_path):
    tensors = broken(CLIP_WITH_EYES, "logit_scale", ())
    tensors |= {f"vision_model.encoder.layers.{i}.layer_norm1.bias": torch.zeros(128) for i in range(101)}
    file = tmp_path / "tall.safetensors"
    write_tensors(file, tensors)
    with pytest.raises(BadWeights, match="a layers of 101, which no network has"):
        read_addon(file)

"""ControlNets and T2I-Adapters in every layout that people have them in, and files that are refused."""

import json
from collections.abc import Callable

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from tests.conftest import TINY, randomised, tiny_net, write_single
from tests.models.test_controlnet import CONTROLS, HINT, their_config
from tests.models.test_t2i_adapter import ADAPTERS, LIGHT
from tests.models.test_t2i_adapter import their_config as their_adapter
from torch import Tensor, nn

from limner.errors import BadWeights
from limner.families.addons import ADDONS, CONTROLNET, T2I_ADAPTER, read_addon
from limner.families.seeing import CLIP_VISION
from limner.intake.pickles import convert_pickle
from limner.models.controlnet import ControlNet, ControlNetConfig
from limner.models.t2i_adapter import T2iAdapter
from limner.pipeline import build
from limner.weights.io import read_tensors, write_tensors
from limner.weights.layout import translate

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {  # ours, and theirs of the same config
    f"ControlNet {name}": (lambda c=config: ControlNet(c), lambda c=config: ControlNetModel(**their_config(c)))
    for name, config in CONTROLS.items()
} | {
    f"T2I-Adapter {name}": (lambda c=config: T2iAdapter(c), lambda c=config: T2IAdapter(**their_adapter(c)))
    for name, (config, _) in ADAPTERS.items()
}
SMALL = ControlNetConfig(**vars(TINY["sd15"]["denoiser"]) | {"out": 0}, hint=HINT)


def same(found: nn.Module, weights: dict[str, Tensor]) -> bool:
    state = found.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_files_with_the_original_names(name, prefix, tmp_path):
    net = randomised(NETS[name][0]())
    kind = CONTROLNET if "Control" in name else T2I_ADAPTER
    before = {CONTROLNET: "control_model.", T2I_ADAPTER: "adapter."}[kind] if prefix else ""
    write_tensors(tmp_path / "net.safetensors", {before + n: value for n, value in net.state_dict().items()})
    part = read_addon(tmp_path / "net.safetensors")
    assert (part.kind, part.config, part.layout.partition(",")[0]) == (kind, net.config, "original")
    assert same(build(part), net.state_dict())


@pytest.mark.parametrize("name", NETS)
def test_the_folders_and_files_that_diffusers_writes(name, tmp_path):
    ours, theirs = NETS[name][0](), randomised(NETS[name][1]())
    theirs.save_pretrained(tmp_path / "folder")
    (file,) = (tmp_path / "folder").glob("*.safetensors")
    for path in (tmp_path / "folder", file):
        part = read_addon(path, CONTROLNET, T2I_ADAPTER)
        assert (part.config, part.layout) == (ours.config, "diffusers")
        rules = part.naming.writes(part.config)
        back = translate(build(part).state_dict(), rules, back=True)
        wanted = {n.removeprefix("adapter."): value for n, value in theirs.state_dict().items()}
        assert back.keys() == wanted.keys()
        assert all(torch.equal(back[n], value) for n, value in wanted.items())


def test_a_whole_checkpoint_that_holds_one_beside_its_own_networks(tmp_path):
    net = randomised(ControlNet(SMALL))
    path = write_single(
        tmp_path / "whole.safetensors", "sd15", {"denoiser": tiny_net("sd15", "denoiser")}, marks=("betas",)
    )
    tensors = read_tensors(path) | {f"control_model.{name}": value for name, value in net.state_dict().items()}
    write_tensors(path, tensors)
    assert same(build(read_addon(path)), net.state_dict())
    write_tensors(path, tensors | {"other.weight": torch.ones(1)})
    with pytest.raises(BadWeights, match=r"1 tensors are of no network known here, the first: other.weight"):
        read_addon(path)


def test_what_is_asked_for_and_what_is_there(tmp_path):
    path = tmp_path / "net.safetensors"
    write_tensors(path, T2iAdapter(LIGHT).state_dict())
    with pytest.raises(BadWeights, match=r"is no ControlNet; it is of the kind T2I-Adapter"):
        read_addon(path, CONTROLNET)
    with pytest.raises(BadWeights, match=r"is no ControlNet or clip vision; it is of the kind unet"):
        write_tensors(path, tiny_net("sd15", "denoiser").state_dict())
        read_addon(path, CONTROLNET, CLIP_VISION)
    with pytest.raises(BadWeights, match=r"is no ControlNet or T2I-Adapter.*; it begins with odd"):
        write_tensors(path, {"odd": torch.ones(1)})
        read_addon(path)
    with pytest.raises(BadWeights, match="does not exist"):
        read_addon(tmp_path / "nowhere")
    assert {CONTROLNET, T2I_ADAPTER, CLIP_VISION} <= set(ADDONS)


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("task_embedding", "Union"),
        ("controlnet_blocks.0.weight", "of a transformer"),
        ("lora_controlnet", "Control-LoRA"),
        ("style_embedding", "for styles"),
    ],
)
def test_kinds_that_are_not_built_are_refused_by_name(mark, what, tmp_path):
    write_tensors(tmp_path / "net.safetensors", {mark: torch.ones(1)} | ControlNet(SMALL).state_dict())
    with pytest.raises(BadWeights, match=rf"{what}.*which is not built here"):
        read_addon(tmp_path / "net.safetensors")


def test_controlnets_that_want_another_form_are_refused(tmp_path):
    weights = ControlNet(SMALL).state_dict()
    write_tensors(tmp_path / "control_v11e_sd15_shuffle.safetensors", weights)
    with pytest.raises(BadWeights, match="averages"):
        read_addon(tmp_path / "control_v11e_sd15_shuffle.safetensors")
    for told, why in [({"global_pool_conditions": True}, "averages"),
                      ({"controlnet_conditioning_channel_order": "bgr"}, "'bgr', and not RGB")]:  # fmt: skip
        write_tensors(tmp_path / "folder" / "diffusion_pytorch_model.safetensors", weights)
        (tmp_path / "folder" / "config.json").write_text(json.dumps(told))
        with pytest.raises(BadWeights, match=why):
            read_addon(tmp_path / "folder")


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path):
    net = randomised(T2iAdapter(LIGHT))
    torch.save(dict(net.state_dict()), tmp_path / "adapter.pth")
    with pytest.raises(BadWeights, match=r"limner models convert adapter.pth adapter.safetensors"):
        read_addon(tmp_path / "adapter.pth")
    convert_pickle(tmp_path / "adapter.pth", tmp_path / "adapter.safetensors")
    assert same(build(read_addon(tmp_path / "adapter.safetensors")), net.state_dict())


def test_damaged_files_are_refused_in_words(tmp_path):
    weights = randomised(ControlNet(SMALL)).state_dict()
    path = tmp_path / "net.safetensors"
    write_tensors(path, weights | {"zero_convs.0.0.weight": torch.zeros(0, 64, 1, 1)})
    with pytest.raises(BadWeights, match=r"this ControlNet is not whole: .*zero_convs.0.0.weight', which is empty"):
        read_addon(path)
    write_tensors(path, weights | {"input_blocks.0.0.weight": torch.ones(48, 4, 3, 3)})
    with pytest.raises(BadWeights, match=r"not whole: a width of 48, of which norms make no 32 groups"):
        read_addon(path)
    write_tensors(path, {name: value for name, value in weights.items() if name != "input_blocks.0.0.weight"})
    with pytest.raises(BadWeights, match=r"not whole: 'input_blocks.0.0.weight' is missing"):
        read_addon(path)
    write_tensors(path, {name: value for name, value in weights.items() if name != "zero_convs.1.0.bias"})
    with pytest.raises(BadWeights, match=r"1 weights are missing, the first is 'zero_convs.1.0.bias'"):
        build(read_addon(path))
    write_tensors(path, weights | {"zero_convs.9.0.bias": torch.ones(1)})
    with pytest.raises(BadWeights, match=r"1 tensors fill nothing, the first is 'zero_convs.9.0.bias'"):
        build(read_addon(path))
    write_tensors(path, weights)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadWeights, match=r"net.safetensors"):
        read_addon(path)


def test_a_link_out_of_a_folder_is_refused(tmp_path):
    write_tensors(tmp_path / "net.safetensors", ControlNet(SMALL).state_dict())
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "net.safetensors").symlink_to(tmp_path / "net.safetensors")
    with pytest.raises(BadWeights, match="link out of its folder"):
        read_addon(tmp_path / "folder")
    with pytest.raises(BadWeights, match=r"holds no .safetensors file"):
        read_addon(tmp_path / "empty")

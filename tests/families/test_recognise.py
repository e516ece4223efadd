"""What files and folders are, in every layout that people have them in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conftest import TINY, tiny_net, tiny_nets, write_single

from limner.errors import BadWeights
from limner.families import FAMILIES
from limner.families.nets import CLIP, UNET, VAE
from limner.families.recognise import Checkpoint, recognise
from limner.weights.io import read_header, read_tensors, write_tensors
from limner.weights.layout import translate

VARIANTS = {"sd3": "medium", "sd35": "medium"}


def configs(found: Checkpoint) -> dict[str, object]:
    """The activation is left out: shapes cannot tell it, and the family's page does."""
    return {net: plain(part.config) for net, part in found.parts.items()}


def plain(config: object) -> object:
    return replace(config, quick=True) if hasattr(config, "quick") else config


def wanted(family: str, *gone: str) -> dict[str, object]:
    return {net: plain(config) for net, config in TINY[family].items() if net not in gone}


@pytest.mark.parametrize("family", TINY)
def test_a_single_file_of_every_family(family, tiny_checkpoint):
    found = recognise(tiny_checkpoint(family))
    assert (found.family.name, found.variant, found.layout) == (family, VARIANTS.get(family, "base"), "single file")
    assert configs(found) == wanted(family)
    assert found.missing == ()
    assert found.diffusion == FAMILIES[family].path
    assert found.defaults == FAMILIES[family].defaults


@pytest.mark.parametrize("family", TINY)
def test_a_diffusers_folder_of_every_family(family, tiny_diffusers):
    found = recognise(tiny_diffusers(family))
    assert (found.family.name, found.variant, found.layout) == (family, VARIANTS.get(family, "base"), "diffusers")
    want = wanted(family)
    if family == "sd2":  # its folders lack the last layer of the tower, and its projection
        want["text"] = replace(want["text"], layers=3, projection=0)
    if family in ("sd3", "sd35"):  # and theirs project CLIP-L's vector, though the files leave it as it is
        want["text"] = replace(want["text"], projection=64)
    assert configs(found) == want
    assert found.missing == ()
    assert found.diffusion == FAMILIES[family].path


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sdxl-refiner", "sd3", "sd35"])
def test_a_denoiser_alone_says_its_family(family, naming, tmp_path):
    net = tiny_net(family, "denoiser")
    rules = FAMILIES[family].nets["denoiser"].naming(naming).writes(net.config)
    write_tensors(tmp_path / "unet.safetensors", translate(net.state_dict(), rules, back=True))
    found = recognise(tmp_path / "unet.safetensors")
    assert (found.family.name, found.layout, list(found.parts)) == (family, "component", ["denoiser"])
    assert found.parts["denoiser"].config == TINY[family]["denoiser"]
    assert found.parts["denoiser"].layout == naming
    assert found.missing == tuple(net for net in FAMILIES[family].needs if net != "denoiser")


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_an_autoencoder_alone(family, naming, tmp_path):
    net = tiny_net(family, "autoencoder")
    tensors = translate(net.state_dict(), VAE.naming(naming).writes(net.config), back=True)
    write_tensors(tmp_path / "vae.safetensors", tensors)
    found = recognise(tmp_path / "vae.safetensors")
    assert found.layout == "component"
    assert found.parts["autoencoder"].config == net.config


@pytest.mark.parametrize("naming", ["transformers", "transformers, bare", "openclip"])
@pytest.mark.parametrize(("width", "called"), [(128, "text"), (1280, "text_2")])
def test_a_text_encoder_alone(naming, width, called, tmp_path):
    changes = {"width": width, "heads": width // 64, "vocabulary": 50}
    net = tiny_net("sdxl", "text_2", **changes | ({"projection": 0} if "bare" in naming else {}))
    tensors = translate(net.state_dict(), CLIP.naming(naming).writes(net.config), back=True)
    write_tensors(tmp_path / "clip.safetensors", tensors)
    found = recognise(tmp_path / "clip.safetensors")
    assert list(found.parts) == [called]
    assert plain(found.parts[called].config) == plain(net.config)
    back = found.parts[called].tensors()
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("family", "channels", "variant", "prediction"),
    [
        ("sd15", 9, "inpaint", "eps"),
        ("sd15", 8, "edit", "eps"),
        ("sd2", 9, "inpaint", "eps"),
        ("sd2", 5, "depth", "eps"),
        ("sdxl", 9, "inpaint", "eps"),
    ],
)
def test_channels_tell_the_variant(family, channels, variant, prediction, tmp_path):
    nets = {"denoiser": tiny_net(family, "denoiser", channels=channels)}
    found = recognise(write_single(tmp_path / "some.safetensors", family, nets))
    assert (found.family.name, found.variant, found.diffusion.prediction) == (family, variant, prediction)


def test_qk_norms_without_a_second_attention_are_sd35_large(tmp_path):
    nets = {"denoiser": tiny_net("sd35", "denoiser", dual=0)}
    found = recognise(write_single(tmp_path / "some.safetensors", "sd35", nets))
    assert (found.family.name, found.variant) == ("sd35", "large")


@pytest.mark.parametrize(
    ("metadata", "marks", "prediction", "zero_snr"),
    [
        ({}, (), "eps", False),
        ({"modelspec.prediction_type": "v"}, (), "v", False),
        ({"modelspec.prediction_type": "epsilon"}, ("ztsnr",), "eps", True),
        ({}, ("v_pred",), "v", False),
        ({}, ("v_pred", "ztsnr"), "v", True),
    ],
)
def test_metadata_and_marks_tell_the_prediction(metadata, marks, prediction, zero_snr, tmp_path):
    nets = tiny_nets("sdxl", "denoiser")
    found = recognise(write_single(tmp_path / "some.safetensors", "sdxl", nets, metadata=metadata, marks=marks))
    assert (found.diffusion.prediction, found.diffusion.zero_snr) == (prediction, zero_snr)
    assert found.metadata == metadata


@pytest.mark.parametrize("said", ["v_prediction", "epsilon"])
def test_the_folders_scheduler_tells_the_prediction(said, tmp_path, tiny_diffusers):
    folder = linked(tiny_diffusers("sd2"), tmp_path / "model")
    change(folder / "scheduler/scheduler_config.json", prediction_type=said, rescale_betas_zero_snr=True)
    found = recognise(folder)
    assert (found.diffusion.prediction, found.diffusion.zero_snr) == ("v" if said[0] == "v" else "eps", True)


def linked(folder: Path, copy: Path) -> Path:
    """A copy of a folder whose weights are hard links, so that it costs nothing."""
    for file in folder.rglob("*.*"):
        if file.is_file():
            to = copy / file.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.hardlink_to(file) if file.suffix == ".safetensors" else to.write_bytes(file.read_bytes())
    return copy


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("name", "title", "family", "sampler", "steps", "cfg"),
    [
        ("sd_xl_turbo_1.0", "", "sdxl", "euler_ancestral", 1, 1.0),
        ("sdxl_lightning_4step", "", "sdxl", "euler", 4, 1.0),
        ("Hyper-SDXL-8steps", "", "sdxl", "tcd", 4, 1.0),
        ("some", "Dreamer LCM", "sd15", "lcm", 4, 1.0),
        ("LCM_Dreamshaper_v7", "", "sd15", "lcm", 4, 1.0),
        ("sd_turbo", "", "sd2", "euler_ancestral", 1, 1.0),
        ("sd3.5_large_turbo", "", "sd35", "euler", 4, 1.0),
        ("some", "", "sdxl", "dpmpp_2m", 30, 6.0),
    ],
)
def test_few_step_kinds_are_known_by_name(name, title, family, sampler, steps, cfg, tmp_path):
    (tmp_path / "m").mkdir()
    nets, metadata = tiny_nets(family, "denoiser"), {"modelspec.title": title} if title else None
    ours = recognise(write_single(tmp_path / "m" / f"{name}.safetensors", family, nets, metadata=metadata)).defaults
    assert (ours.sampler, ours.steps, ours.cfg_scale) == (sampler, steps, cfg)
    if steps < 10:
        assert ours.schedule in ("trailing", "flow_linspace")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path):
    found = recognise(write_single(tmp_path / "half.safetensors", "sd15", tiny_nets("sd15"), dtype=dtype))
    assert configs(found) == wanted("sd15")
    short = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    assert [list(part.dtypes) for part in found.parts.values()] == [[short]] * 3
    assert all(value.dtype == dtype for value in found.parts["denoiser"].tensors().values())


def test_what_is_missing_is_told(tmp_path):
    found = recognise(write_single(tmp_path / "some.safetensors", "sdxl", tiny_nets("sdxl", "denoiser", "text")))
    assert found.missing == ("autoencoder", "text_2")
    sd3 = recognise(write_single(tmp_path / "3.safetensors", "sd3", tiny_nets("sd3", "denoiser", "text")))
    assert sd3.missing == ("autoencoder", "text_2")  # it paints without T5


def test_what_training_left_in_a_file_is_passed_over(tmp_path):
    path = write_single(tmp_path / "some.safetensors", "sd15", tiny_nets("sd15"))
    left = {"model_ema.decay": torch.ones(()), "alphas_cumprod": torch.ones(9), "betas": torch.ones(9)}
    left["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    left["cond_stage_model.logit_scale"] = left["first_stage_model.loss.logvar"] = torch.ones(())
    write_tensors(path, read_tensors(path) | left)
    assert configs(recognise(path)) == wanted("sd15")


def test_a_file_of_nothing_known_is_refused(tmp_path):
    write_tensors(tmp_path / "some.safetensors", {"lin.weight": torch.ones(2, 2)})
    with pytest.raises(BadWeights, match=r"1 tensors are of no network known here, the first: lin.weight"):
        recognise(tmp_path / "some.safetensors")
    path = write_single(tmp_path / "more.safetensors", "sd15", tiny_nets("sd15", "autoencoder"))
    write_tensors(path, read_tensors(path) | {"lin.weight": torch.ones(2, 2)})
    with pytest.raises(BadWeights, match=r"1 tensors are of no network known here, the first: lin.weight"):
        recognise(path)


def in_shards(folder: Path, stem: str, variant: str = "") -> Path:
    """A component's file cut in two, with an index as transformers and diffusers write it."""
    whole = folder / f"{stem}.safetensors"
    tensors = read_tensors(whole)
    names, dot = sorted(tensors), f".{variant}" if variant else ""
    halves = [names[::2], names[1::2]]
    shards = [f"{stem}{dot}-{i + 1:05d}-of-00002.safetensors" for i in range(2)]
    for shard, half in zip(shards, halves, strict=True):
        write_tensors(folder / shard, {name: tensors[name] for name in half})
    where = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    (folder / f"{stem}.safetensors.index{dot}.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return whole


def same(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_a_folder_in_shards(variant, tmp_path, tiny_checkpoint, tiny_diffusers):
    folder = linked(tiny_diffusers("sd15"), tmp_path / "model")
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        in_shards(folder / part, stem, variant).unlink()
    if variant:
        (folder / "vae/diffusion_pytorch_model.safetensors").rename(
            folder / "vae/diffusion_pytorch_model.fp16.safetensors"
        )
    found, want = recognise(folder, variant), recognise(tiny_checkpoint("sd15"))
    assert len(found.parts["denoiser"].files) == 2
    for net, part in found.parts.items():
        assert same(part.tensors(), want.parts[net].tensors()), net
    assert configs(recognise(folder)) == wanted("sd15")  # it is the only one, so nobody needs to say the variant


def test_of_plain_files_and_a_variant_each_can_be_had(tmp_path, tiny_diffusers):
    folder = linked(tiny_diffusers("sd15"), tmp_path / "model")
    for file in list(folder.glob("*/*.safetensors")):
        halves = {name: value.half() for name, value in read_tensors(file).items()}
        write_tensors(file.with_suffix(".fp16.safetensors"), halves)
    assert [list(part.dtypes) for part in recognise(folder).parts.values()] == [["f32"]] * 3
    assert [list(part.dtypes) for part in recognise(folder, "fp16").parts.values()] == [["f16"]] * 3
    with pytest.raises(BadWeights, match=r"holds no .safetensors file of variant bf16"):
        recognise(folder, "bf16")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("unet", ["diffusers", "UNet3DConditionModel"], r"unet is to be a \['UNet3DConditionModel'\]"),
        ("unet", ["os", "system"], r"unet is to be a \['system'\], and only UNet2DConditionModel"),
        (
            "vae",
            ["diffusers", "UNet2DConditionModel"],
            "vae is to be a UNet2DConditionModel, and its weights are a vae",
        ),
        ("controlnet", ["diffusers", "ControlNetModel"], "component 'controlnet' is not known here"),
    ],
)
def test_a_folder_names_only_classes_of_the_closed_table(field, value, said, tmp_path, tiny_diffusers):
    folder = linked(tiny_diffusers("sd15"), tmp_path / "model")
    change(folder / "model_index.json", **{field: value})
    with pytest.raises(BadWeights, match=said):
        recognise(folder)


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path, tiny_diffusers):
    folder = linked(tiny_diffusers("sd15"), tmp_path / "model")
    in_shards(folder / "unet", "diffusion_pytorch_model").unlink()
    (folder / "unet/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadWeights, match=r"lacks diffusion_pytorch_model-00002-of-00002.safetensors, which its index"):
        recognise(folder)


def test_only_headers_are_read(tiny_checkpoint, monkeypatch):
    path = tiny_checkpoint("sdxl")
    monkeypatch.setattr("limner.families.recognise.weights_of", lambda *_: pytest.fail("a tensor was read"))
    found = recognise(path)
    assert sum(part.parameters for part in found.parts.values()) == sum(
        torch.Size(entry.shape).numel() for entry in read_header(path).entries.values()
    )
    assert found.parts["denoiser"].kind is UNET

"""Checkpoints that we write: the same bits come back, and the field's reference implementation opens them."""

import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tests.conftest import TINY, tiny_net, tiny_nets, write_single
from torch import Tensor

from limner.errors import BadInput, NotSaved, UnknownName
from limner.families.recognise import Checkpoint, recognise
from limner.families.write import PIPELINES, write_checkpoint
from limner.weights.io import read_header, read_tensors

diffusers.utils.logging.set_verbosity_warning()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def foldered(found: Checkpoint, net: str) -> dict[str, Tensor]:
    """Weights of a single file as folders have them: SD2's lack what nothing reads, SD3's add what changes nothing."""
    tensors = found.parts[net].tensors()
    if net == "text" and found.family.name == "sd2":
        return {n: v for n, v in tensors.items() if n != "text_projection.weight" and "layers.3" not in n}
    if net == "text" and "text_3" in found.family.nets:
        return tensors | {"text_projection.weight": torch.eye(64)}
    return tensors


def opened(folder: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """The pipeline of a folder's own index, as diffusers reads it; a key that is missing or over fails."""
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).addHandler(caplog.handler)
    bare = {"tokenizer_3": None} if "StableDiffusion3" in kind.__name__ else {}  # T5's is not in a single file
    pipe = kind.from_pretrained(folder, local_files_only=True, **bare)
    said = [record.getMessage() for record in caplog.records]
    assert not [line for line in said if any(word in line.upper() for word in ("UNEXPECTED", "MISSING", "NOT USED"))]
    return pipe


@pytest.mark.parametrize("family", TINY)
def test_there_and_back_gives_the_same_bits(family, tmp_path, tiny_checkpoint, tiny_diffusers):
    first, folder = recognise(tiny_checkpoint(family)), recognise(tiny_diffusers(family))
    again = recognise(write_checkpoint(folder, tmp_path / "again.safetensors"))
    assert first.parts.keys() == folder.parts.keys() == again.parts.keys()
    for net in first.parts:
        assert same(folder.parts[net].tensors(), foldered(first, net)), net
    if family == "sd2":
        assert same(again.parts["text"].tensors(), foldered(first, "text"))
    else:
        assert same(read_tensors(tmp_path / "again.safetensors"), read_tensors(tiny_checkpoint(family)))
    copy = write_checkpoint(first, tmp_path / "copy.safetensors")
    assert same(read_tensors(copy), read_tensors(tiny_checkpoint(family)))


@pytest.mark.parametrize("family", TINY)
def test_the_reference_opens_our_folder_and_ours_opens_what_it_saves(family, tmp_path, tiny_diffusers, caplog):
    folder = tiny_diffusers(family)
    found = recognise(folder)
    pipe = opened(folder, caplog)
    assert type(pipe).__name__ == PIPELINES[family, found.variant]
    pipe.save_pretrained(tmp_path / "theirs", safe_serialization=True)
    theirs = recognise(tmp_path / "theirs")
    assert (theirs.family, theirs.variant, theirs.diffusion) == (found.family, found.variant, found.diffusion)
    assert theirs.parts.keys() == found.parts.keys()
    for net, part in found.parts.items():
        assert same(theirs.parts[net].tensors(), part.tensors()), net
        assert theirs.parts[net].config == part.config


@pytest.mark.parametrize(("family", "channels"), [("sd15", 9), ("sd15", 8), ("sdxl", 9)], ids=lambda value: str(value))
def test_variants_open_in_their_own_pipelines(family, channels, tmp_path, caplog):
    nets = tiny_nets(family) | {"denoiser": tiny_net(family, "denoiser", channels=channels)}
    found = recognise(write_single(tmp_path / "one.safetensors", family, nets))
    folder = write_checkpoint(found, tmp_path / "folder", "diffusers")
    pipe = opened(folder, caplog)
    assert type(pipe).__name__ == PIPELINES[family, found.variant]
    assert recognise(folder).variant == found.variant


SINGLE = {
    "sd15": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "sd3": "StableDiffusion3Pipeline",
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", SINGLE)
def test_the_reference_opens_our_single_file(family, tiny_checkpoint, tiny_diffusers):
    """Offline, its configs from our folder."""
    kind, folder = getattr(diffusers, SINGLE[family]), tiny_diffusers(family)
    more = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    pipe = kind.from_single_file(tiny_checkpoint(family), config=str(folder), local_files_only=True, **more)
    want = kind.from_pretrained(folder, local_files_only=True, **more)
    for name in recognise(folder).family.folders.values():
        mine, theirs = getattr(pipe, name, None), getattr(want, name, None)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert same(mine.state_dict(), theirs.state_dict()), name


def test_the_refiner_is_told_a_score_and_no_zeros(tiny_diffusers):
    index = json.loads((tiny_diffusers("sdxl-refiner") / "model_index.json").read_text())
    assert index["requires_aesthetics_score"] is True
    assert index["force_zeros_for_empty_prompt"] is False
    assert json.loads((tiny_diffusers("sdxl") / "model_index.json").read_text())["force_zeros_for_empty_prompt"] is True


@pytest.mark.parametrize("layout", ["single", "diffusers"])
def test_in_another_type(layout, tmp_path, tiny_checkpoint):
    half = recognise(write_checkpoint(recognise(tiny_checkpoint("sd15")), tmp_path / "half", layout, torch.float16))
    assert {kind for part in half.parts.values() for kind in part.dtypes} == {"f16"}
    want = recognise(tiny_checkpoint("sd15")).parts["denoiser"].tensors()
    assert same(half.parts["denoiser"].tensors(), {name: value.half() for name, value in want.items()})


@pytest.mark.parametrize("layout", ["single", "diffusers"])
@pytest.mark.parametrize("marks", [("v_pred",), ("v_pred", "ztsnr")])
def test_the_prediction_is_kept(layout, marks, tmp_path):
    path = write_single(tmp_path / "one.safetensors", "sdxl", tiny_nets("sdxl", "denoiser"), marks=marks)
    found = recognise(path)
    assert recognise(write_checkpoint(found, tmp_path / "two", layout)).diffusion == found.diffusion


def test_published_metadata_is_kept_and_the_rest_is_not(tmp_path):
    told = {"modelspec.title": "Mine", "modelspec.license": "CC0", "ss_training_comment": "private"}
    path = write_single(tmp_path / "one.safetensors", "sd15", tiny_nets("sd15", "denoiser"), metadata=told)
    kept = read_header(write_checkpoint(recognise(path), tmp_path / "two.safetensors")).metadata
    assert kept.items() >= {"modelspec.title": "Mine", "modelspec.license": "CC0"}.items()
    assert "ss_training_comment" not in kept


def test_what_cannot_be_written_is_refused(tmp_path, tiny_checkpoint):
    found = recognise(tiny_checkpoint("sd15"))
    (tmp_path / "there").write_text("mine")
    with pytest.raises(NotSaved, match="exists already; it is not written over"):
        write_checkpoint(found, tmp_path / "there")
    with pytest.raises(UnknownName, match="no layout is called 'diffuser': did you mean diffusers"):
        write_checkpoint(found, tmp_path / "new", "diffuser")
    strange = recognise(tiny_checkpoint("sd3"))
    mixed = Checkpoint(
        found.path, found.family, found.variant, found.layout, dict(strange.parts), found.metadata, found.diffusion
    )
    with pytest.raises(BadInput, match="the single layout of sd15 has no place for its text_2 and its text_3"):
        write_checkpoint(mixed, tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(("family", "found"), [("sd15", "sd15"), ("sdxl", "sd15"), ("sd3", "sd3")])
def test_an_autoencoder_alone_goes_from_layout_to_layout(family, found, tmp_path):
    """Which of the families with its latents it belongs to, nothing in it says."""
    file = write_single(tmp_path / "vae.safetensors", family, tiny_nets(family, "autoencoder"))
    alone = recognise(file)
    assert (alone.family.name, alone.variant, list(alone.parts)) == (found, "part", ["autoencoder"])
    folder = recognise(write_checkpoint(alone, tmp_path / "folder", "diffusers"))
    assert same(folder.parts["autoencoder"].tensors(), alone.parts["autoencoder"].tensors())

"""`limner paint` on published families: tiny checkpoints with random weights, so nothing is seen, but all is run."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import tiny_net

from limner.weights.io import read_header, read_tensors, write_tensors


@pytest.fixture
def painter(limner, tiny_checkpoint: Callable[[str], Path]):
    def paint(family, *argv):
        usual = {"--size": 64, "--steps": 2, "--device": "cpu"}
        told = [word for flag, value in usual.items() if flag not in argv for word in (flag, value)]
        return limner("paint", "-m", tiny_checkpoint(family), *told, *argv)

    return paint


def apart(one: str, other: str) -> int:
    """The largest difference of a byte: the same weights at other places of a file are multiplied in another order."""
    with Image.open(one) as first, Image.open(other) as second:
        return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sdxl-refiner", "sd3", "sd35"])
@pytest.mark.filterwarnings("ignore:.*no tokenizer for it")
def test_every_family_paints_and_repeats(painter, limner, family):
    first = painter(family, "a (red:1.3) apple BREAK on a table", "-s", 7, "--json")
    assert first.status == 0, first.err
    path = Path(first.rows[0]["path"])
    assert first.rows[0]["recipe"]["syntax"] == "a1111"
    again = limner("paint", "--from", path, "-q", "--device", "cpu")
    assert again.status == 0, again.err
    assert Image.open(path).tobytes() == Image.open(again.lines[0]).tobytes()


def test_choices_are_made_by_each_pictures_own_seed(painter, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "animal.txt").write_text("cat\ndog\nfox\n")
    said = painter(
        "sd15", "a {red|blue} __animal__", "--count", 6, "-s", 1, "--wildcards", tmp_path / "words", "--json"
    )
    prompts = [row["recipe"]["prompt"] for row in said.rows]
    assert [row["recipe"]["seed"] for row in said.rows] == list(range(1, 7))
    assert len(set(prompts)) > 2 and all(prompt.split()[1] in ("red", "blue") for prompt in prompts)
    alone = painter("sd15", "a {red|blue} __animal__", "-s", 4, "--wildcards", tmp_path / "words", "--json")
    assert alone.rows[0]["recipe"]["prompt"] == prompts[3]


def test_a_refiner_takes_over(painter, tiny_checkpoint):
    plain = painter("sdxl", "a cat", "-s", 1, "-q", "--steps", 4)
    refined = painter("sdxl", "a cat", "-s", 1, "-q", "--steps", 4, "--refiner", tiny_checkpoint("sdxl-refiner"))
    assert refined.status == 0, refined.err
    assert Image.open(plain.lines[0]).tobytes() != Image.open(refined.lines[0]).tobytes()


@pytest.mark.filterwarnings("ignore:.*no tokenizer for it")
def test_skip_layer_guidance_changes_the_picture(painter):
    plain = painter("sd35", "a cat", "-s", 1, "-q", "--steps", 4)
    layers = ("--skip-layers", "1,2", "--skip-interval", 0, 1)
    skipped = painter("sd35", "a cat", "-s", 1, "-q", "--steps", 4, *layers)
    assert skipped.status == 0, skipped.err
    assert Image.open(plain.lines[0]).tobytes() != Image.open(skipped.lines[0]).tobytes()


def test_perturbed_attention_guidance_changes_the_picture(painter):
    plain = painter("sd15", "a cat", "-s", 1, "-q", "--steps", 4)
    turned = painter("sd15", "a cat", "-s", 1, "-q", "--steps", 4, "--pag-scale", 3, "--pag-interval", 0.5, 1)
    assert turned.status == 0, turned.err
    assert Image.open(plain.lines[0]).tobytes() != Image.open(turned.lines[0]).tobytes()


@pytest.mark.filterwarnings("ignore:.*no tokenizer for it")
def test_perturbed_attention_guidance_is_refused_where_there_is_none(painter):
    refused = painter("sd35", "a cat", "-q", "--pag-scale", 3)
    assert refused.status == 2
    assert "sd35 does not know; it knows skip_layers" in refused.err


def test_t5_without_its_tokenizer_is_said(painter):
    assert "holds T5 but no tokenizer" in painter("sd3", "a cat", "-q").err


def test_a_file_beside_the_model_joins_it(painter, limner, tiny_checkpoint, tmp_path):
    """A UNet alone lacks the rest; an autoencoder and a text encoder beside it make it whole."""
    header = read_header(tiny_checkpoint("sd15"))
    tensors = read_tensors(tiny_checkpoint("sd15"), header)
    for part, prefix in (("unet", "model."), ("vae", "first_stage_model."), ("clip", "cond_stage_model.")):
        mine = {name: value for name, value in tensors.items() if name.startswith(prefix)}
        write_tensors(tmp_path / f"{part}.safetensors", mine)
    told = ("paint", "a cat", "-s", 1, "-q", "--size", 64, "--steps", 2, "--device", "cpu", "-m", "unet.safetensors")
    alone = limner(*told)
    assert alone.status == 2
    assert "lacks the autoencoder and the text of a sd15 model" in alone.err
    joined = limner(*told, "--with", "vae.safetensors", "--with", "clip.safetensors")
    assert joined.status == 0, joined.err
    whole = painter("sd15", "a cat", "-s", 1, "-q")
    assert apart(joined.lines[0], whole.lines[0]) <= 1


def test_missing_weights_are_an_error_unless_it_is_meant(painter, limner, tiny_checkpoint, tmp_path):
    tensors = dict(read_tensors(tiny_checkpoint("sd15")))
    del tensors["model.diffusion_model.out.2.bias"]
    write_tensors(tmp_path / "part.safetensors", tensors)
    told = (
        "paint",
        "a cat",
        "-s",
        1,
        "--json",
        "--size",
        64,
        "--steps",
        2,
        "--device",
        "cpu",
        "-m",
        "part.safetensors",
    )
    refused = limner(*told)
    assert refused.status == 2 and "1 weights are missing, the first is 'out.2.bias'" in refused.err
    painted = limner(*told, "--allow-partial")
    assert painted.status == 0, painted.err
    assert painted.rows[0]["recipe"]["partial"] is True


def test_a_tiny_decoder_beside_the_model_decodes(painter, tmp_path):
    from limner.models.tiny_vae import TinyVAE, TinyVAEConfig

    torch.manual_seed(0)
    write_tensors(tmp_path / "taesd.safetensors", TinyVAE(TinyVAEConfig(width=8)).state_dict())
    assert "no tiny decoder" in painter("sd15", "a cat", "--fast-decode").err
    fast = painter("sd15", "a cat", "-q", "--fast-decode", "--with", "taesd.safetensors")
    assert fast.status == 0, fast.err
    with Image.open(fast.lines[0]) as picture:
        assert picture.size == (64, 64)


def test_a_learned_word_is_read_from_its_file(painter, tmp_path):
    width = tiny_net("sd15", "text").config.width
    assert width not in (768, 1024, 1280)  # so the file is refused, in words
    write_tensors(tmp_path / "my-cat.safetensors", {"emb_params": torch.randn(2, width)})
    refused = painter("sd15", "a my-cat", "--embedding", "my-cat.safetensors")
    assert refused.status == 2 and "my-cat" in refused.err and "768" in refused.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a (cat"], "the ( at column 3 is never closed"),
        (["a (cat:x"], "column"),
        (["<lora:x:1> cat"], "asks for the LoRA 'x'; LoRAs are not here yet"),
        (["a cat", "-n", "a AND b"], "the negative prompt joins several by AND"),
        (["a cat", "--syntax", "conmfy"], "syntax should be 'a1111', 'comfy' or 'plain'"),
        (["a cat", "--clip-skip", 9], "clip_skip 9 asks for layer"),
        (["a cat", "--prediction", "w"], "prediction should be '', 'eps' or 'v'"),
        (["a cat", "--style", "flat"], "knows no styles by name"),
        (["a cat", "--size", 68], "the nearest is 64x64"),
        (["a cat", "--refiner", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["a cat", "--wildcards", "nowhere"], "--wildcards should be a folder"),
        (["__animal__"], "animal"),
    ],
)
def test_what_cannot_be_painted_is_told(painter, argv, said):
    refused = painter("sd15", *argv)
    assert refused.status == 2
    assert said in refused.err
    assert not list(Path.cwd().glob("*.png"))


def test_the_vocabulary_lies_in_the_package():
    from importlib import resources

    home = resources.files("limner") / "data" / "clip"
    assert len(gzip.decompress((home / "merges.txt.gz").read_bytes()).splitlines()) >= 48_894
    assert "OpenAI" in (home / "NOTICE").read_text()


def test_a_diffusers_folder_paints_the_same_picture(painter, limner, tiny_checkpoint, tmp_path):
    shutil.copy(tiny_checkpoint("sdxl"), tmp_path / "xl.safetensors")
    made = limner("models", "convert", "xl.safetensors", "xl", "--layout", "diffusers")
    assert made.status == 0, made.err
    assert json.loads(Path("xl/model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    folder = limner("paint", "a cat", "-m", "xl", "-s", 1, "-q", "--size", 64, "--steps", 2, "--device", "cpu")
    assert folder.status == 0, folder.err
    file = painter("sdxl", "a cat", "-s", 1, "-q")
    assert apart(folder.lines[0], file.lines[0]) <= 1

"""`limner models`: listing, looking, adding, checking, converting and forgetting."""

import json
import os
import re
import struct
import sys
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import ModuleType

import huggingface_hub.errors
import pytest
import torch

from limner import pipeline
from limner.families import FAMILIES
from limner.families.recognise import recognise
from limner.models.clip import ClipConfig
from limner.models.unet import UnetConfig
from limner.models.vae import VaeConfig
from limner.weights.io import read_tensors, write_tensors
from limner.weights.layout import translate

TINY = {
    "denoiser": UnetConfig(width=32, multiples=(1, 2), blocks=1, depths=(1, 0), context=64),
    "autoencoder": VaeConfig(width=32, multiples=(1, 1), blocks=1),
    "text": ClipConfig(width=64, layers=1, heads=1, hidden=64, vocabulary=300),
}


def sd15(configs: dict[str, object], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Stable Diffusion 1.5 in the names of a single file."""
    family, tensors = FAMILIES["sd15"], {}
    with torch.random.fork_rng(), torch.device(device):
        for net, config in configs.items():
            prefix, naming = family.single[net]
            state = dict(family.nets[net].build(config).state_dict())
            made = translate(state, family.nets[net].naming(naming).writes(config), back=True)
            tensors |= {prefix + name: value.half() for name, value in made.items()}
    return tensors


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    return sd15(TINY)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model ships, and the store is this test's own."""
    monkeypatch.setattr(pipeline, "SHIPPED", ())
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIMNER_MODELS", raising=False)


@pytest.fixture
def cats(limner: Callable[..., object], tiny: dict[str, torch.Tensor]) -> Path:
    path = Path("cats.safetensors").absolute()
    write_tensors(path, tiny, {"modelspec.title": "Cats\x1b[2J", "modelspec.license": "MIT", "preview": "x" * 5000})
    return path


def test_what_was_added_is_listed_shown_checked_and_forgotten(limner, cats):
    said = limner("models", "add", cats, "--name", "kitty")
    assert said.status == 0 and said.out.startswith("kitty: sd15, ")
    (row,) = limner("models", "list", "--json").rows
    assert (row["name"], row["family"], row["variant"], row["kind"]) == ("kitty", "sd15", "base", "stored")
    assert row["bytes"] == cats.stat().st_size and row["parameters"] == sum(row["networks"].values()) > 0
    assert limner("models").out == limner("models", "list").out
    assert limner("models").lines[1].split()[:2] == ["kitty", "sd15"]
    assert limner("models", "verify").lines == ["good  kitty  cats.safetensors"]
    assert limner("models", "show", "kitty", "--json").rows[0]["source"] == str(cats)
    said = limner("models", "remove", "kitty")
    assert said.out == f"kitty is forgotten; {cats} stays\n" and cats.exists()
    assert limner("models").lines == ["name  family  parameters  on disk  where"]


def test_a_changed_file_is_status_1(limner, cats):
    limner("models", "add", cats)
    data = bytearray(cats.read_bytes())
    data[-1] ^= 1
    cats.write_bytes(data)
    said = limner("models", "verify", "cats")
    assert said.status == 1 and said.lines == ["changed  cats  cats.safetensors"]
    said = limner("models", "verify", "--json")
    assert said.status == 1
    assert said.rows == [{"name": "cats", "good": False, "files": {"cats.safetensors": "changed"}}]
    assert limner("models", "verify", "dogs").status == 2


def test_a_copy_is_deleted_after_it_was_said(limner, cats, tmp_path):
    limner("models", "add", cats, "--copy")
    own = tmp_path / "home" / "models" / "cats.safetensors"
    assert own.read_bytes() == cats.read_bytes()
    said = limner("models", "remove", "cats")
    assert said.lines[0].startswith(f"deleting {own} (") and said.lines[1] == "cats is forgotten"
    assert not own.exists() and cats.exists()


def test_show_tells_parts_types_metadata_and_what_is_missing(limner, cats, tiny):
    said = limner("models", "show", cats)
    assert said.status == 0 and said.lines[0].startswith(f"{cats}: sd15, single file, ")
    parts = {line.split()[0]: line.split() for line in said.lines[1:5]}
    assert set(parts) == {"part", "denoiser", "autoencoder", "text"} and parts["text"][-1] == "f16"
    assert "licence  " in said.out and "MIT" in said.out and "missing" not in said.out
    assert "Cats\\x1b[2J" in said.out and "... (5,000 letters)" in said.out
    found = limner("models", "show", cats, "--json").rows[0]
    assert found["parts"]["text"]["types"] == {"f16": found["parts"]["text"]["parameters"]}
    assert found["licence"] == "MIT" and found["missing"] == [] and found["metadata"]["modelspec.license"] == "MIT"
    assert sum(part["parameters"] for part in found["parts"].values()) == sum(x.numel() for x in tiny.values())
    write_tensors(Path("bare.safetensors"), {n: x for n, x in tiny.items() if n.startswith("model.")})
    assert re.search(r"missing +autoencoder, text", limner("models", "show", "bare.safetensors").out)


def test_show_reads_no_more_of_a_large_file_than_of_a_small_one(limner, monkeypatch):
    """The published sizes in 64 bits, 8.5 GB, in a file that has a header and a hole."""
    whole = {"denoiser": UnetConfig(), "autoencoder": VaeConfig(), "text": ClipConfig()}
    header, at = {}, 0
    for name, value in sd15(whole, "meta").items():
        end = at + prod(value.shape) * 8
        header[name] = {"dtype": "F64", "shape": list(value.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    path = Path("large.safetensors")
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, path.stat().st_size + at)
    assert path.stat().st_size > 8.4e9
    monkeypatch.setattr(torch, "frombuffer", lambda *_, **__: pytest.fail("a tensor was read"))
    begun = time.process_time()
    said = limner("models", "show", path)
    assert time.process_time() - begun < 1
    assert said.status == 0 and "859,520,964  f64" in said.out and "sd15, single file, 8.5 GB" in said.out


def test_what_lies_in_the_folders_of_other_programs_is_listed(limner, cats, monkeypatch):
    for place in ("comfy/checkpoints/dogs.safetensors", "comfy/loras/ink.safetensors"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_bytes(cats.read_bytes())
    torch.save({"x": torch.ones(2)}, "comfy/checkpoints/old.ckpt")
    monkeypatch.setenv("LIMNER_MODELS", str(Path("comfy").absolute()))
    rows = {row["name"]: row for row in limner("models", "list", "--json").rows}
    assert {name: row["family"] for name, row in rows.items()} == {"dogs": "sd15", "old": "unreadable", "ink": "lora"}
    assert "limner models convert old.ckpt old.safetensors" in rows["old"]["error"]
    said = limner("models")
    assert said.status == 0 and "limner models show PATH" in said.lines[-1]
    limner("models", "add", "comfy/checkpoints/dogs.safetensors", "--name", "dogs")
    assert [row["kind"] for row in limner("models", "list", "--json").rows if row["name"] == "dogs"] == ["stored"]


def test_a_pickle_is_converted_and_then_shown(limner, tiny):
    torch.save({"state_dict": tiny, "global_step": 3}, "old.ckpt")
    said = limner("models", "add", "old.ckpt")
    assert said.status == 2 and "limner models convert old.ckpt old.safetensors" in said.err
    said = limner("models", "convert", "old.ckpt", "new.safetensors")
    assert said.lines == [f"{len(tiny)} tensors of state_dict; left out: global_step", "new.safetensors"]
    found = read_tensors(Path("new.safetensors"))
    assert found.keys() == tiny.keys() and all(torch.equal(found[name], tiny[name]) for name in tiny)
    assert limner("models", "show", "new.safetensors").status == 0
    said = limner("models", "convert", "old.ckpt", "new.safetensors")
    assert said.status == 2 and "nothing is written over" in said.err


def test_a_pickle_goes_straight_into_another_layout_and_type(limner, tiny):
    torch.save(tiny, "old.ckpt")
    assert limner("models", "convert", "old.ckpt", "new", "--layout", "diffusers", "--dtype", "fp32").status == 0
    part = recognise(Path("new")).parts["denoiser"]
    assert part.layout == "diffusers" and list(part.dtypes) == ["f32"]
    assert sorted(path.name for path in Path().iterdir()) == ["new", "old.ckpt"]


def test_a_layout_and_back_gives_the_same_bits(limner, cats, tiny):
    assert limner("models", "convert", "cats.safetensors", "folder").status == 0
    assert limner("models", "convert", "folder", "back.safetensors").status == 0
    found = read_tensors(Path("back.safetensors"))
    assert found.keys() == tiny.keys() and all(torch.equal(found[name], tiny[name]) for name in tiny)
    said = limner("models", "convert", cats, "out.safetensors", "--layout", "diffusers")
    assert said.status == 2 and "does not fit --layout diffusers" in said.err
    assert limner("models", "convert", "nowhere.safetensors", "out").status == 2


@pytest.mark.parametrize("words", [b"not a pickle at all", b""])
def test_what_is_called_a_pickle_and_is_none_is_said(limner, words):
    Path("old.ckpt").write_bytes(words)
    said = limner("models", "convert", "old.ckpt", "new.safetensors")
    assert said.status == 2 and "old.ckpt is not converted" in said.err and said.err.count("\n") == 1


def test_an_address_on_the_hub_is_fetched_and_recorded(limner, cats, monkeypatch):
    hub = ModuleType("huggingface_hub")
    hub.errors = huggingface_hub.errors
    hub.hf_hub_download = lambda *_, **__: str(cats)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    said = limner("models", "add", "hf:org/name/kitten.safetensors")
    assert said.status == 0 and said.out.startswith("kitten: sd15")
    assert limner("models", "list", "--json").rows[0]["source"] == "hf:org/name/kitten.safetensors"
    assert "for they hold no code" in limner("models", "add", "hf:org/name/x.ckpt").err
    assert "--variant is for" in limner("models", "add", cats, "--variant", "fp16").err


def test_nothing_asks_for_the_hub_unless_it_is_typed(limner, cats, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    for words in (("add", cats), ("list",), ("show", cats), ("verify",), ("remove", "cats")):
        assert limner("models", *words).status == 0

"""`limner models convert`: from GGUF to safetensors, and to the types that weights are kept in."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.weights.test_gguf import q8

from limner.families.recognise import recognise
from limner.weights.io import read_header


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is this test's own."""
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIMNER_MODELS", raising=False)


def test_a_gguf_file_becomes_safetensors(limner: Callable[..., Any], tiny_checkpoint, tmp_path):
    path = q8(tmp_path / "old.gguf", tiny_checkpoint("sd15"))
    assert limner("models", "add", path, "--name", "old").status == 0
    assert limner("models", "verify", "old").lines == ["good  old  old.gguf"]
    shown = limner("models", "show", "old", "--json").rows[0]
    assert "q8_0" in shown["parts"]["denoiser"]["types"] and shown["licence"] == "MIT"
    assert limner("models", "convert", path, tmp_path / "new.safetensors").status == 0
    old, new = recognise(path).parts, recognise(tmp_path / "new.safetensors").parts
    for net, part in old.items():
        theirs = new[net].tensors()
        assert all(torch.equal(value, theirs[name]) for name, value in part.tensors().items())


def test_a_bad_gguf_file_is_one_sentence(limner: Callable[..., Any], tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    for command in (("show",), ("add",), ("convert",)):
        more = ("new.safetensors",) if command == ("convert",) else ()
        said = limner("models", *command, tmp_path / "bad.gguf", *more)
        assert said.status == 2 and "is not a whole GGUF file: it ends within the header" in said.err


def test_without_the_extra_its_command_is_named(limner: Callable[..., Any], tiny_checkpoint, tmp_path, monkeypatch):
    path = q8(tmp_path / "a.gguf", tiny_checkpoint("sd15"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert limner("models", "show", path).status == 0  # headers need no package
    said = limner("models", "convert", path, "new.safetensors")
    assert said.status == 2 and 'pip install "limner[gguf]"' in said.err and not Path("new.safetensors").exists()


def test_gguf_files_of_a_folder_are_found(limner: Callable[..., Any], tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    q8(tmp_path / "models" / "small.gguf", tiny_checkpoint("sd15"))
    assert "small" in [row["name"] for row in limner("models", "list", "--json").rows]
    assert limner("models", "show", "small", "--json").rows[0]["family"] == "sd15"


@pytest.mark.parametrize(("said", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("flag", ["--precision", "--dtype"])
def test_types(said, kind, flag, limner: Callable[..., Any], tiny_checkpoint):
    assert limner("models", "convert", tiny_checkpoint("sd15"), "new.safetensors", flag, said).status == 0
    assert {entry.dtype for entry in read_header(Path("new.safetensors")).entries.values()} == {kind}


def test_int8_is_told_by_show_and_is_small(limner: Callable[..., Any], tiny_checkpoint):
    assert limner("models", "convert", tiny_checkpoint("sd15"), "half.safetensors", "--precision", "fp16").status == 0
    assert limner("models", "convert", "half.safetensors", "small.safetensors", "--precision", "int8").status == 0
    small, half = (Path(f"{name}.safetensors").stat().st_size for name in ("small", "half"))
    assert small < half
    types = limner("models", "show", "small.safetensors", "--json").rows[0]["parts"]["denoiser"]["types"]
    assert set(types) == {"i8", "f16"} and types["i8"] > 5 * types["f16"]
    said = limner("models", "convert", "half.safetensors", "folder", "--precision", "int8")
    assert said.status == 2 and "single file" in said.err

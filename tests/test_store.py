"""The store: what is added is found, checked and forgotten again, and nothing but the store's own copies is deleted."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import limner.families.recognise
from limner import store
from limner.errors import BadInput, BadWeights, NotSaved, UnknownName
from limner.families import FAMILIES
from limner.weights.io import sha256, write_tensors


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own, in which every file is a model that is recognised."""

    def recognise(path: Path) -> SimpleNamespace:
        part = SimpleNamespace(parameters=6)
        metadata = {"modelspec.license": "MIT"} if path.suffix == ".safetensors" else {}
        return SimpleNamespace(
            path=path, family=FAMILIES["sd15"], variant="base", layout="single file", parts={"denoiser": part},
            metadata=metadata,
        )  # fmt: skip

    monkeypatch.setattr(limner.families.recognise, "recognise", recognise)
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIMNER_MODELS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cats.safetensors"
    write_tensors(path, {"x": torch.ones(6)})
    return path


@pytest.fixture
def folder(tmp_path: Path, file: Path) -> Path:
    path = tmp_path / "cats folder"
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "model.safetensors").write_bytes(file.read_bytes())
    (path / "unet" / "evil.py").write_text("raise SystemExit")
    (path / ".hidden.json").write_text("{}")
    (path / "model_index.json").write_text("{}")
    (path / "README.md").write_text("---\ntags:\n- cats\nlicense: openrail++\n---\n# Cats\nlicense: none\n")
    return path


def test_a_file_is_recorded_where_it_is(file):
    entry = store.add(file)
    assert (entry.name, entry.path, entry.source) == ("cats", str(file), str(file))
    assert (entry.family, entry.variant, entry.networks, entry.licence) == ("sd15", "base", {"denoiser": 6}, "MIT")
    assert entry.files == {"cats.safetensors": store.File(sha256=sha256(file), size=file.stat().st_size)}
    assert entry.size == file.stat().st_size and not entry.copied and entry.added.endswith("+00:00")
    assert store.entries() == {"cats": entry} and store.stored("cats") == file and store.stored("dogs") is None
    assert list(store.verify(entry)) == [("cats.safetensors", "good")]


def test_a_folder_is_recorded_with_what_is_read_of_it(folder):
    entry = store.add(folder)
    assert entry.name == "cats-folder" and set(entry.files) == {"model_index.json", "unet/model.safetensors"}
    assert entry.licence == "openrail++"
    assert dict(store.verify(entry)) == dict.fromkeys(entry.files, "good")
    (folder / "model_index.json").write_text("[]")
    (folder / "unet" / "model.safetensors").unlink()
    assert dict(store.verify(entry)) == {"model_index.json": "changed", "unet/model.safetensors": "gone"}


def test_one_changed_bit_is_found(file):
    entry = store.add(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert list(store.verify(entry)) == [("cats.safetensors", "changed")]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_copy_is_the_stores_own_and_goes_with_its_entry(what, request, home):
    path = request.getfixturevalue(what)
    entry = store.add(path, "mine", copy=True)
    own = home / "models" / ("mine.safetensors" if what == "file" else "mine")
    assert entry.copied and entry.path == str(own) and store.stored("mine") == own
    assert not list(own.parent.rglob("*.py")) and not list(own.parent.glob(".*"))
    assert set(dict(store.verify(entry)).values()) == {"good"}
    store.remove("mine")
    assert not own.exists() and path.exists() and store.entries() == {}


def test_removing_what_was_not_copied_deletes_nothing(file):
    store.add(file)
    store.remove("cats")
    assert file.exists() and store.entries() == {}
    with pytest.raises(UnknownName, match="no model in the store is called 'cats'"):
        store.remove("cats")


def test_removing_deletes_nothing_outside_of_the_store(file, home):
    """Somebody may have changed the file that tells where the copies are."""
    entry = store.add(file)
    book = json.loads((home / "models.json").read_text())
    book["models"][0]["copied"] = True
    (home / "models.json").write_text(json.dumps(book))
    assert store.known("cats") == entry.model_copy(update={"copied": True})
    store.remove("cats")
    assert file.exists()


def test_names_are_taken_once(file, folder):
    store.add(file, "cats")
    assert store.add(file, "cats").name == "cats"  # the same again: its digests are taken anew
    with pytest.raises(BadInput, match=f"a model called cats already, at {file}; give --name"):
        store.add(folder, "cats")
    with pytest.raises(BadInput, match="a model called mini already"):
        store.add(file, "mini", reserved=("mini",))
    for name in ("a/b", "../a", ".a", "-a", "a b", "a\n", "x" * 200):
        with pytest.raises(BadInput, match="cannot be a model's name"):
            store.add(file, name)


def test_a_model_that_is_gone_is_said(file):
    store.add(file)
    file.unlink()
    with pytest.raises(BadInput, match=r"cats was at .* and is gone; to forget it: limner models remove cats"):
        store.stored("cats")


def test_a_link_out_of_a_folder_is_not_recorded(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "unet" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BadWeights, match="is a link out of its folder"):
        store.add(folder, copy=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "its JSON"), ("[]", "damaged"), ("{", "damaged"), ('{"version": 2}', "version"),
        ('{"models": [{"name": 1}]}', "models.0"), ('{"models": [], "run": "os.system"}', "run"),
    ],
)  # fmt: skip
def test_a_damaged_store_is_said_and_kept(words, said, home, file):
    home.mkdir()
    (home / "models.json").write_text(words)
    for call in (store.entries, lambda: store.add(file), lambda: store.remove("cats")):
        with pytest.raises(BadInput, match=said):
            call()
    assert (home / "models.json").read_text() == words


def test_a_full_disk_leaves_the_store_as_it_was(file, home, monkeypatch):
    store.add(file)
    before = (home / "models.json").read_bytes()

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotSaved, match="could not be written: No space left"):
        store.add(file, "other")
    assert (home / "models.json").read_bytes() == before and [f.name for f in home.iterdir()] == ["models.json"]


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("LIMNER_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store.home() == tmp_path / "data" / "limner"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert store.home() == Path.home() / ".local" / "share" / "limner"


def test_folders_of_other_programs_are_looked_through(tmp_path, monkeypatch, folder):
    one, two = tmp_path / "ComfyUI" / "models", tmp_path / "webui"
    for place in ("checkpoints/cats.safetensors", "checkpoints/old.ckpt", "vae/ft.safetensors", "loras/ink.safetensors",
                  "embeddings/bad.pt", "checkpoints/.partial.safetensors", "checkpoints/cats.txt"):  # fmt: skip
        (one / place).parent.mkdir(parents=True, exist_ok=True)
        (one / place).touch()
    (two / "Stable-diffusion").mkdir(parents=True)
    (two / "Stable-diffusion" / "dogs.safetensors").touch()
    folder.rename(two / "whole")
    (two / "Stable-diffusion" / "up").symlink_to(two)  # leads back up
    monkeypatch.setenv("LIMNER_MODELS", os.pathsep.join((str(one), str(two), "", str(tmp_path / "gone"))))
    found = [(kind, path.name) for kind, path in store.scanned()]
    assert found[:5] == [
        ("model", "cats.safetensors"), ("model", "old.ckpt"), ("embedding", "bad.pt"), ("lora", "ink.safetensors"),
        ("model", "ft.safetensors"),
    ]  # fmt: skip
    assert set(found[5:]) == {("model", "dogs.safetensors"), ("model", "whole")}
    assert store.stored("dogs") == two / "Stable-diffusion" / "dogs.safetensors"
    assert store.stored("ft.safetensors") == one / "vae" / "ft.safetensors"
    assert store.stored("whole") == two / "whole" or store.stored("whole").samefile(two / "whole")
    assert store.stored("ink") is None and store.stored("../cats") is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlicense: mit\n---\n", "mit"), ("---\nlicense: 'a b'\n---", "a b"), ("license: mit\n", ""), ("", ""),
     ("---\nlicense: mit\n", ""), ("---\ntitle: x\n---\nlicense: mit\n", "")],
)  # fmt: skip
def test_the_licence_is_that_of_the_file_or_of_the_card(card, licence, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert store.licence(tmp_path, {}) == store.licence(tmp_path / "README.md", {}) == licence
    assert store.licence(tmp_path, {"modelspec.license": " Apache-2.0 "}) == "Apache-2.0"

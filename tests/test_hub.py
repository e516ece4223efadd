"""Addresses on the hub, and what is fetched of them: with a hub that stands in for the real one, and no network."""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import huggingface_hub.errors
import pytest

from limner.errors import BadInput
from limner.hub import Address, fetch, parse

REPO = {
    "model_index.json": json.dumps({"unet": ["diffusers", "X"], "vae": ["diffusers", "X"], "safety_checker": ["a"]}),
    "README.md": "", "unet/config.json": "{}", "unet/diffusion_pytorch_model.safetensors": "",
    "unet/diffusion_pytorch_model.fp16.safetensors": "", "unet/diffusion_pytorch_model.bin": "", "unet/evil.py": "",
    "vae/diffusion_pytorch_model.safetensors": "", "vae/diffusion_pytorch_model.fp16.safetensors": "",
    "safety_checker/model.safetensors": "", "whole.safetensors": "", "old.ckpt": "",
}  # fmt: skip


class Hub(ModuleType):
    """huggingface_hub, as far as it is used."""

    errors = huggingface_hub.errors

    def __init__(self, home: Path, repo: dict[str, str]) -> None:
        super().__init__("huggingface_hub")
        self.home, self.repo, self.asked = home, repo, list[str]()

    def hf_hub_download(self, repo: str, name: str, *, revision: str | None = None) -> str:
        self.asked.append(f"{repo}@{revision}/{name}")
        if name not in self.repo:
            raise self.errors.EntryNotFoundError("404")
        return self._put(name)

    def snapshot_download(
        self, _repo: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str] | None
    ) -> str:
        self.asked.append(f"@{revision}")
        for name in self.repo:
            wanted = any(fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(name, pattern) for pattern in ignore_patterns or ()):
                self._put(name)
        return str(self.home)

    def _put(self, name: str) -> str:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.repo[name])
        return str(path)

    @property
    def fetched(self) -> set[str]:
        return {path.relative_to(self.home).as_posix() for path in self.home.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "cache", dict(REPO))
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    return found


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("hf:a/b", Address("a/b", None, None)),
        ("hf:a-1/b.c_2", Address("a-1/b.c_2", None, None)),
        ("hf:a/b@main", Address("a/b", "main", None)),
        ("hf:a/b/c/d.safetensors", Address("a/b", None, "c/d.safetensors")),
        ("hf:a/b@0f1e/c.json", Address("a/b", "0f1e", "c.json")),
    ],
)
def test_addresses_are_read_and_written(words, address):
    assert parse(words) == address and str(address) == words


@pytest.mark.parametrize("words", ["hf:", "hf:a", "hf:/a", "hf:a/", "hf:a/b@", "hf:a b/c", "a/b", "hf:../../etc"])
def test_what_is_no_address_is_said(words):
    with pytest.raises(BadInput, match=r"is no address of a model|is not fetched"):
        parse(words)


@pytest.mark.parametrize(
    "name", ["x.ckpt", "x.bin", "x.py", "x.pt", "x", "../x.json", "a/../../x.json", "x.safetensors.py"]
)
def test_what_could_hold_code_is_not_fetched(name):
    with pytest.raises(BadInput, match="for they hold no code"):
        parse(f"hf:a/b/{name}")


def test_one_file_comes_with_its_card(hub):
    path = fetch(parse("hf:a/b@v1/whole.safetensors"))
    assert path == hub.home / "whole.safetensors" and hub.fetched == {"whole.safetensors", "README.md"}
    assert hub.asked == ["a/b@v1/README.md", "a/b@v1/whole.safetensors"]


@pytest.mark.parametrize(("variant", "tag"), [("", ""), ("fp16", ".fp16")])
def test_of_a_folder_come_the_networks_that_paint(hub, variant, tag):
    assert fetch(parse("hf:a/b"), variant) == hub.home
    weights = {f"{part}/diffusion_pytorch_model{tag}.safetensors" for part in ("unet", "vae")}
    assert hub.fetched == {"model_index.json", "README.md", "unet/config.json"} | weights


def test_a_folder_of_one_variant_alone_is_fetched(hub):
    for part in ("unet", "vae"):
        del hub.repo[f"{part}/diffusion_pytorch_model.safetensors"]
    fetch(parse("hf:a/b"))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.fetched


def test_a_folder_of_pickles_is_refused(hub):
    hub.repo = {name: text for name, text in hub.repo.items() if "safetensors" not in name}
    with pytest.raises(BadInput, match="only safetensors are fetched"):
        fetch(parse("hf:a/b"))
    assert not any(name.endswith((".bin", ".ckpt", ".py")) for name in hub.fetched)


def test_no_folder_is_told_the_way_out(hub):
    del hub.repo["model_index.json"]
    with pytest.raises(BadInput, match=r"name one of its files, as in hf:a/b/model\.safetensors"):
        fetch(parse("hf:a/b"))


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        huggingface_hub.errors.HFValidationError("a name"),
        ConnectionError("no network"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_says_is_one_sentence(hub, monkeypatch, error):
    def fails(*_args: object, **_named: object) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fails)
    for words in ("hf:a/b", "hf:a/b/whole.safetensors"):
        with pytest.raises(BadInput, match=f"could not be fetched .{type(error).__name__}"):
            fetch(parse(words))


def test_the_real_hub_has_what_is_used_of_it():
    import inspect

    snapshot = inspect.signature(huggingface_hub.snapshot_download).parameters
    assert {"revision", "allow_patterns", "ignore_patterns"} <= set(snapshot)
    assert list(inspect.signature(huggingface_hub.hf_hub_download).parameters)[:2] == ["repo_id", "filename"]
    assert issubclass(huggingface_hub.errors.LocalEntryNotFoundError, huggingface_hub.errors.EntryNotFoundError)

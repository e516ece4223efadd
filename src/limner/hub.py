"""Models from the Hugging Face hub: the only room that asks for the network, and only when somebody typed `hf:`.

huggingface_hub does the work, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean everywhere.
Nothing that could hold code is fetched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from limner.errors import BadInput, BadWeights

SCHEME = "hf:"
PATTERN = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>[^@]+))?")
SUFFIXES = (".safetensors", ".gguf", ".json", ".txt", ".md")  # what holds no code
CARDS = ("README.md", "LICENSE*")
COMPONENTS = (
    "unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
    "tokenizer_3", "scheduler",
)  # fmt: skip
VARIANTS = ("*.fp16.*", "*.non_ema.*", "*.bf16.*", "*.ema.*")  # what stands in a folder beside the plain weights


@dataclass(frozen=True)
class Address:
    """hf:ORG/NAME, hf:ORG/NAME/FILE, and either with @REVISION behind NAME."""

    repo: str
    revision: str | None
    file: str | None

    def __str__(self) -> str:
        return (
            f"{SCHEME}{self.repo}{f'@{self.revision}' if self.revision else ''}{f'/{self.file}' if self.file else ''}"
        )


def parse(text: str) -> Address:
    match = PATTERN.fullmatch(text)
    if match is None:
        raise BadInput(
            f"{text!r} is no address of a model; one is hf:ORG/NAME, hf:ORG/NAME/FILE or hf:ORG/NAME@REVISION"
        )
    file = match["file"]
    if file and (".." in PurePosixPath(file).parts or PurePosixPath(file).suffix not in SUFFIXES):
        raise BadInput(f"{file} is not fetched: of a model only {', '.join(SUFFIXES)} files are, for they hold no code")
    return Address(match["repo"], match["revision"], file)


def fetch(address: Address, variant: str = "") -> Path:
    """The file or folder that an address names, from the hub or from its cache.

    Of a diffusers folder come the networks that paint, in the variant asked for, with their configs and vocabularies.
    """
    import huggingface_hub

    try:
        if address.file:
            _card(huggingface_hub, address)
            return Path(huggingface_hub.hf_hub_download(address.repo, address.file, revision=address.revision))
        return _folder(huggingface_hub, address, variant)
    except (OSError, ValueError, huggingface_hub.errors.EntryNotFoundError) as error:
        why = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadInput(f"{address} could not be fetched ({type(error).__name__}): {why}") from error


def _folder(hub: ModuleType, address: Address, variant: str) -> Path:
    try:
        index = Path(hub.hf_hub_download(address.repo, "model_index.json", revision=address.revision))
    except hub.errors.LocalEntryNotFoundError:  # offline, and not in the cache
        raise
    except hub.errors.EntryNotFoundError:
        raise BadInput(
            f"{address} is no diffusers folder; name one of its files, as in {address}/model.safetensors"
        ) from None
    try:
        named = json.loads(index.read_text(encoding="utf-8"))
        parts = [part for part in COMPONENTS if part in named]
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{address}: model_index.json cannot be read ({error})") from error
    weights = f"*.{variant}.safetensors" if variant else "*.safetensors"
    wanted = [f"{part}/{name}" for part in parts for name in (weights, "*.json", "*.txt")]
    wanted += ["model_index.json", *CARDS]
    ignored = None if variant else list(VARIANTS)

    def snapshot(left: list[str] | None) -> Path:
        return Path(
            hub.snapshot_download(address.repo, revision=address.revision, allow_patterns=wanted, ignore_patterns=left)
        )

    folder = snapshot(ignored)
    if ignored and not any(folder.rglob("*.safetensors")):  # some keep no plain weights
        folder = snapshot(None)
    if not any(folder.rglob("*.safetensors")):
        raise BadInput(
            f"{address} holds no {weights} in {', '.join(parts) or 'any folder'}; only safetensors are fetched"
        )
    return folder


def _card(hub: ModuleType, address: Address) -> None:
    """The model card, which tells the licence; a repository may lack one."""
    try:
        hub.hf_hub_download(address.repo, CARDS[0], revision=address.revision)
    except hub.errors.EntryNotFoundError:
        return

"""The store: which models are here and under which names, and what their files were when they were added.

One JSON file in $LIMNER_HOME (else the XDG data folder) tells all; a model stays where it is unless it is copied. The
folders in $LIMNER_MODELS are looked through as well, in the layout that ComfyUI and the A1111 page keep theirs in.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from limner.errors import BadInput, NotSaved, UnknownName
from limner.recipe import SHIPPED
from limner.weights.forms import SUFFIXES
from limner.weights.io import refuse_link, sha256

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
KEPT = (*SUFFIXES, ".json", ".txt")  # what is recorded, and copied, of a folder
PICKLES = (".ckpt", ".pt", ".pth")  # shown, so that nobody wonders where they are
DEEPEST = 6  # folders below one of $LIMNER_MODELS
ASIDE = {  # folders of ComfyUI and A1111 that hold no part of a painter -> what is in them
    "loras": "lora", "lora": "lora", "lycoris": "lora", "embeddings": "embedding", "controlnet": "control",
    "t2i_adapter": "control", "upscale_models": "upscaler", "esrgan": "upscaler", "realesrgan": "upscaler",
    "clip_vision": "image encoder", "hypernetworks": "hypernetwork", "style_models": "style", "gligen": "gligen",
    "photomaker": "image encoder", "ipadapter": "adapter",
}  # fmt: skip
State = Literal["good", "changed", "gone"]


class File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int


class Entry(BaseModel):
    """One model as it was when it was added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    files: dict[str, File]  # by their place in the folder, or the one file by its name
    size: int  # bytes of them all
    family: str
    variant: str
    layout: str
    networks: dict[str, int]  # parameters of each
    added: str  # when, in UTC
    source: str  # the path or address that was typed
    licence: str = ""  # as the file or its card says
    copied: bool = False  # whether the files are the store's own

    def file(self, name: str) -> Path:
        path = Path(self.path)
        return path / name if path.name != name or path.is_dir() else path


class Book(BaseModel):
    """The file itself."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    models: list[Entry] = []


def home() -> Path:
    """Where the store is: $LIMNER_HOME, or limner in the XDG data folder."""
    if told := os.environ.get("LIMNER_HOME"):
        return Path(told).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "limner"


def entries() -> dict[str, Entry]:
    """What was added, by name."""
    path = home() / "models.json"
    try:
        book = Book.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"the store {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"the store {path} is damaged ({where or 'its JSON'}: {first['msg']}); mend it or move it"
        ) from error
    return {entry.name: entry for entry in book.models}


def _write(book: Mapping[str, Entry]) -> None:
    path = home() / "models.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(Book(models=[book[name] for name in sorted(book)]).model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise NotSaved(f"the store {path} could not be written: {error.strerror or error}") from error


def known(name: str) -> Entry:
    """An entry by its name."""
    book = entries()
    if name not in book:
        raise UnknownName("model in the store", name, book)
    return book[name]


def stored(name: str) -> Path | None:
    """Where the model of this name is: one that was added, or one in $LIMNER_MODELS by its file's name; else None."""
    if entry := entries().get(name):
        path = Path(entry.path)
        if not path.exists():
            raise BadInput(f"{name} was at {path} and is gone; to forget it: limner models remove {name}")
        return path
    if not NAME.fullmatch(name):
        return None
    return next((path for kind, path in scanned() if name in (path.name, path.stem) and kind == "model"), None)


def find_model(name: str) -> Path:
    """Where a model's weights are: a name that ships, one that was added, a folder, or a file."""
    if name in SHIPPED:
        return Path(str(resources.files("limner") / "data" / name))
    path = Path(name).expanduser()
    if path.exists():
        return path
    if added := stored(name):
        return added
    if path.suffix or "/" in name:
        raise BadInput(
            f"{name} does not exist; a model is a name ({', '.join(SHIPPED)}), a folder or a .safetensors or .gguf file"
        )
    raise UnknownName("model", name, (*SHIPPED, *entries()))


def add(path: Path, name: str = "", source: str = "", copy: bool = False, reserved: tuple[str, ...] = ()) -> Entry:
    """Record a file or folder, with its family and the SHA-256 of each file; `copy` takes it into the store.

    Raises BadWeights for what is not recognised, and BadInput where the name is taken by another model.
    """
    from limner.families.recognise import recognise

    path = path.expanduser().absolute()
    found = recognise(path)
    name = name or re.sub(r"[^A-Za-z0-9._+-]+", "-", path.stem if path.is_file() else path.name).strip("-._+")
    if not NAME.fullmatch(name):
        raise BadInput(f"{name!r} cannot be a model's name: letters, digits and . _ + - are, up to 128; give --name")
    taken = entries().get(name)
    if name in reserved or (taken and (copy or taken.copied or Path(taken.path) != path)):
        raise BadInput(f"there is a model called {name} already{f', at {taken.path}' if taken else ''}; give --name")
    files = model_files(path)
    if copy:
        path = _copy(path, files, home() / "models" / (f"{name}{path.suffix}" if path.is_file() else name))
        files = model_files(path)
    facts = {key: File(sha256=sha256(file), size=file.stat().st_size) for key, file in files.items()}
    entry = Entry(
        name=name, path=str(path), files=facts, size=sum(file.size for file in facts.values()),
        family=found.family.name, variant=found.variant, layout=found.layout,
        networks={net: part.parameters for net, part in found.parts.items()},
        added=datetime.now(UTC).isoformat(timespec="seconds"), source=source or str(path),
        licence=licence(found.path, found.metadata), copied=copy,
    )  # fmt: skip
    _write(entries() | {name: entry})  # read again: hashing takes a while, and somebody else may have added
    return entry


def model_files(path: Path) -> dict[str, Path]:
    """The files that make a model up, by their place in its folder; those of a link out of it are refused."""
    if path.is_file():
        return {path.name: path}
    found = {}
    for file in sorted(path.rglob("*")):
        place = file.relative_to(path)
        if file.suffix in KEPT and file.is_file() and not any(part.startswith(".") for part in place.parts):
            refuse_link(file, path)
            found[place.as_posix()] = file
    return found


def _copy(path: Path, files: Mapping[str, Path], target: Path) -> Path:
    partial = target.with_name(f".{target.name}.partial")
    try:
        if target.exists():
            raise BadInput(f"{target} is there already, and the store does not know it; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        for place, file in files.items():
            where = partial if path.is_file() else partial / place
            where.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, where)
        os.replace(partial, target)
    except OSError as error:
        raise NotSaved(f"{path} could not be copied to {target}: {error.strerror or error}") from error
    finally:
        _clear(partial)
    return target


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def verify(entry: Entry) -> Iterator[tuple[str, State]]:
    """Each file of a model, and whether it is still what was recorded."""
    for name, was in entry.files.items():
        file = entry.file(name)
        if not file.is_file():
            yield name, "gone"
        elif file.stat().st_size != was.size or sha256(file) != was.sha256:
            yield name, "changed"
        else:
            yield name, "good"


def remove(name: str) -> Entry:
    """Forget a model; files go only where the store copied them, and only inside the store."""
    entry = known(name)
    path = Path(entry.path)
    if entry.copied and (home() / "models").resolve() == path.parent.resolve():
        try:
            _clear(path)
        except OSError as error:
            raise NotSaved(f"{path} could not be deleted: {error.strerror or error}") from error
    _write({other: each for other, each in entries().items() if other != name})
    return entry


def licence(path: Path, metadata: Mapping[str, str]) -> str:
    """What the weights or the card beside them say of their licence."""
    for key in ("modelspec.license", "license", "licence", "general.license"):
        if metadata.get(key, "").strip():
            return metadata[key].strip()[:200]
    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(10_000).splitlines()  # the card begins with a few lines of YAML between dashes
    except OSError:
        return ""
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return ""
    head = lines[1 : lines.index("---", 1)]
    told = [line.partition(":")[2].strip().strip("\"'") for line in head if line.startswith("license:")]
    return told[0][:200] if told else ""


def scanned() -> Iterator[tuple[str, Path]]:
    """What lies in the folders of $LIMNER_MODELS: ("model" or another kind, file or diffusers folder), in order."""
    for root in os.environ.get("LIMNER_MODELS", "").split(os.pathsep):
        if root:
            yield from _below(Path(root).expanduser(), "model", DEEPEST, set())


def _below(folder: Path, kind: str, deeper: int, seen: set[Path]) -> Iterator[tuple[str, Path]]:
    kind = ASIDE.get(folder.name.lower(), kind)
    if (folder / "model_index.json").is_file():
        yield kind, folder
        return
    try:
        inside = sorted(folder.iterdir())
    except OSError:  # a folder that is gone or locked hides no other
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if deeper and (real := path.resolve()) not in seen:  # people link folders, and a link may lead up again
                seen.add(real)
                yield from _below(path, kind, deeper - 1, seen)
        elif path.suffix in (*SUFFIXES, *PICKLES):
            yield kind, path

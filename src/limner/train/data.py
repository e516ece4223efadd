"""Pictures with words: WebDataset shards, folders with metadata.jsonl, folders with .txt captions.

`read` walks a source and yields `Example`s; `pack` decodes them once into one memory-mapped array, so that a set larger
than memory trains as a small one does, and remembers what was skipped.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.errors import BadData, BadInput

PICTURES = (".webp", ".png", ".jpg", ".jpeg")
OnBad = Literal["skip", "stop"]


@dataclass(frozen=True)
class Words:
    """What is known of a picture in words."""

    key: str
    name: str  # what a person would call it
    keywords: tuple[str, ...] = ()
    style: str = ""
    concept: str = ""  # pictures that share it show the same thing
    split: str = "train"  # the shard or folder says "val" for pictures that no training may see

    @classmethod
    def of(cls, key: str, fields: dict[str, Any], split: str) -> Words:
        """From a JSON object: `name` or `text` or `caption`, and what else it has."""
        name = str(fields.get("name") or fields.get("text") or fields.get("caption") or "")
        raw = fields.get("keywords") or ()
        keywords = tuple(str(word) for word in (raw.split(",") if isinstance(raw, str) else raw))
        concept = str(fields.get("concept") or name)
        return cls(key, name, keywords, str(fields.get("style") or ""), concept, split)


@dataclass(frozen=True)
class Example:
    words: Words
    picture: bytes  # an encoded PNG, WebP or JPEG


def sources(path: Path) -> list[Path]:
    """The shards of a folder in order, or the path itself when it is a shard or a folder of pictures."""
    if not path.exists():
        raise BadInput(f"{path} does not exist; --data takes a .tar shard, a folder of shards or a folder of pictures")
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    return shards or [path]


def read(path: Path, bad: Callable[[str], None]) -> Iterator[Example]:
    """The examples of one source; `bad` is told, in a sentence, of each thing that cannot be read."""
    if path.is_file():
        yield from _read_shard(path, bad)
    elif (path / "metadata.jsonl").exists():
        yield from _read_metadata(path, bad)
    else:
        yield from _read_folder(path, bad)


def _read_shard(path: Path, bad: Callable[[str], None]) -> Iterator[Example]:
    split = "val" if path.name.startswith("val") else "train"
    waiting: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, dot, suffix = member.name.rpartition(".")
                stream = tar.extractfile(member)
                waiting.setdefault(key, {})[dot + suffix.lower()] = stream.read() if stream else b""
                parts = waiting[key]
                picture = next((parts[s] for s in PICTURES if s in parts), None)
                if picture is None or ".json" not in parts:
                    continue
                del waiting[key]
                try:
                    yield Example(Words.of(key, json.loads(parts[".json"]), split), picture)
                except (ValueError, AttributeError, TypeError, RecursionError) as error:
                    bad(f"{path.name}: the words of {key} are not a JSON object ({error})")
            end = tar.offset
        with path.open("rb") as file:  # tarfile takes a damaged header, or none, for the end of the archive
            file.seek(end)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError(f"no whole header at byte {end}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        bad(f"{path.name} is damaged or cut short: {error}")
    for key, parts in waiting.items():
        bad(f"{path.name}: {key} has {' and '.join(sorted(parts))} but not both a picture and a .json")


def _read_metadata(path: Path, bad: Callable[[str], None]) -> Iterator[Example]:
    lines = (path / "metadata.jsonl").read_bytes().splitlines()  # text would split at U+2028 inside a caption too
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            file = path / fields["file_name"]
            if path.resolve() not in file.resolve().parents:
                raise ValueError(f"{fields['file_name']} lies outside the folder")
            yield Example(Words.of(file.stem, fields, "train"), file.read_bytes())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            bad(f"{path.name}/metadata.jsonl, line {number}: {error}")


def _read_folder(path: Path, bad: Callable[[str], None]) -> Iterator[Example]:
    for file in sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES):
        caption = file.with_suffix(".txt")
        if not caption.exists():
            bad(f"{file.name} has no {caption.name} beside it")
            continue
        try:
            words = Words.of(file.stem, {"name": caption.read_text(encoding="utf-8").strip()}, "train")
            yield Example(words, file.read_bytes())
        except (ValueError, OSError) as error:
            bad(f"{caption.name} or {file.name} cannot be read: {error}")


def to_pixels(picture: bytes, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """4 H W, premultiplied: fitted into a square of `size` on a transparent ground."""
    with Image.open(io.BytesIO(picture), formats=("WEBP", "PNG", "JPEG")) as opened:
        image = opened.convert("RGBA")
    array = np.asarray(image, dtype=np.float32)
    array = np.concatenate([array[..., :3] * (array[..., 3:] / 255), array[..., 3:]], axis=2)
    if image.size != (size, size):
        scale = size / max(image.size)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        planes = [Image.fromarray(array[..., c]).resize(inner, Image.Resampling.LANCZOS) for c in range(4)]
        left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
        array = np.zeros((size, size, 4), np.float32)
        array[top : top + inner[1], left : left + inner[0]] = np.stack([np.asarray(p) for p in planes], axis=2)
    array[..., 3] = array[..., 3].clip(0, 255)
    array[..., :3] = np.minimum(array[..., :3].clip(min=0), array[..., 3:])
    return array.round().astype(np.uint8).transpose(2, 0, 1).copy()


@dataclass(frozen=True)
class Pictures:
    """A packed set: `pixels[i]` belongs to `words[i]`."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]  # N 4 H W, premultiplied, memory-mapped
    words: tuple[Words, ...]
    digest: str  # SHA-256 over keys and pixels
    skipped: tuple[str, ...] = field(default=())  # what could not be read, in words

    def __len__(self) -> int:
        return len(self.words)

    def batch(self, rows: Tensor) -> Tensor:
        """B 4 H W in [0, 1]."""
        return torch.from_numpy(self.pixels[rows.numpy()]).float() / 255

    def only(self, keep: Callable[[Words], bool]) -> Tensor:
        """The rows whose words pass, as indices."""
        return torch.tensor([i for i, words in enumerate(self.words) if keep(words)], dtype=torch.int64)


def pack(path: Path, cache: Path, size: int = 128, on_bad: OnBad = "skip") -> Pictures:
    """Decode a source once into `cache`; later calls with the same files map what is there."""
    files = sources(path)
    listed = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for file in files for f in _files(file)]
    name = hashlib.sha256(json.dumps([listed, size]).encode()).hexdigest()[:16]
    pixels_file, words_file = cache / f"pictures-{name}.u8", cache / f"pictures-{name}.json"
    if not words_file.exists():
        _pack(files, pixels_file, words_file, size, on_bad)
    stored = json.loads(words_file.read_text(encoding="utf-8"))
    if on_bad == "stop" and stored["skipped"]:
        raise BadData(stored["skipped"][0])
    words = tuple(Words(**{**w, "keywords": tuple(w["keywords"])}) for w in stored["words"])
    pixels = np.memmap(pixels_file, np.uint8, "r", shape=(len(words), 4, size, size))
    return Pictures(pixels, words, stored["digest"], tuple(stored["skipped"]))


def _files(source: Path) -> list[Path]:
    """What the pixels of a source depend on; metadata.jsonl may name pictures in folders below its own."""
    if source.is_file():
        return [source]
    return sorted(f for f in source.rglob("*") if f.suffix.lower() in (*PICTURES, ".txt", ".jsonl"))


def _pack(files: list[Path], pixels_file: Path, words_file: Path, size: int, on_bad: OnBad) -> None:
    skipped: list[str] = []

    def bad(sentence: str) -> None:
        if on_bad == "stop":
            raise BadData(sentence)
        skipped.append(sentence)

    pixels_file.parent.mkdir(parents=True, exist_ok=True)
    partial = pixels_file.with_suffix(".partial")
    words: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as out:
            for file in files:
                for example in read(file, bad):
                    try:
                        pixels = to_pixels(example.picture, size)
                    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                        bad(f"{file.name}: the picture of {example.words.key} cannot be read ({error})")
                        continue
                    out.write(pixels.tobytes())
                    digest.update(example.words.key.encode() + pixels.tobytes())
                    words.append(vars(example.words))
        if not words:
            raise BadData(f"no picture with words was found in {files[0]}" + (f": {skipped[0]}" if skipped else ""))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, pixels_file)
    stored = {"digest": digest.hexdigest(), "skipped": skipped, "words": words}
    words_file.with_suffix(".partial").write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    os.replace(words_file.with_suffix(".partial"), words_file)

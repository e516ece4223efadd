"""The pictograms from their sources: which picture is which file of which commit, and what becomes of each.

The package carries the list and not the pictures: key, words, path, commit and SHA-256 of the 128 x 128 RGBA bytes.
Files are read from clones as they were at the recorded commit, whatever is checked out there. Nothing is fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from limner.errors import BadData, BadInput
from limner.train.drawn import EXACT, Pixels, decibels, draw, from_webp, needs, webp

NEAR = 40.0  # dB on white: a root mean square difference of 2.5 in 255, which no eye finds
PLAN = Path(__file__).parents[1] / "data" / "pictograms" / "plan.json.xz"
End = Literal["same", "near", "anew", "differs", "missing"]
ENDS: dict[End, str] = {
    "same": "bit for bit",
    "near": f"not the same bytes, {NEAR:.0f} dB or better",
    "anew": "drawn anew; not the same bytes, and nothing to measure the distance by",
    "differs": "another picture",
    "missing": "could not be drawn",
}


@dataclass(frozen=True)
class Source:
    """A public repository at one commit."""

    name: str  # owner/repository
    commit: str


@dataclass(frozen=True)
class Item:
    """A picture of the list."""

    place: int  # in the shards, from the first on
    source: Source
    way: str  # how it is drawn
    fields: dict[str, Any]  # what stands in its JSON

    @property
    def file(self) -> str:
        return str(self.fields["path"]).partition("#")[0]

    @property
    def glyph(self) -> str:
        return str(self.fields["path"]).partition("#")[2]


@dataclass(frozen=True)
class Plan:
    shards: tuple[tuple[str, int], ...]  # name, and how many pictures
    items: tuple[Item, ...]  # by source and path, so that a file is opened once

    @property
    def sources(self) -> list[Source]:
        return list(dict.fromkeys(item.source for item in self.items))


@dataclass(frozen=True)
class Rebuilt:
    """What became of one picture."""

    item: Item
    end: End
    pixels: Pixels | None = None
    distance: float | None = None  # dB, where a picture to measure by was given
    reason: str = ""  # why it is missing


def read_plan(path: Path = PLAN) -> Plan:
    """The list, after its own digest in SHA256SUMS beside it was checked."""
    try:
        content = path.read_bytes()
        digest = (path.parent / "SHA256SUMS").read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError) as error:
        raise BadInput(f"{path}, the list of the pictures, or SHA256SUMS beside it cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise BadInput(f"{path} is not the list that SHA256SUMS beside it names")
    stored = json.loads(lzma.decompress(content))
    columns = stored["pictures"]
    items = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        style = stored["styles"][row["style"]]
        fields = {name: row[name] for name in ("concept", "emoji", "keywords", "name", "path", "sha256", "style")}
        fields |= {name: style[name] for name in ("commit", "license", "native_size", "source")}
        fields["key"] = f"{row['style']}-{row['number']:05d}"
        items.append(Item(row["place"], Source(style["source"], style["commit"]), style["draw"], fields))
    return Plan(tuple((name, count) for name, count in stored["shards"]), tuple(items))


# ---- clones


def find_clones(folder: Path, sources: Sequence[Source]) -> dict[Source, Path | str]:
    """For each source the clone that holds its commit, or why there is none. What a clone is called does not matter."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; --sources takes the one that holds clones of the repositories")
    clones = [path for path in _folders(folder) if (path / ".git").exists() or (path / "HEAD").is_file()]
    if not clones:
        raise BadInput(f"{folder} holds no git repository; clone into it: {', '.join(s.name for s in sources)}")
    found: dict[Source, Path | str] = {}
    for source in sources:
        commit = f"{source.commit}^{{commit}}"
        held = next((clone for clone in clones if _git(clone, "cat-file", "-e", commit) is not None), None)
        alike = next((clone for clone in clones if _is(clone, source)), None)
        if held is None and alike is not None:
            found[source] = f"{alike} does not hold commit {source.commit[:12]}; fetch it there, or clone it whole"
        else:
            found[source] = held or f"no clone of {source.name} is in {folder}"
    if not any(isinstance(each, Path) for each in found.values()):
        raise BadInput(f"no repository in {folder} holds what is wanted: {'; '.join(map(str, found.values()))}")
    return found


def _folders(folder: Path) -> list[Path]:
    """The folder, those in it, and those in them: owner/repository."""
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name != ".git"]
    further = [path for each in below if not (each / ".git").exists() for path in sorted(each.iterdir())]
    return [folder, *below, *(path for path in further if path.is_dir())]


def _is(clone: Path, source: Source) -> bool:
    """Whether a clone is one of this repository by its remotes or its folder's name."""
    remotes = (_git(clone, "config", "--get-regexp", r"^remote\..*\.url$") or b"").decode(errors="replace").lower()
    tail = source.name.lower()
    return any(line.removesuffix(".git").endswith(tail) for line in remotes.split()) or (
        not remotes and clone.name.lower().removesuffix(".git") == tail.rpartition("/")[2]
    )


def _command(clone: Path, *words: str) -> list[str]:
    return ["git", "-c", "protocol.allow=never", "-C", str(clone), *words]  # a partial clone may not fetch


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}


def _git(clone: Path, *words: str) -> bytes | None:
    """What git says, or nothing where it fails."""
    try:
        done = subprocess.run(_command(clone, *words), capture_output=True, env=_environment(), check=False)
    except FileNotFoundError as error:
        raise BadInput("git is not installed; the clones are read with it") from error
    return done.stdout if done.returncode == 0 else None


@contextlib.contextmanager
def opened(clone: Path, commit: str) -> Iterator[Reader]:
    """A reader of a commit's files: one process of git for all of them."""
    command = _command(clone, "cat-file", "--batch")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=_environment()) as process:
        assert process.stdin and process.stdout
        try:
            yield Reader(process.stdin, process.stdout, commit)
        finally:
            process.stdin.close()
            process.stdout.close()


@dataclass(frozen=True)
class Reader:
    asks: IO[bytes]
    answers: IO[bytes]
    commit: str

    def __call__(self, path: str) -> bytes | None:
        """A file's bytes as they were at the commit, or nothing."""
        try:
            self.asks.write(f"{self.commit}:{path}\n".encode())
            self.asks.flush()
        except BrokenPipeError:
            return None
        words = self.answers.readline().split()
        if len(words) < 3 or not words[-1].isdigit():
            return None
        content = self.answers.read(int(words[-1]))
        self.answers.read(1)
        return content if words[-2] == b"blob" else None


# ---- pictures


def rebuild(plan: Plan, clones: dict[Source, Path | str], measure: Path | None = None) -> Iterator[Rebuilt]:
    """Every picture of the plan in turn. `measure` is a folder of shards that distances are measured by."""
    lacking = {way: needs(way) for way in {item.way for item in plan.items}}
    with Measures(measure) as against:
        for source, items in itertools.groupby(plan.items, lambda item: item.source):
            clone = clones[source]
            if isinstance(clone, str):
                yield from (Rebuilt(item, "missing", reason=clone) for item in items)
                continue
            with opened(clone, source.commit) as read:
                for file, same in itertools.groupby(items, lambda item: item.file):
                    content = read(file)
                    for item in same:
                        yield _rebuilt(item, content, lacking[item.way], against)


def _rebuilt(item: Item, content: bytes | None, lacking: str, against: Measures) -> Rebuilt:
    if content is None:
        return Rebuilt(item, "missing", reason=f"{item.file} is not to be read at commit {item.source.commit[:12]}")
    if lacking:
        return Rebuilt(item, "missing", reason=lacking)
    try:
        pixels = draw(item.way, content, item.glyph)
    except BadData as error:
        return Rebuilt(item, "missing", reason=f"{item.fields['path']} {error}")
    if hashlib.sha256(pixels.tobytes()).hexdigest() == item.fields["sha256"]:
        return Rebuilt(item, "same", pixels)
    wanted = against.picture(item.fields["key"])
    if wanted is None:
        return Rebuilt(item, "differs" if item.way in EXACT else "anew", pixels)
    distance = decibels(pixels, wanted)
    return Rebuilt(item, "near" if distance >= NEAR else "differs", pixels, distance)


class Measures:
    """Pictures of shards by their key; opened once, read where asked."""

    def __init__(self, folder: Path | None) -> None:
        self.tars: list[tarfile.TarFile] = []
        self.members: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
        shards = sorted(folder.glob("*.tar")) if folder else []
        if folder and not shards:
            raise BadInput(f"{folder} holds no shards (.tar) to measure by")
        for path in shards:
            try:
                tar = tarfile.open(path)  # noqa: SIM115, closed by __exit__
                self.tars.append(tar)
                self.members |= {m.name.removesuffix(".webp"): (tar, m) for m in tar if m.name.endswith(".webp")}
            except (tarfile.TarError, OSError) as error:
                raise BadInput(f"{path} is no shard to measure by: {error}") from error

    def __enter__(self) -> Measures:
        return self

    def __exit__(self, *_: object) -> None:
        for tar in self.tars:
            tar.close()

    def picture(self, key: str) -> Pixels | None:
        if key not in self.members:
            return None
        tar, member = self.members[key]
        stream = tar.extractfile(member)
        return from_webp(stream.read()) if stream else None


# ---- shards


class Shards:
    """Pictures gathered in any order and written in the plan's: the same pictures give the same bytes."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.kept: dict[int, tuple[dict[str, Any], bytes]] = {}

    def add(self, done: Rebuilt) -> None:
        """Keep a picture; its JSON gets the digest of what it is now."""
        if done.pixels is not None:
            digest = hashlib.sha256(done.pixels.tobytes()).hexdigest()
            self.kept[done.item.place] = (done.item.fields | {"sha256": digest}, webp(done.pixels))

    def write(self) -> list[Path]:
        from limner.files import written

        start, paths = 0, []
        for name, count in self.plan.shards:
            held = [self.kept[place] for place in range(start, start + count) if place in self.kept]
            start += count
            if held:
                paths.append(written(self.out / f"{name}.tar", partial(_tar, held), keep=False))
        return paths


def _tar(held: list[tuple[dict[str, Any], bytes]], file: IO[bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for fields, picture in held:
            words = json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
            for suffix, content in (("webp", picture), ("json", words)):
                member = tarfile.TarInfo(f"{fields['key']}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

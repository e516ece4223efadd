"""Campaigns: a table whose rows become picture files, each once, however often the run is broken off.

`read_table` and `plan` check every row before anything is painted. `run` keeps a folder: a picture a row under a fixed
name, a line in manifest.jsonl after each picture that is safe on disk, and contact sheets at the end. A row is done
when its line stands whole, of the same digest, and its file has the SHA-256 of the line; others are painted anew.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import errno
import functools
import hashlib
import io
import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from PIL import Image

from limner.board import contact_sheet, face, overlay, place
from limner.errors import BadInput, LimnerError, NotSaved, nearest
from limner.recipe import Recipe
from limner.tasks.grid import ALIASES, SEVERAL, value_of

MANIFEST, LOCK = "manifest.jsonl", ".campaign.lock"
TOLD = 10  # bad rows that an error lists
MOST = 100_000  # rows of a table
BATCH = 8  # pictures handed to the painter at a time
WAITING = 16  # finished pictures that may wait to be saved
A_SHEET = 60  # pictures of a contact sheet
WORDS = ("negative", "style", "model", "sampler", "schedule", "toward", "effort")  # what a prompt may want as words
FILES = ("image", "mask", "logo")  # cells that name a file beside the table
HOLED = ("prompt", "negative", "toward", "text", "name", "file")  # columns whose cells may have holes
SPECIAL = ("name", "file", "logo", "text", *SEVERAL)
OURS = re.compile(r"\d{4,}-[a-z0-9-]+\.png")  # names that a broken run's pictures have, and nothing else is removed
HOLE = re.compile(r"\\([{}])|\{([^{}|$:]*)\}")  # {colour}; {a|b} and {2$$a|b} are choices, and stay

Paint = Callable[[list[Recipe]], Iterable[tuple[int, Image.Image]]]
Save = Callable[[Image.Image, Path, Recipe | None], object]  # without a recipe: a contact sheet


@dataclass(frozen=True)
class Row:
    line: int  # of the file, where the row begins
    cells: Mapping[str, str]  # by column


@dataclass(frozen=True)
class Stamp:
    """What is laid over a picture; the fields are those of `board.overlay`."""

    logo: str = ""  # a path
    text: str = ""
    at: str = "bottom right"
    margin: int = -1
    size: int = 0
    colour: str = ""
    font: str = ""  # a path

    def __bool__(self) -> bool:
        return bool(self.logo or self.text)

    def files(self) -> list[str]:
        return [path for path in (self.logo, self.font) if path] if self else []

    def on(self, image: Image.Image) -> Image.Image:
        logo, font = _logo(self.logo) if self.logo else None, Path(self.font) if self.font else None
        return overlay(image, logo, self.text, self.at, self.margin, self.size, self.colour, font)


@dataclass(frozen=True)
class Job:
    """One row, ready to paint."""

    row: int  # from 1
    line: int
    file: str  # its name in the folder
    recipe: Recipe
    stamp: Stamp
    digest: str  # of all that the picture depends on


@dataclass(frozen=True)
class Progress:
    done: int  # rows, with those of earlier runs
    total: int
    job: Job
    path: Path
    seconds: float  # since the picture before: those of one batch come together
    fresh: bool = True  # painted by this run


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file in UTF-8, its columns parted by commas, semicolons or tabs, named in its first row."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not text in UTF-8: {error}") from error
    return rows_of(text, str(path))


def rows_of(text: str, where: str = "the table") -> list[Row]:
    """The rows of a table in CSV; empty ones are passed over."""
    mark = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    found: list[tuple[int, list[str]]] = []
    before = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((before + 1, [cell.strip() for cell in cells]))
            before = reader.line_num
            if len(found) > MOST + 1:
                raise BadInput(f"{where} has more than {MOST:,} rows")
    except csv.Error as error:
        raise BadInput(f"{where} is no CSV that can be read, at line {reader.line_num}: {error}") from error
    if len(found) < 2:
        raise BadInput(f"{where} holds no row below the names of its columns")
    (_, head), *rest = found
    names = [name.lower() for name in head]
    for name in names:
        if name and names.count(name) > 1:
            raise BadInput(f"{where} has two columns called {name!r}")
    used = [i for i, name in enumerate(names) if name]
    faults = [
        f"line {line}: a cell stands in no named column; one that holds {mark!r} goes in quotes"
        for line, cells in rest
        if any(cell and (i >= len(names) or not names[i]) for i, cell in enumerate(cells))
    ]
    _refuse(faults, where)
    padded = [(line, cells + [""] * len(names)) for line, cells in rest]
    return [Row(line, {names[i]: cells[i] for i in used}) for line, cells in padded]


def _delimiter(text: str) -> str:
    """What parts the names in the first line that is not empty; what stands in quotes does not count."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    return max(",;\t", key=bare.count)


def plan(
    rows: Sequence[Row],
    fields: Mapping[str, Any] | None = None,
    template: str = "",
    stamp: Stamp | None = None,
    folder: Path = Path(),
    check: Callable[[dict[str, Any]], Recipe] = Recipe.of,
    weights: str = "",
) -> list[Job]:
    """A job for each row, or BadInput with the line and the fault of each bad row, the first ten.

    Columns are fields of the recipe under any name that the command line knows, or words for {holes} in the template,
    in prompts, in the text laid over and in names; a column such as style that a prompt takes in is no field. Empty
    cells leave what `fields` say. Paths of pictures are looked for in `folder` first. `check` makes the recipe, and
    `weights` is a digest of the model that paints; both are part of what makes a row done.
    """
    if not rows:
        raise BadInput("a campaign needs a row")
    _logo.cache_clear()  # a logo may have changed since
    stamp = Stamp() if stamp is None else stamp
    prompts = _holes([template] if template else [row.cells.get("prompt", "") for row in rows])
    others = _holes([stamp.text, *(row.cells.get(name, "") for row in rows for name in HOLED)])
    columns = _columns(list(rows[0].cells), prompts, others)
    for meant in columns.values():
        said = {meant, *SEVERAL.get(meant or "", ())}
        if meant and len(same := [other for other, also in columns.items() if also in said]) > 1:
            raise BadInput(f"the columns {' and '.join(same)} say the same of a row; keep one of them")
    jobs, faults = [], []
    width = max(4, len(str(len(rows))))
    for number, row in enumerate(rows, 1):
        try:
            jobs.append(_job(number, width, row, columns, dict(fields or {}), template, stamp, folder, check))
        except LimnerError as error:
            faults.append(f"line {row.line}: {error}")
    _refuse(faults, "the table")
    files = {path: file_digest(path) for path in {path for job in jobs for path in job.stamp.files()}}
    return [replace(job, digest=_digest(job, files, weights)) for job in jobs]


def _refuse(faults: Sequence[str], where: str) -> None:
    if faults:
        many = f"{len(faults)} rows" if len(faults) > 1 else "a row"
        more = [f"and {len(faults) - TOLD} more"] if len(faults) > TOLD else []
        raise BadInput("\n  ".join([f"{where} has {many} that cannot be painted:", *faults[:TOLD], *more]))


def _holes(texts: Iterable[str]) -> set[str]:
    return {found[2].strip().lower() for text in texts for found in HOLE.finditer(text) if found[2]} - {""}


def _columns(names: Sequence[str], prompts: set[str], others: set[str]) -> dict[str, str | None]:
    """What each column is: a field, one of SPECIAL, or None for words; given the holes of prompts and of all texts."""
    known = [*Recipe.model_fields, *ALIASES, *SPECIAL]
    meant: dict[str, str | None] = {}
    for name in names:
        plain = name.replace("-", "_").replace(" ", "_")
        found = None if plain == "version" else plain if plain in SPECIAL else ALIASES.get(plain, plain)
        if found in WORDS and name in prompts:
            found = None
        elif plain not in known:
            found = None
            if name not in prompts | others and (near := difflib.get_close_matches(plain, known, 1, 0.8)):
                raise BadInput(f"the table has a column {name!r}; did you mean {near[0]!r}?")
        meant[name] = found
    return meant


def _job(
    number: int, width: int, row: Row, columns: Mapping[str, str | None], fields: dict[str, Any], template: str,
    stamp: Stamp, folder: Path, check: Callable[[dict[str, Any]], Recipe],
) -> Job:  # fmt: skip
    from limner.files import slug

    told = {meant: text for name, text in row.cells.items() if (meant := columns[name]) and text}
    told |= {name: _beside(folder, told[name]) for name in FILES if name in told}
    told |= {name: fill(told[name], row.cells) for name in HOLED[1:] if name in told}
    name, text = told.pop("name", ""), told.pop("text", fill(stamp.text, row.cells))
    name = re.sub(r"\.(png|jpe?g|webp)$", "", told.pop("file", name), flags=re.IGNORECASE)
    stamp = replace(stamp, logo=told.pop("logo", stamp.logo), text=text)
    for meant, text in told.items():
        if meant != "prompt":
            value = _value(meant, text)
            fields |= dict(zip(SEVERAL[meant], value, strict=True)) if meant in SEVERAL else {meant: value}
    prompt = template or told.get("prompt", fields.get("prompt", ""))
    recipe = check(fields | {"prompt": fill(prompt, row.cells)})
    if stamp:
        place(stamp.at)
        if stamp.logo:
            _logo(stamp.logo)
        if stamp.font:
            face(12, Path(stamp.font))
    called = slug(name or recipe.prompt)
    return Job(number, row.line, f"{number:0{width}d}-{called}.png", recipe, stamp, "")


_value = functools.lru_cache(maxsize=4096)(value_of)


def fill(text: str, cells: Mapping[str, str]) -> str:
    """The text with each {column} replaced; \\{ is the sign itself, and choices such as {a|b} stay."""

    def one(found: re.Match[str]) -> str:
        name = (found[2] or "").strip().lower()
        if not name:
            return found[1] or found[0]
        if name not in cells:
            raise BadInput(f"no column is called {name!r}: {nearest(name, sorted(cells))}")
        return cells[name]

    return HOLE.sub(one, text)


def _beside(folder: Path, text: str) -> str:
    with contextlib.suppress(OSError, ValueError):  # what no file can be called
        if (folder / text).exists():
            return str(folder / text)
    return text


@functools.lru_cache(maxsize=16)
def _logo(path: str) -> Image.Image:
    from limner.image import open_picture

    return open_picture(Path(path)).convert("RGBA")


def _digest(job: Job, files: Mapping[str, str], weights: str) -> str:
    stamp = [asdict(job.stamp), *(files[path] for path in job.stamp.files())] if job.stamp else []
    told = json.dumps([job.recipe.canonical(), stamp, weights], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Folder:
    """The folder of a campaign while a run holds it: its manifest, and which rows are done."""

    path: Path
    lock: IO[str]
    jobs: Sequence[Job]
    manifest: IO[bytes] = field(init=False)
    done: dict[int, float] = field(default_factory=dict)  # row -> seconds
    names: set[str] = field(default_factory=set)  # of every job's file
    was: dict[int, str] = field(default_factory=dict)  # row -> file of its last line

    def __post_init__(self) -> None:
        lines = self._lines()
        last = {line["row"]: line for line in lines}
        self.was = {row: line["file"] for row, line in last.items()}
        self._tidy({line["file"] for line in lines})
        for job in self.jobs:
            line = last.get(job.row)
            if line and (line["digest"], line["file"]) == (job.digest, job.file):
                file = self.path / job.file
                if file.is_file() and file_digest(file) == line["sha256"]:
                    self.done[job.row] = line["seconds"]
        self.manifest = (self.path / MANIFEST).open("ab", buffering=0)

    def _lines(self) -> list[dict[str, Any]]:
        """What the manifest tells; a last line that a crash tore is cut off the file."""
        path = self.path / MANIFEST
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        found = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                told = json.loads(line)
                kinds = {name: type(told[name]) for name in ("row", "digest", "file", "sha256")}
                if kinds != {"row": int, "digest": str, "file": str, "sha256": str}:
                    raise ValueError("a value of another type")
                found.append(told | {"seconds": float(told["seconds"])})
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(f"{path} is damaged at line {number}; mend it or move it away") from error
        return found

    def _tidy(self, ours: set[str]) -> None:
        """Remove what broken runs left: files under way, and pictures whose row has another name by now.

        The lock's file tells which names were to be written, so that a picture without a line is known as ours.
        """
        before = set(self.lock.read().splitlines())
        names = self.names = {job.file for job in self.jobs}
        own = names if ours or before else names | {"contact-001.jpg"}
        for name in sorted(own - ours - before):
            if (self.path / name).exists():
                raise BadInput(f"{self.path / name} is in the way, and no campaign made it; give another folder")
        gone = (ours | before) - names - set(self.was.values())
        for path in (
            *self.path.glob(".limner-*.partial"),
            *(self.path / name for name in gone if OURS.fullmatch(name)),
        ):
            path.unlink(missing_ok=True)
        self.lock.write("\n" + "\n".join(sorted(names - before)) + "\n")
        self.lock.flush()
        os.fsync(self.lock.fileno())

    def keep(self, job: Job, image: Image.Image, seconds: float, save: Save) -> None:
        """Picture first, line after: the file is synced and linked before its line says so."""
        path = self.path / job.file
        save(job.stamp.on(image) if job.stamp else image, path, job.recipe)
        _sync(self.path)
        told = {"row": job.row, "digest": job.digest, "file": job.file, "sha256": file_digest(path),
                "seed": job.recipe.seed, "recipe": job.recipe.id, "seconds": round(seconds, 3)}  # fmt: skip
        self._append(json.dumps(told).encode() + b"\n")
        if (old := self.was.get(job.row, job.file)) not in self.names and OURS.fullmatch(old):
            (self.path / old).unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        end = self.manifest.seek(0, os.SEEK_END)
        try:
            if self.manifest.write(line) != len(line):
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(self.manifest.fileno())
        except OSError as error:
            self.manifest.truncate(end)  # another line may come behind
            raise NotSaved(f"{self.path / MANIFEST} could not be written: {error.strerror}") from error

    def sheets(self, save: Save) -> list[Path]:
        """Contact sheets of every picture that is there, in the order of the rows."""
        there = [job for job in self.jobs if (self.path / job.file).exists()]
        made: list[Path] = []
        for start in range(0, len(there), A_SHEET):
            part = there[start : start + A_SHEET]
            made.append(self.path / f"contact-{len(made) + 1:03d}.jpg")
            small = [_small(self.path / job.file) for job in part]
            board = contact_sheet(small, [Path(job.file).stem for job in part], 10, side=128)
            save(board.convert("RGBA"), made[-1], None)
        for path in self.path.glob("contact-[0-9][0-9][0-9].jpg"):
            if path not in made:
                path.unlink()
        return made


def run(
    jobs: Sequence[Job], paint: Paint, folder: Path, save: Save | None = None, batch: int = BATCH, sheets: bool = True
) -> Iterator[Progress]:
    """Paint what is not done yet, and yield every row once: those that are done first, then each as it is saved.

    `paint` is handed recipes of equal settings, at most `batch` at a time, and yields (index, picture). Pictures are
    saved by a second thread, so that packing and syncing one does not keep the painter waiting.
    """
    save = save or _save
    with _held(folder) as lock:
        try:
            held = Folder(folder, lock, jobs)
        except OSError as error:
            raise NotSaved(f"{folder} cannot be written to: {error.strerror}") from error
        try:
            early = [job for job in jobs if job.row in held.done]
            for i, job in enumerate(early, 1):
                yield Progress(i, len(jobs), job, folder / job.file, held.done[job.row], False)
            yield from _painted(held, paint, save, batch)
            if sheets and (len(early) < len(jobs) or not (folder / "contact-001.jpg").exists()):
                held.sheets(save)
            lock.truncate(0)
            lock.write("\n".join(sorted(held.names)))
        finally:
            held.manifest.close()


def _painted(folder: Folder, paint: Paint, save: Save, batch: int) -> Iterator[Progress]:
    """The rest of the rows; pictures that are finished when a run is broken off are still saved."""
    waiting: deque[tuple[Job, float, Future[None]]] = deque()

    def saved(most: int) -> Iterator[Progress]:
        while waiting and (len(waiting) > most or waiting[0][2].done()):
            job, seconds, future = waiting.popleft()
            future.result()
            folder.done[job.row] = seconds
            yield Progress(len(folder.done), len(folder.jobs), job, folder.path / job.file, seconds)

    with ThreadPoolExecutor(1, "saving") as saver:
        for part in batches([job for job in folder.jobs if job.row not in folder.done], batch):
            begun = time.monotonic()
            for i, picture in paint([job.recipe for job in part]):
                now = time.monotonic()
                future = saver.submit(folder.keep, part[i], picture, now - begun, save)
                waiting.append((part[i], now - begun, future))
                begun = now
                yield from saved(WAITING)
        yield from saved(0)


def batches(jobs: Sequence[Job], most: int = BATCH) -> list[list[Job]]:
    """Jobs that differ in words and seed alone stand together, in the order in which their settings first come."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        settings = job.recipe.model_dump(mode="json", exclude={"prompt", "negative", "style", "seed"})
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(job)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


def _save(image: Image.Image, path: Path, recipe: Recipe | None) -> None:
    from limner.files import save_picture

    save_picture(image.convert("RGBA"), path, None, b"", b"", keep=False)


def _small(path: Path) -> Image.Image:
    from limner.image import open_picture

    image = open_picture(path).convert("RGBA")
    image.thumbnail((128, 128), Image.Resampling.LANCZOS)
    return image


def _sync(folder: Path) -> None:
    """The folder's own entries to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[IO[str]]:
    """The folder for this process alone; the lock of a process that is gone, killed even, is gone with it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise NotSaved(f"{folder} cannot be written to: {error.strerror}") from error
    with lock:
        try:
            if sys.platform == "win32":
                import msvcrt

                lock.seek(2**30)  # a byte beyond what is read; Windows keeps others from reading locked ones
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(f"{folder} is in use by another campaign ({error.strerror})") from error
        lock.seek(0)
        yield lock

"""Search of a folder by words or by a picture, with an index of what a looker saw that is kept and updated.

The index is a safetensors file: one row of half-precision numbers a picture, and beside it the picture's path below
the folder, its size, time and SHA-256. A search reads the pictures that are new or changed and no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from limner.errors import BadInput, BadWeights, NotSaved
from limner.image import from_pil, in_srgb, open_picture
from limner.looker import Looker
from limner.weights.io import read_header, read_tensors, sha256, write_tensors

NAME = ".limner-index.safetensors"
MARK = "limner-index"  # the metadata's name for the version, by which an index is known
VERSION = "1"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".exr")
AT_ONCE = 32  # pictures that are seen together
EVERY = 256  # pictures after which the index is saved, so that little is lost where somebody stops
SIDE = 512  # pixels that the shorter side is reduced to before a batch is gathered: no looker sees more
RACY = 2_000_000_000  # nanoseconds: as coarse as times of files get (FAT); a file may change within and keep its time


@dataclass(frozen=True)
class Row:
    """A picture as it was when it was seen."""

    path: str  # below the folder, with forward slashes
    size: int
    mtime_ns: int
    seen_ns: int
    sha256: str


@dataclass
class Index:
    """What was seen of a folder; `rows[i]` belongs to `vectors[i]`."""

    folder: Path
    file: Path
    digest: str  # of the looker
    rows: list[Row] = field(default_factory=list)
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float16))  # N S

    def save(self) -> None:
        """Written whole or not at all. Raises NotSaved."""
        table = json.dumps([asdict(row) for row in self.rows]).encode()
        tensors = {"vectors": self.vectors, "rows": torch.frombuffer(bytearray(table), dtype=torch.uint8)}
        write_tensors(self.file, tensors, {MARK: VERSION, "looker": self.digest})

    def search(self, wanted: Tensor, count: int) -> list[tuple[Path, float]]:
        """The pictures most like a unit vector, S, with their cosines; the best first."""
        if not self.rows:
            return []
        values, order = (self.vectors.float() @ wanted.float()).topk(min(count, len(self.rows)))
        found = zip(order.tolist(), values.tolist(), strict=True)
        return [(self.folder / self.rows[i].path, value) for i, value in found]


@dataclass(frozen=True)
class Progress:
    """One more picture was seen, or could not be: then `unread` says why."""

    done: int
    total: int
    unread: str = ""


def index_file(folder: Path) -> Path:
    """Where the index of a folder is kept: in it, or in the user's cache where it cannot be written."""
    own = folder / NAME
    if os.access(own if own.exists() else folder, os.W_OK) and os.access(folder, os.W_OK):
        return own
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "limner" / "index"
    return cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.safetensors"


def open_index(folder: Path, looker: Looker, file: Path | None = None) -> Index:
    """The index of a folder as it stands; an empty one where there is none, or it is torn or another looker's.

    Raises BadInput for a folder that is none, and for a file that is something else and must not be written over.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder" if folder.exists() else f"{folder} does not exist")
    empty = Index(folder, file or index_file(folder), looker.digest)
    if not empty.file.exists():
        return empty
    if file and not _is_ours(file):
        raise BadInput(f"{file} is no index of Limner and is not written over; name another --index")
    try:
        header = read_header(empty.file)
        if header.metadata.get(MARK) != VERSION:
            raise ValueError(f"it is of version {header.metadata.get(MARK)}, not {VERSION}")
        tensors = {name: value.clone() for name, value in read_tensors(empty.file, header).items()}
        rows = [_row(**row) for row in json.loads(tensors["rows"].numpy().tobytes())]
        vectors = tensors["vectors"]
        if vectors.dtype != torch.float16 or vectors.ndim != 2 or len(vectors) != len(rows):
            raise ValueError(f"it has {len(rows)} pictures and vectors {list(vectors.shape)} of {vectors.dtype}")
    except (BadWeights, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(f"the index {empty.file} cannot be read and is made anew: {error}", stacklevel=2)
        return empty
    if header.metadata.get("looker") != looker.digest:
        warnings.warn(f"the index {empty.file} is another model's and is made anew for {looker.name}", stacklevel=2)
        return empty
    return replace(empty, rows=rows, vectors=vectors)


def refreshed(index: Index, looker: Looker) -> Generator[Progress]:
    """Bring an index up to date: see what is new or changed, drop what is gone, skip in words what cannot be read.

    Saved every few hundred pictures, at the end, and where whoever consumes this stops.
    """
    known = {row.path: (row, vector) for row, vector in zip(index.rows, index.vectors, strict=True)}
    there = list(pictures_below(index.folder))
    kept: dict[str, tuple[Row, Tensor]] = {}
    unseen: list[str] = []
    for path in there:
        row = _still(index.folder / path, known[path][0]) if path in known else None
        if row:
            kept[path] = row, known[path][1]
        else:
            unseen.append(path)
    stale = kept.keys() != known.keys() or any(kept[path][0] != known[path][0] for path in kept)
    try:
        for i in range(0, len(unseen), AT_ONCE):
            read = [_read(index.folder, path) for path in unseen[i : i + AT_ONCE]]
            good = [one for one in read if not isinstance(one, str)]
            if good:
                stale = True
                vectors = looker.see([picture for _, picture in good]).half()
                kept |= {row.path: (row, vector) for (row, _), vector in zip(good, vectors, strict=True)}
            for k, one in enumerate(read):
                yield Progress(i + k + 1, len(unseen), one if isinstance(one, str) else "")
            if stale and (i // AT_ONCE + 1) % (EVERY // AT_ONCE) == 0:
                _keep(index, kept)
                stale = False
    finally:
        if stale:
            _keep(index, kept)


def _keep(index: Index, kept: dict[str, tuple[Row, Tensor]]) -> None:
    index.rows = [row for row, _ in kept.values()]
    if kept:
        index.vectors = torch.stack([vector for _, vector in kept.values()])
    else:
        index.vectors = torch.zeros(0, 0, dtype=torch.float16)
    try:
        index.save()
    except NotSaved as error:  # the search itself needs no file
        warnings.warn(f"the index is not kept: {error}", stacklevel=2)


def pictures_below(folder: Path) -> Iterator[str]:
    """Paths of the pictures in a folder and the folders in it, in order; nothing hidden, no link that leads out."""
    root = folder.resolve()
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(where) / name
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if not path.is_symlink() or root in path.resolve().parents:
                yield path.relative_to(folder).as_posix()


def query(looker: Looker, words: str = "", like: Path | None = None) -> Tensor:
    """The unit vector that is searched for, S: of words, or of a picture."""
    if bool(words.strip()) == (like is not None):
        raise BadInput("a search wants words or a picture (--like), one of the two")
    return looker.see([_small(open_picture(like))])[0] if like else looker.read([words])[0]


def _row(path: str, size: int, mtime_ns: int, seen_ns: int, sha256: str) -> Row:
    """A row of a file that anybody may have written."""
    if not all(isinstance(text, str) for text in (path, sha256)):
        raise TypeError(f"a path or digest is no text: {path!r:.80}")
    return Row(path, int(size), int(mtime_ns), int(seen_ns), sha256)


def _still(file: Path, row: Row) -> Row | None:
    """The row of a file that did not change, brought up to date; None where it is to be seen again.

    Size and time tell at once. Where the time is another, or was too fresh when the file was seen, its SHA-256 does.
    """
    try:
        stat = file.stat()
        if stat.st_size != row.size:
            return None
        if stat.st_mtime_ns == row.mtime_ns and row.seen_ns - row.mtime_ns > RACY:
            return row
        now = time.time_ns()
        same = sha256(file) == row.sha256
    except OSError:
        return None
    return replace(row, mtime_ns=stat.st_mtime_ns, seen_ns=now) if same else None


def _read(folder: Path, path: str) -> tuple[Row, Tensor] | str:
    """A picture and its row, or why there is none."""
    file, now = folder / path, time.time_ns()
    try:
        stat, digest = file.stat(), sha256(file)
        with warnings.catch_warnings(action="ignore"):  # what a reader loses of depth or colour is nothing to a looker
            picture = _small(open_picture(file))
    except BadInput as error:
        return str(error)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror or error}"
    return Row(path, stat.st_size, stat.st_mtime_ns, now, digest), picture


def _small(image: Image.Image) -> Tensor:
    """4 H W, premultiplied, no larger than lookers see."""
    image = in_srgb(image).convert("RGBA")
    scale = SIDE / min(image.size)
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), reducing_gap=3)
    return from_pil(image)


def _is_ours(file: Path) -> bool:
    """Whether a file says in its first bytes that it is an index, torn as it may be; an empty one is nobody's."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        first = opened.read(1024)
        return not first or MARK.encode() in first
    return False

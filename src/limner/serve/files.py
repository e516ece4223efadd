"""The server's pictures as files, each named by the digest of its bytes: whole or not there, and the same bytes once.

A file is written under another name, synced, renamed, and its folder synced (ALICE, Pillai et al., OSDI 2014), so a
name that exists is a file that is complete, whenever the power fails. Only then may a row name it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from limner.errors import BadInput, NotSaved

DIGEST = re.compile(r"[0-9a-f]{64}")
ASIDE = "."  # how names begin that are no digest: files on the way in or out


class Files:
    """A folder of files by digest: ab/abcdef..., two letters a folder."""

    def __init__(self, folder: Path, step: Callable[[str], None] = lambda _: None) -> None:
        """`step` is told before each step ("write", "sync", "rename", "row") of a put; tests fail there, or die."""
        self.folder = Path(folder)
        self.step = step
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, sha256: str) -> Path:
        """Where the file of a digest is, if it is kept."""
        if not DIGEST.fullmatch(sha256):
            raise BadInput(f"{sha256[:70]!r} is no SHA-256 in hexadecimal")
        return self.folder / sha256[:2] / sha256

    def put(self, data: bytes) -> str:
        """Keep bytes, and return their digest when they are on the disk; where they are kept already, they stay."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        aside = path.parent / f"{ASIDE}{digest[:8]}.{secrets.token_hex(8)}"
        try:
            if not _touched(path, len(data)):
                self._write(path, aside, data)
        except BaseException as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise NotSaved(f"{path} could not be written: {error.strerror or error}") from error
            raise
        self.step("row")
        return digest

    def _write(self, path: Path, aside: Path, data: bytes) -> None:
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True, mode=0o700)
            _sync_folder(self.folder)
        self.step("write")
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            self.step("sync")
            os.fsync(file.fileno())
        self.step("rename")
        os.replace(aside, path)
        _sync_folder(path.parent)

    def read(self, sha256: str) -> bytes:
        """The bytes of a digest, checked against it."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadInput(f"{path} is not the file that was kept: its SHA-256 has changed")
        return data

    def sweep(self, known: Collection[str], older_than: float = 3600.0) -> list[str]:
        """Remove what no row names and what was left half-written, where nothing touched it for so many seconds.

        `known` is read before the sweep; a file that is put meanwhile is young, since a put touches the file that is
        kept already, and so it outlives the sweep although its row came too late for `known`.
        """
        gone, before = [], time.time() - older_than
        for path in self._all():
            if path.name not in known and _older(path, before) and self._remove(path, before):
                gone.append(path.name)
        return sorted(gone)

    def _all(self) -> Iterator[Path]:
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            yield from (path for path in folder.iterdir() if path.name[0] == ASIDE or DIGEST.fullmatch(path.name))

    def _remove(self, path: Path, before: float) -> bool:
        """Take a file aside, look again, and only then remove it: a put in between gets it back, or writes it anew."""
        aside = path.with_name(f"{ASIDE}{path.name[:8]}.{secrets.token_hex(8)}")
        try:
            os.replace(path, aside)
            if not _older(aside, before):
                os.replace(aside, path)
                return False
            aside.unlink()
        except FileNotFoundError:  # another sweep was faster
            return False
        return True


def _touched(path: Path, size: int) -> bool:
    """Whether a whole file is there already; a sweep lets it live from now on."""
    try:
        os.utime(path)
        return path.stat().st_size == size  # a file that was cut from outside is written anew
    except FileNotFoundError:
        return False


def _older(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

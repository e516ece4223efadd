"""Files by digest: whole or not there, the same bytes once, and swept without harm to what is being put."""

import contextlib
import errno
import hashlib
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limner.errors import BadInput, NotSaved
from limner.serve import files as module
from limner.serve.files import Files

DATA = b"\x89PNG some bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "pictures")


def there(files: Files) -> list[str]:
    return sorted(path.name for path in files.folder.rglob("*") if path.is_file())


def aged(path: Path, seconds: float = 7200) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_bytes_are_kept_once_under_their_digest(files):
    assert files.put(DATA) == files.put(DATA) == DIGEST
    assert files.path(DIGEST) == files.folder / DIGEST[:2] / DIGEST and files.read(DIGEST) == DATA
    assert there(files) == [DIGEST] and files.put(b"") != DIGEST and len(there(files)) == 2
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name", ["", "..", "../../etc/passwd", DIGEST[:-1], DIGEST.upper(), f"{DIGEST}\n", f"{DIGEST}/x"]
)
def test_only_a_digest_is_a_name(files, name):
    with pytest.raises(BadInput, match="is no SHA-256 in hexadecimal"):
        files.path(name)


def test_reading_checks_the_digest(files):
    files.put(DATA)
    files.path(DIGEST).write_bytes(DATA[:-1] + b"!")
    with pytest.raises(BadInput, match="is not the file that was kept: its SHA-256 has changed"):
        files.read(DIGEST)
    with pytest.raises(BadInput, match="cannot be read: No such file or directory"):
        files.read("ab" * 32)


def test_a_file_cut_short_from_outside_is_written_anew(files):
    files.put(DATA)
    files.path(DIGEST).write_bytes(b"")
    assert files.put(DATA) == DIGEST and files.read(DIGEST) == DATA


def test_the_name_comes_after_the_bytes_are_synced_and_the_row_after_the_name(files, monkeypatch):
    done: list[str] = []

    def sync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append("sync folder" if folder else f"sync {os.fstat(handle).st_size}")

    replace = os.replace
    monkeypatch.setattr(module.os, "fsync", sync)
    monkeypatch.setattr(module.os, "replace", lambda a, b: (done.append("replace"), replace(a, b)))
    files.step = done.append
    files.put(DATA)
    assert done == [
        "sync folder", "write", "sync", f"sync {len(DATA)}", "rename", "replace", "sync folder", "row",
    ]  # fmt: skip
    done.clear()
    files.put(DATA)
    assert done == ["row"]  # nothing is written twice


@pytest.mark.parametrize("where", ["write", "sync", "rename"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_says_so(files, where, error):
    def fail(now: str) -> None:
        if now == where:
            raise OSError(error, os.strerror(error))

    files.step = fail
    with pytest.raises(NotSaved, match=rf"{DIGEST} could not be written: {os.strerror(error)}"):
        files.put(DATA)
    assert there(files) == []
    files.step = lambda _: None
    assert files.put(DATA) == DIGEST and there(files) == [DIGEST]


def test_a_put_that_is_stopped_leaves_nothing(files):
    def stop(now: str) -> None:
        if now == "rename":
            raise KeyboardInterrupt

    files.step = stop
    with pytest.raises(KeyboardInterrupt):
        files.put(DATA)
    assert there(files) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    files = Files(tmp_path / "pictures")
    (files.folder / DIGEST[:2]).write_bytes(b"a file where a folder should be")
    with pytest.raises(NotSaved, match=r"could not be written: Not a directory"):
        files.put(DATA)


def test_a_sweep_removes_what_no_row_names_when_it_is_old(files):
    kept, old, young = (files.put(data) for data in (b"kept", b"old", b"young"))
    for digest in (kept, old):
        aged(files.path(digest))
    half = aged_file(files.path(old).parent / ".1234.half")
    fresh = files.path(old).parent / ".5678.half"
    fresh.write_bytes(b"being written")
    foreign = aged_file(files.folder / "notes.txt"), aged_file(files.path(old).parent / "thumbs.db")
    assert files.sweep({kept}) == sorted([old, half.name])
    assert there(files) == sorted([kept, young, fresh.name, *(path.name for path in foreign)])
    assert files.sweep({kept}, older_than=-1) == sorted([young, fresh.name])
    assert files.sweep(set(), older_than=-1) == [kept]


def aged_file(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    return aged(path)


def test_a_put_of_old_bytes_outlives_the_sweep_that_comes_after(files):
    files.put(DATA)
    aged(files.path(DIGEST))
    files.put(DATA)
    assert files.sweep(set()) == [] and files.read(DIGEST) == DATA


@pytest.mark.parametrize("moment", ["before it is taken aside", "while it is aside"])
def test_a_put_in_the_middle_of_a_sweep_keeps_its_file(files, monkeypatch, moment):
    files.put(DATA)
    path, replace, again = aged(files.path(DIGEST)), os.replace, []

    def between(source: Path, target: Path) -> None:
        if source == path and not again:  # the sweep takes the file aside
            again.append(True)
            if moment == "before it is taken aside":
                files.put(DATA)
                replace(source, target)
            else:
                replace(source, target)
                files.put(DATA)
        else:
            replace(source, target)

    monkeypatch.setattr(module.os, "replace", between)
    files.sweep(set())
    assert again and files.read(DIGEST) == DATA and there(files) == [DIGEST]


def test_many_threads_put_the_same_bytes_while_another_sweeps(files):
    stop, made = threading.Event(), [bytes([i]) * 1000 for i in range(5)]
    for data in made:
        files.put(data)

    def sweep() -> None:
        while not stop.is_set():
            files.sweep(set(), older_than=60)

    def put(i: int) -> None:
        path = files.path(hashlib.sha256(made[i % 5]).hexdigest())
        with contextlib.suppress(FileNotFoundError):  # swept just now
            aged(path)
        files.put(made[i % 5])

    with ThreadPoolExecutor(2) as pool:
        sweeper = pool.submit(sweep)
        try:
            for i in range(60):
                put(i)
        finally:
            stop.set()
        sweeper.result()
    assert sorted(map(files.read, there(files))) == made

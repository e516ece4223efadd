"""A job that was accepted runs at least once and finishes exactly once, whoever is killed and whatever is full.

Processes are killed with SIGKILL: half of them at a moment told to them, so that every moment has its turn, half of
them by a clock that knows nothing. What they believed is in a log, and is compared with the rows and the files.
"""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from tests.serve import fake_worker
from tests.serve.databases import KINDS, url_of

from limner.serve.files import Files
from limner.serve.store import Store

DEADLINE = 60  # seconds until what is left must be done


class Nursery:
    """A process that forks others, since starting Python forty times takes longer than the test."""

    def __init__(self, url: str, folder: Path) -> None:
        self.log = folder / "log"
        command = [sys.executable, fake_worker.__file__, url, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fork(self, role: str, moment: str = "never", count: int = 1) -> int:
        print(role, moment, count, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def said(self) -> list[list[str]]:
        return [line.split(maxsplit=1) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def of(self, what: str) -> Counter[str]:
        return Counter(rest for word, rest in self.said() if word == what)


@contextmanager
def nursery(url: str, folder: Path) -> Iterator[Nursery]:
    born = Nursery(url, folder)
    try:
        yield born
    finally:
        born.process.stdin.close()
        born.process.stdout.close()
        born.process.wait()


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def killed(born: Nursery, store: Store, kills: int, seed: int) -> Counter[str]:
    """Keep three workers and one client at work, and kill them so many times; returns who died how often where.

    On a busy machine the clock kills many before they have done anything: it goes on until enough was accepted.
    """
    rng, deaths = random.Random(seed), Counter[str]()
    moments = [("work", moment) for moment in fake_worker.MOMENTS] + [("ask", "commit"), ("ask", "committed")]
    running: dict[int, tuple[str, str, float]] = {}  # pid -> role, moment, when it is killed from outside
    end = time.monotonic() + DEADLINE
    try:
        while sum(deaths.values()) < kills or (len(born.of("accepted")) < kills / 10 and time.monotonic() < end):
            for role, most in (("work", 3), ("ask", 1)):
                while sum(one[0] == role for one in running.values()) < most:
                    todo = [moment for moment in moments if moment[0] == role]
                    fewest = min(deaths[f"{role} {moment}"] for _, moment in todo)
                    rare = [moment for _, moment in todo if deaths[f"{role} {moment}"] == fewest]
                    moment, when = (rng.choice(rare), 4.0) if rng.random() < 0.5 else ("never", rng.uniform(0.02, 0.3))
                    pid = born.fork(role, moment, rng.randint(1, 3))
                    running[pid] = role, moment, time.monotonic() + when
            for pid, (role, moment, when) in list(running.items()):
                if alive(pid) and time.monotonic() < when:
                    continue
                if not alive(pid):
                    deaths[f"{role} {moment}"] += moment != "never"
                else:
                    kill(pid)
                    deaths[f"{role} outside"] += 1
                del running[pid]
                if rng.random() < 0.5:  # as a server does that sees its worker die; else the lease runs out
                    store.give_back(f"w{pid}", died=True)
            time.sleep(0.005)
        return deaths
    finally:
        for pid in running:
            kill(pid)


def until_done(born: Nursery, store: Store) -> None:
    """One worker that nobody kills ends what is left."""
    last, end = born.fork("work"), time.monotonic() + DEADLINE
    try:
        while store.jobs(states=("queued", "running"), limit=1):
            assert time.monotonic() < end, f"left: {store.jobs(states=('queued', 'running'))}"
            time.sleep(0.02)
    finally:
        kill(last)


def check(born: Nursery, store: Store, files: Files) -> None:
    jobs = {job.id: job for job in store.jobs(limit=10**6)}
    accepted, finished = born.of("accepted"), born.of("finished")
    assert not born.of("crashed")
    assert set(accepted) <= set(jobs), "an accepted job is lost"  # one committed but not told may be there as well
    assert {job.state for job in jobs.values()} <= {"done"}
    assert max(finished.values(), default=0) == 1 and set(finished) <= set(jobs), "a job finished twice"
    pictures = store.pictures_of(jobs)
    for id, job in jobs.items():
        assert [picture.number for picture in pictures[id]] == list(range(job.count)), "a picture is lost or doubled"
        for picture in pictures[id]:
            data = files.path(picture.sha256).read_bytes()
            assert hashlib.sha256(data).hexdigest() == picture.sha256 and len(data) == picture.bytes
    files.sweep(store.digests(), older_than=-1)
    there = sorted(path.name for path in files.folder.rglob("*") if path.is_file())
    assert there == sorted(store.digests()), "the sweep leaves what rows name, and nothing else"
    if store.lite:
        with sqlite3.connect(store.engine.url.database) as c:
            assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        c.close()


def promise(kind: str, tmp_path: Path, kills: int, seed: int) -> Counter[str]:
    url = url_of(kind, tmp_path)
    files = Files(tmp_path / "files")
    with closing(Store(url)) as store, nursery(url, tmp_path) as born:
        deaths = killed(born, store, kills, seed)
        until_done(born, store)
        check(born, store, files)
        assert len(born.of("accepted")) >= kills / 10 and born.of("finished")
    return deaths


def test_forty_kills_lose_nothing_and_double_nothing(tmp_path):
    deaths = promise("sqlite", tmp_path, kills=40, seed=0)
    assert len(deaths) >= 6, deaths  # at many different moments


def test_kills_of_clients_of_postgresql_lose_nothing_and_double_nothing(tmp_path):
    promise("postgresql", tmp_path, kills=15, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_kills(kind, tmp_path):
    deaths = promise(kind, tmp_path, kills=200, seed=2)
    assert {f"work {moment}" for moment in fake_worker.MOMENTS} <= set(deaths), deaths
    assert deaths["work outside"] > 20 and deaths["ask commit"] and deaths["ask committed"]


def test_a_disk_that_is_full_at_any_write_loses_no_job(tmp_path):
    url = url_of("sqlite", tmp_path)
    store, files = Store(url), Files(tmp_path / "files")
    before = [store.add_job("anna", {}, 1, None, 2).id for _ in range(3)]
    with nursery(url, tmp_path) as born:
        pid, end = born.fork("starve"), time.monotonic() + DEADLINE
        while alive(pid):
            assert time.monotonic() < end
            time.sleep(0.02)
        accepted, finished, refused = born.of("accepted"), born.of("finished"), born.of("refused")
        put = born.of("put")
        assert not born.of("crashed")
    assert accepted and refused and put and len(finished) > 1
    assert all("; nothing was changed" in said or "could not be written: File too large" in said for said in refused)
    jobs = {job.id: job.state for job in store.jobs(limit=999)}
    assert set(jobs) == set(accepted) | set(before), "a refused job is there, or an accepted one is not"
    done = {id for id in finished if id != "none"}
    assert {id for id, state in jobs.items() if state == "done"} == done
    assert len(store.pictures(limit=999)) == len(done)
    there = {path.name for path in files.folder.rglob("*") if path.is_file()}
    assert there == set(put), "half a file is left"
    store.close()

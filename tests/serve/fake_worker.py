"""Processes to kill: a nursery that forks, when told, workers without a model and clients that ask for jobs.

    python fake_worker.py URL FOLDER    lines on stdin: "work MOMENT COUNT", "ask MOMENT COUNT"; answers are pids

A process kills itself at the COUNT-th time that it passes MOMENT, or waits to be killed where MOMENT is "never".
What was promised or believed is a line in FOLDER/log: "accepted ID" where a 202 would be sent, "finished ID" after a
finish, "crashed ERROR" where a process failed by itself.
"""

import os
import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from limner.errors import NotSaved
from limner.serve import store as module
from limner.serve.files import Files
from limner.serve.store import Store
from limner.serve.tables import NewPicture

LEASE = 0.25  # seconds; short, so that jobs are stolen from the living as well
MOMENTS = ("claim", "claimed", "step", "write", "sync", "rename", "row", "commit", "committed")


def passing(moment: str, count: int) -> Callable[[str], None]:
    """What is called at every moment, and dies at one of them."""
    left = count

    def at(now: str) -> None:
        nonlocal left
        left -= now == moment
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return at


def bytes_of(job: str, number: int, attempt: int) -> bytes:
    """A small file, another one each time that it is made."""
    size = 2_000 + zlib.crc32(job.encode()) % 60_000
    return struct.pack("<16sIIQ", job.encode()[:16], number, attempt, time.time_ns()) + random.randbytes(size)


def work(store: Store, files: Files, log: Callable[[str], None], at: Callable[[str], None]) -> None:
    """What a worker does, over and over."""
    name, in_what = f"w{os.getpid()}", "claim"
    sa.event.listen(store.engine, "commit", lambda _: at(in_what))  # told before each commit
    while True:
        in_what = "claim"
        claimed = store.claim(name, LEASE, most=4)
        at("claimed")
        if not claimed:
            time.sleep(0.02)
        in_what = "renewal"
        for job in claimed:
            for step in range(2):
                at("step")
                time.sleep(0.002)
                store.progress(job.id, job.attempt, step)
            pictures = []
            for number in range(job.count):
                data = bytes_of(job.id, number, job.attempt)
                pictures.append(NewPicture(number, files.put(data), len(data), 8, 8, "", 0, {}))
            in_what = "commit"
            ours = store.finish(job.id, job.attempt, name, pictures)
            in_what = "renewal"
            if ours:
                log(f"finished {job.id}")
                at("committed")


def ask(store: Store, log: Callable[[str], None], at: Callable[[str], None]) -> None:
    """What a server does with requests, over and over."""
    sa.event.listen(store.engine, "commit", lambda _: at("commit"))
    for i in range(8):
        job = store.add_job(f"owner {os.getpid()}", {"i": i}, 1 + i % 2, random.choice(["k", None]), 2)
        at("committed")
        log(f"accepted {job.id}")


def starve(store: Store, files: Files, log: Callable[[str], None]) -> None:
    """Accept, paint and finish on a disk that is full after so many bytes of a file, from none to enough."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    data = Path(str(store.engine.url.database))
    for room in range(0, data.stat().st_size + 48 * 1024, 3000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        said = []
        for what in (
            lambda: f"accepted {store.add_job('anna', {'text': 'x' * 300}, 1, None, 2).id}",
            lambda: f"put {files.put(random.randbytes(9000))}",
            lambda: f"finished {finish_one(store)}",
        ):
            try:
                said.append(what())
            except NotSaved as error:
                said.append(f"refused {error}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for line in said:
            log(line)


def finish_one(store: Store) -> str:
    for job in store.claim("w", 0.0, most=1):
        picture = NewPicture(0, "ab" * 32, 9, 8, 8, "x" * 300, 0, {})
        return job.id if store.finish(job.id, job.attempt, "w", [picture]) else "none"
    return "none"


def main(url: str, folder: str) -> None:
    module.ATTEMPTS = 10**6  # kills are the test's, no job's fault
    handle = os.open(Path(folder) / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(line: str) -> None:
        os.write(handle, f"{line}\n".encode())  # one write, which a kill does not tear

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for line in sys.stdin:
        role, moment, count = line.split()
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        try:
            random.seed(os.getpid())
            store, at = Store(url), passing(moment, int(count))
            files = Files(Path(folder) / "files", at)
            if role == "work":
                work(store, files, log, at)
            elif role == "ask":
                ask(store, log, at)
            else:
                starve(store, files, log)
        except Exception as error:
            log(f"crashed {error!r}")
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

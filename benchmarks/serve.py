"""A server at work on this machine: how soon it answers, what eight users get of it, and whether it grows.

    python benchmarks/serve.py [--pictures 32] [--clients 128] [--soak 2000] [--json FILE]

A real `limner serve` with the mini model in processes of its own. Throughput is that of pictures in CPU seconds of the
worker against one batch call in this process, and by the clock. The soak paints small pictures in one step; its slope
is the median of all slopes between samples of memory (Theil 1950, Sen 1968). Nothing is judged.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

import limner
from limner.tasks.run import begin, painting

SMALL = {"width": 64, "height": 64, "steps": 1, "cfg_scale": 1.0}


def start(folder: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The server, its address and the seconds until it was printed."""
    begun = time.perf_counter()
    words = [sys.executable, "-m", "limner", "serve", "--port", "0", "--folder", str(folder), "--max-queue", "5000"]
    process = subprocess.Popen([*words, "--max-queue-all", "5000"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    return process, found[0].rstrip("/"), time.perf_counter() - begun


def family(root: int) -> list[int]:
    """A process and its children, by /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except OSError:
                continue
    return [pid for pid in parents if pid == root or parents[pid] == root]


def memory(pids: list[int]) -> float:
    """MB that they hold together."""
    total = 0
    for pid in pids:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


def seconds_used(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def answers(url: str) -> dict[str, float]:
    """Seconds to the page, and from an order to its first preview and its end, in a warm server."""
    begun = time.perf_counter()
    httpx.get(url).raise_for_status()
    rows = {"the page, s": time.perf_counter() - begun}
    with limner.Client(url) as client:
        client.paint("a cat", seed=1)  # warms the worker
        firsts, wholes = [], []
        for seed in range(5):
            begun, first = time.perf_counter(), 0.0
            for kind, _ in client.watch(client.order("a red apple", seed=seed)["id"]):
                if kind == "preview" and not first:
                    first = time.perf_counter() - begun
            firsts.append(first)
            wholes.append(time.perf_counter() - begun)
    return rows | {"first preview, s": statistics.median(firsts), "a picture, s": statistics.median(wholes)}


def throughput(url: str, pids: list[int], count: int) -> dict[str, float]:
    """Eight users who order at once, against one batch call: pictures a second of the server's, over those of it."""
    model = limner.load("mini")
    recipe = begin(model, prompt="a red apple", seed=0)
    list(painting(model, recipe))
    begun, used = time.perf_counter(), time.process_time()
    list(painting(model, recipe, count))
    batch, batch_used = time.perf_counter() - begun, time.process_time() - used

    def user(number: int) -> None:
        with limner.Client(url) as client:
            jobs = [client.order(f"a red apple, {number}", seed=i) for i in range(count // 8)]
            for job in jobs:
                client.wait(job["id"])

    begun, used = time.perf_counter(), seconds_used(pids)
    users = [threading.Thread(target=user, args=(number,)) for number in range(8)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    served, served_used = time.perf_counter() - begun, seconds_used(pids) - used
    return {"throughput of 8 users / batch call": batch / served, "the same, in CPU time": batch_used / served_used}


def crowd(url: str, clients: int) -> dict[str, float]:
    """/health while pictures are made and many clients ask at once; what they were answered."""
    found: list[float] = []
    states: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as http:
            body = {"recipe": {"prompt": "a cat"} | SMALL}
            states.append(http.post(f"{url}/v1/jobs", json=body).status_code)

    def health() -> None:
        with httpx.Client(timeout=60) as http:
            while not done.is_set():
                begun = time.perf_counter()
                states.append(http.get(f"{url}/health").status_code)
                found.append(time.perf_counter() - begun)
                time.sleep(0.02)

    with limner.Client(url) as client:
        client.order("a house", count=8)
        watcher = threading.Thread(target=health)
        watcher.start()
        askers = [threading.Thread(target=ask) for _ in range(clients)]
        for each in askers:
            each.start()
        for each in askers:
            each.join()
        while client.jobs("queued", "running"):
            time.sleep(0.2)
        done.set()
        watcher.join()
    found.sort()
    return {
        f"answers of 500 and above, {clients} clients at once": sum(state >= 500 for state in states),
        "/health, median, s": statistics.median(found),
        "/health, p99, s": found[int(0.99 * (len(found) - 1))],
    }


def soak(url: str, pids: list[int], count: int) -> dict[str, float]:
    """MB that server and worker grow by in a hundred jobs, after a fifth of them have warmed it up."""
    samples: list[tuple[int, float]] = []
    with limner.Client(url) as client:
        for done in range(0, count, 100):
            jobs = [client.order(f"a cat, {done + i}", seed=done + i, **SMALL) for i in range(100)]
            for job in jobs:
                client.wait(job["id"])
            if done >= count // 5:
                samples.append((done, memory(pids)))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) * 100 for a, b in itertools.combinations(samples, 2)]
    return {f"MB more for 100 jobs, of {count}": statistics.median(slopes), "MB at its end": samples[-1][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=32, help="of the throughput")
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--soak", type=int, default=2000, help="jobs; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, url, printed = start(Path(folder))
        try:
            rows = {"the address is printed, s": printed} | answers(url)
            pids = family(process.pid)
            rows |= throughput(url, pids, asked.pictures)
            rows |= crowd(url, asked.clients)
            if asked.soak:
                rows |= soak(url, pids, asked.soak)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    for name, value in rows.items():
        print(f"{name:55} {value:8.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

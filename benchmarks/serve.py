"""A server at work on this machine: how soon it answers, what eight users get of it, and whether it grows.

    python benchmarks/serve.py [--pictures 32] [--clients 128] [--soak 2000] [--browser chromium] [--json FILE]

`limner serve` with the mini model, in processes of its own. --browser: the page as a person meets it, in a Chromium
that is running already (an executable's name; playwright drives it). The throughput stands beside one batch call of
another process, in turns. The soak paints small pictures in one step; its slope is the median of all
slopes between two samples of memory (Theil 1950, Sen 1968). Nothing is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from limner.client import Client

if TYPE_CHECKING:
    from limner.pipeline import Model

Rows = dict[str, float]
SMALL = {"width": 64, "height": 64, "steps": 1, "cfg_scale": 1.0}
PAINT = """() => new Promise((done) => {  // waits without a look at every frame, which would take half a processor
  const begun = performance.now();
  let first = 0;
  new MutationObserver((_, self) => {
    if (document.querySelector("#easel.forming img")) first ||= performance.now() - begun;
    if (!first || !document.querySelector("#easel button img")) return;
    self.disconnect();
    done([first, performance.now() - begun]);
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
  document.querySelector("#go").click();
})"""
HEADERS = {"authorization": "Bearer local"}


@contextlib.contextmanager
def served(limit: int = 5000) -> Iterator[tuple[str, list[int], float]]:
    """The address of a server of its own, the processes that it is and the seconds until it told the address."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["serve", "--port", "0", "--folder", folder, "--max-queue", str(limit), "--max-queue-all", str(limit)]
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "limner", *words], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            told = time.perf_counter() - begun
            yield found[0].rstrip("/"), [process.pid, child(process.pid)], told
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def child(parent: int) -> int:
    """The process that a process started, by /proc; it may take a moment to be there."""
    for _ in range(200):
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(stat(int(entry.name))[1]) == parent:
                    return int(entry.name)
        time.sleep(0.05)
    raise RuntimeError("the server has started no worker")


def stat(pid: int) -> list[str]:
    """What Linux tells of a process after its name: its state, its parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def memory(pid: int) -> float:
    """MB that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def seconds(pid: int) -> float:
    """Of processor time that a process has used."""
    fields = stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def answers() -> Rows:
    """From an order to its first preview and its end, in a warm server, for a program."""
    with served() as (url, _, told), Client(url) as client:
        client.paint("a cat", seed=1)
        firsts, wholes = [], []
        for seed in range(9):
            begun, first = time.perf_counter(), 0.0
            for kind, _ in client.watch(client.order("a red apple", seed=seed)["id"]):
                if kind == "preview" and not first:
                    first = time.perf_counter() - begun
            firsts.append(first)
            wholes.append(time.perf_counter() - begun)
    return {
        "address told, s": told,
        "order to first preview, s": statistics.median(firsts),
        "order to picture, s": statistics.median(wholes),
    }


def page(executable: str) -> Rows:
    """What a person waits for: the page after the address is told, and the first preview after the click."""
    from playwright.sync_api import sync_playwright

    loads, previews, pictures = [], [], []
    path = shutil.which(executable)
    with sync_playwright() as play, play.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
        browser.new_page().goto("about:blank")
        for _ in range(3):
            with served() as (url, _, _), contextlib.closing(browser.new_context()) as context:
                begun = time.perf_counter()
                sheet = context.new_page()
                sheet.goto(url)
                sheet.wait_for_selector("html[data-ready]")
                loads.append(time.perf_counter() - begun)
                sheet.wait_for_selector("#status[data-mood=good]", timeout=60_000)
                for turn in range(4):
                    sheet.fill("#prompt", f"a red apple, {turn}")
                    first, whole = sheet.evaluate(PAINT)
                    previews.append(first / 1000)
                    pictures.append(whole / 1000)
                    time.sleep(0.5)
    return {
        "page can be used after the address is told, s": statistics.median(loads),
        "click to first preview, s": statistics.median(previews),
        "click to picture, s": statistics.median(pictures),
    }


def batch(count: int) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of so many pictures in one call of this process."""
    from limner.tasks.run import begin, painting

    model = loaded()
    recipe = begin(model, prompt="a red apple", seed=0)
    begun, used = time.perf_counter(), time.process_time()
    list(painting(model, recipe, count))
    return time.perf_counter() - begun, time.process_time() - used


@cache
def loaded() -> Model:
    """The model, once in the process that `batch` runs in."""
    import limner

    return limner.load("mini")


def throughput(count: int, users: int = 8, rounds: int = 5) -> Rows:
    """Eight users who order at once, and one batch call of another process, in turns."""

    def user(number: int) -> None:
        clients[number].wait(clients[number].order("a red apple", count // users, seed=100 * number)["id"])

    def at_once() -> tuple[float, float]:
        begun, used = time.perf_counter(), seconds(worker)
        list(pool.map(user, range(users)))
        return time.perf_counter() - begun, seconds(worker) - used

    with (
        served() as (url, (_, worker), _),
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(users) as pool,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other,
    ):
        clients = [stack.enter_context(Client(url)) for _ in range(users)]
        at_once()
        other.submit(batch, count).result()
        turns = [(other.submit(batch, count).result(), at_once()) for _ in range(rounds)]
    return {
        f"{users} users / batch call, pictures a second": statistics.median(a[0] / b[0] for a, b in turns),
        "the same by the worker's processor time": statistics.median(a[1] / b[1] for a, b in turns),
        "batch call, s a picture": statistics.median(a[0] for a, _ in turns) / count,
    }


def crowd_of(url: str, clients: int) -> Counter[int]:
    """What so many clients, each with a connection of its own, are answered who order and ask at once."""

    async def one(http: httpx.AsyncClient, number: int) -> list[int]:
        order = await http.post("/v1/jobs", json={"recipe": {"prompt": f"a cat, {number}"} | SMALL})
        asked = [await http.get(path) for path in ("/v1/jobs", "/v1/pictures", "/v1/models")]
        return [answer.status_code for answer in (order, *asked)]

    async def all_of_them() -> list[list[int]]:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=url, headers=HEADERS, limits=limits, timeout=120) as http:
            return await asyncio.gather(*(one(http, number) for number in range(clients)))

    return Counter(itertools.chain.from_iterable(asyncio.run(all_of_them())))


def crowd(clients: int) -> Rows:
    """/health while pictures are made and so many clients come at once; half of their orders are too many."""
    found: list[float] = []
    told: Counter[int] = Counter()
    with served(clients // 2) as (url, _, _), Client(url) as client:
        client.paint("a cat", seed=1)
        client.order("a house", count=16)
        with (
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
            httpx.Client(base_url=url, headers=HEADERS, timeout=60) as http,
        ):
            pool.submit(len, "started").result()
            clients_are_done = pool.submit(crowd_of, url, clients)
            while not clients_are_done.done() or client.jobs("queued", "running"):
                for _ in range(10):
                    begun = time.perf_counter()
                    told[http.get("/health").status_code] += 1
                    found.append(time.perf_counter() - begun)
                    time.sleep(0.02)
            told += clients_are_done.result()
    found.sort()
    return {
        f"{clients} clients at once: answers": told.total(),
        "of them 429, the queue is full": told[429],
        "of them 500 and above": sum(n for state, n in told.items() if state >= 500),
        f"/health, median of {len(found)}, s": statistics.median(found),
        "/health, p99, s": found[int(0.99 * (len(found) - 1))],
        "/health, longest, s": found[-1],
    }


def soak(count: int) -> Rows:
    """MB that the server and the worker grow by in a hundred jobs, after a fifth of them have warmed both up."""
    samples: list[tuple[int, float, float]] = []
    with served() as (url, pids, _), Client(url) as client:
        for done in range(0, count, 100):
            for job in [client.order(f"a cat, {done + i}", seed=done + i, **SMALL) for i in range(100)]:
                client.wait(job["id"])
            samples.append((done + 100, *map(memory, pids)))
            print(
                f"{done + 100:6} jobs  {samples[-1][1]:7.1f} MB  {samples[-1][2]:7.1f} MB", file=sys.stderr, flush=True
            )
    settled = [sample for sample in samples if sample[0] > count // 5]
    rows = {}
    for at, name in ((1, "server"), (2, "worker")):
        slopes = [(b[at] - a[at]) / (b[0] - a[0]) * 100 for a, b in itertools.combinations(settled, 2)]
        rows[f"{name}: MB more for 100 jobs, of {count}"] = statistics.median(slopes)
        rows[f"{name}: MB at the end"] = samples[-1][at]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=32, help="of the throughput; 0 leaves it out")
    parser.add_argument("--clients", type=int, default=128, help="0 leaves them out")
    parser.add_argument("--soak", type=int, default=2000, help="jobs, hundreds of them; 0 leaves them out")
    parser.add_argument(
        "--browser", default="", help="a Chromium, by its name or path; without one the page is left out"
    )
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = answers()
    rows |= page(asked.browser) if asked.browser else {}
    rows |= throughput(asked.pictures) if asked.pictures else {}
    rows |= crowd(asked.clients) if asked.clients else {}
    rows |= soak(asked.soak) if asked.soak else {}
    for name, value in rows.items():
        print(f"{name:55} {value:8.3f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

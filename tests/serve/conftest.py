"""A server without a model: its store and files are real, a fake hand paints; and one with the tiny model."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from limner.provenance.metadata import Receipt, chunks
from limner.recipe import Recipe
from limner.serve.app import create_app
from limner.serve.config import Config
from limner.serve.files import Files
from limner.serve.hand import Hands
from limner.serve.run import listen
from limner.serve.store import Store
from limner.serve.tables import Job, NewPicture

CAPABILITIES: dict[str, Any] = {
    "limner": "0.1.0",
    "models": [
        {
            "name": "mini", "family": "mini", "styles": ["icon", "pixel art"], "multiple": 16, "alpha": True,
            "sizes": [64, 512],
            "defaults": {"width": 128, "height": 128, "steps": 24, "sampler": "euler_ancestral",
                         "schedule": "uniform", "cfg_scale": 5.0},
            "tasks": ["paint", "edit", "inpaint", "outpaint", "upscale", "tile"],
        }
    ],
    "samplers": [{"name": "euler_ancestral", "aliases": ["Euler a"]}, {"name": "dpmpp_2m", "aliases": ["DPM++ 2M"]}],
    "schedules": [{"name": "uniform", "aliases": []}, {"name": "karras", "aliases": []}],
    "device": "cpu", "dtype": "float32", "threads": 1, "recipe": 3,
    "checks": {"safety": "none", "note": "nothing is checked"},
}  # fmt: skip
PREVIEW = "UklGRg=="  # the beginning of a WebP, in base64; nobody decodes it here


def png(
    width: int = 8, height: int = 8, colour: tuple[int, ...] = (200, 30, 40, 255), recipe: Recipe | None = None
) -> bytes:
    out, info = io.BytesIO(), chunks(Receipt(recipe, {}, "float32")).png if recipe else None
    Image.new("RGBA", (width, height), colour).save(out, "PNG", pnginfo=info)
    return out.getvalue()


class FakeHands(Hands):
    """Paints plain squares in the server's process, by the store's own rules; `speed` is seconds a step."""

    def __init__(self, store: Store, files: Files, speed: float = 0.0, steps: int = 3) -> None:
        super().__init__({}, CAPABILITIES)
        self.store, self.files, self.speed, self.steps = store, files, speed, steps
        self.painted: list[str] = []
        self.held = asyncio.Event()  # while it is clear, nothing is painted
        self.held.set()
        self._woken = asyncio.Event()
        self._cancelled: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        super().start()
        self._task = asyncio.create_task(self._work())

    async def stop(self, grace: float = 0.0) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await super().stop(grace)

    @property
    def ready(self) -> bool:
        return self._task is not None

    def wake(self) -> None:
        self._woken.set()

    def cancel(self, job: str) -> None:
        self._cancelled.add(job)

    def say(self, kind: str, **more: Any) -> None:
        self._hear({"event": kind, "worker": "fake", **more})

    async def _work(self) -> None:
        while True:
            await self.held.wait()
            jobs = await asyncio.to_thread(self.store.claim, "fake", 30.0, 8)
            for job in jobs:
                await self._paint(job)
            if not jobs:
                self._woken.clear()
                await self._woken.wait()

    async def _paint(self, job: Job) -> None:
        for i in range(self.steps):
            self.say("step", job=job.id, i=i, n=self.steps, number=0)
            if i == 0:
                self.say("preview", job=job.id, number=0, webp=PREVIEW)
            await asyncio.sleep(self.speed)
            if job.id in self._cancelled:
                return
        if job.wishes.get("prompt") == "fail":
            await asyncio.to_thread(self.store.fail, job.id, job.attempt, "fake", "this prompt cannot be painted")
            self.say("failed", job=job.id, error="this prompt cannot be painted")
            return
        rows = await asyncio.to_thread(self._rows, job)
        if await asyncio.to_thread(self.store.finish, job.id, job.attempt, "fake", rows):
            self.painted.append(job.id)
            self.say("done", job=job.id, pictures=[row.id for row in rows])

    def _rows(self, job: Job) -> list[NewPicture]:
        rows = []
        for number in range(job.count):
            recipe = Recipe.of(job.wishes | {"seed": job.wishes["seed"] + number})
            data = png(16, 16, (recipe.seed % 256, number, 7, 255), recipe)
            told = recipe.model_dump(mode="json")
            rows.append(NewPicture(number, self.files.put(data), len(data), 16, 16, recipe.prompt, recipe.seed, told))
        return rows


@dataclass(frozen=True)
class Here:
    """A server in this process, and somebody who asks it."""

    app: FastAPI
    client: httpx.AsyncClient
    store: Store
    files: Files
    hands: FakeHands
    config: Config

    async def order(self, prompt: str = "a cat", count: int = 1, **wishes: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/jobs", json={"recipe": {"prompt": prompt, **wishes}, "count": count})
        assert answer.status_code == 202, answer.text
        return answer.json()

    async def done(self, id: str, seconds: float = 5.0) -> dict[str, Any]:
        """The job once it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            told = (await self.client.get(f"/v1/jobs/{id}")).json()
            if told["state"] in ("done", "failed", "cancelled"):
                return told
            await asyncio.sleep(0.01)
        raise AssertionError(f"the job is still {told['state']}")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(folder=tmp_path / "serve")


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    store = Store(config.url)
    yield store
    store.close()


@pytest.fixture
def files(config: Config) -> Files:
    return Files(config.pictures)


@asynccontextmanager
async def serving(config: Config, speed: float = 0.0, steps: int = 3) -> AsyncIterator[Here]:
    """A server in this process, painted for by a fake hand, from its start to its end."""
    store, files = Store(config.url), Files(config.pictures)
    hands = FakeHands(store, files, speed, steps)
    app = create_app(config, hands)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    url, headers = f"http://127.0.0.1:{config.port}", {"authorization": "Bearer local"}
    client = httpx.AsyncClient(transport=transport, base_url=url, headers=headers)
    async with app.router.lifespan_context(app), client:
        yield Here(app, client, store, files, hands, config)
    store.close()


@pytest.fixture
def served(config: Config) -> Callable[..., Any]:
    """`served(test)`: runs `async def test(here)` against a fresh server; settings and speed by keyword."""

    def call(test: Callable[[Here], Awaitable[None]], speed: float = 0.0, steps: int = 3, **settings: Any) -> None:
        async def body() -> None:
            async with serving(replace(config, **settings), speed, steps) as here:
                await test(here)

        asyncio.run(body())

    return call


class Real:
    """`limner serve` as a process of its own, with a worker that paints by the tiny model."""

    def __init__(self, folder: Path, model: Path, *flags: str) -> None:
        self.folder = folder
        told = ("--port", "0", "--folder", str(folder), "--model", str(model), "--device", "cpu", *flags)
        environment = os.environ | {"LIMNER_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limner", "serve", *told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.search(r"http://\S+", first)
        if found is None:
            self.process.kill()
            raise AssertionError(f"no address: {first}{self.process.communicate()[1]}")
        self.url = found[0].rstrip("/")

    def stop(self, how: signal.Signals = signal.SIGINT, seconds: float = 30.0) -> tuple[int, str]:
        """The exit status and what was said on standard error; a second stop tells the same."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        _, said = self.process.communicate(timeout=seconds) if self.process.stderr else ("", "")
        return self.process.returncode, said


@contextmanager
def running(folder: Path, model: Path, *flags: str) -> Iterator[Real]:
    real = Real(folder, model, *flags)
    try:
        yield real
    finally:
        if real.process.poll() is None:
            real.stop()
        for pipe in (real.process.stdout, real.process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Real]:
    """One real server for all tests that need no more than its address."""
    with running(tmp_path_factory.mktemp("real"), tiny_folder) as real:
        yield real


@contextmanager
def crowd(config: Config, speed: float = 0.0, steps: int = 3, same_port: bool = False) -> Iterator[str]:
    """The address of a server in a thread of this process, over real connections, painted for by a fake hand."""
    ours = listen(config.host, config.port if same_port else 0)
    config = replace(config, port=ours.getsockname()[1])
    store = Store(config.url)
    hands = FakeHands(store, Files(config.pictures), speed, steps)
    app = create_app(config, hands)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[ours])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        app.state.news.close_soon()
        server.should_exit = True
        thread.join(20)
        ours.close()
        store.close()
        assert not thread.is_alive()

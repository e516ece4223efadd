"""A server on a real port for foreign clients: painted for by a fake hand in its process, or by a real worker."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from tests.serve.conftest import CAPABILITIES, FakeHands

from limner.provenance.metadata import Receipt, chunks
from limner.recipe import Recipe
from limner.serve.app import create_app
from limner.serve.config import Config
from limner.serve.files import Files
from limner.serve.run import listen
from limner.serve.store import Store
from limner.serve.tables import Job, NewPicture

SD = {  # a model of another family, which paints no alpha
    "name": "sd", "family": "sd15", "styles": [], "multiple": 8, "alpha": False,
    "defaults": {"width": 64, "height": 64, "steps": 4},
}  # fmt: skip
KNOWN: dict[str, Any] = CAPABILITIES | {
    "models": [*CAPABILITIES["models"], SD],
    "networks": {"upscaler": ["4x-sharp"]},
    "samplers": [
        {"name": name, "aliases": []} for name in ("euler_ancestral", "euler", "dpmpp_2m", "heun", "heunpp2", "lms")
    ],
    "schedules": [{"name": name, "aliases": []} for name in ("uniform", "linspace", "karras", "simple", "leading")],
}


class Hand(FakeHands):
    """Paints a square of the size that was asked for, half of it clear, with a receipt."""

    def __init__(self, store: Store, files: Files, speed: float, steps: int) -> None:
        super().__init__(store, files, speed, steps)
        self.capabilities = KNOWN

    def say(self, kind: str, **more: Any) -> None:
        small = {"webp": picture(4, 4, kind="WEBP").decode()} if kind == "preview" else {}
        super().say(kind, **(more | small))

    def _rows(self, job: Job) -> list[NewPicture]:
        rows = []
        for number in range(job.count):
            size = {"width": 48, "height": 32} | self._size(job)
            recipe = Recipe.of({"steps": 3} | size | job.wishes | {"seed": job.wishes["seed"] + number})
            data = base64.b64decode(picture(recipe.width, recipe.height, recipe))
            told = recipe.model_dump(mode="json")
            sides = (recipe.width, recipe.height)
            rows.append(NewPicture(number, self.files.put(data), len(data), *sides, recipe.prompt, recipe.seed, told))
        return rows

    def _size(self, job: Job) -> dict[str, int]:
        name = str(job.wishes.get("image", ""))
        if not name:
            return {}
        sides = shown(self.store, self.files, name).size
        return dict(zip(("width", "height"), (round(side * job.wishes.get("scale", 1)) for side in sides), strict=True))


def shown(store: Store, files: Files, name: str) -> Image.Image:
    """The picture that wishes name."""
    row = store.upload(name.removeprefix("upload:"))
    assert row is not None
    return Image.open(io.BytesIO(files.read(row.sha256)))


def picture(width: int, height: int, recipe: Recipe | None = None, kind: str = "PNG") -> bytes:
    """A picture in base64, its left half clear."""
    image, out = Image.new("RGBA", (width, height), (200, 30, 40, 255)), io.BytesIO()
    image.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    carried = chunks(Receipt(recipe, {}, "float32") if recipe else None)
    image.save(out, kind, **({"pnginfo": carried.png} if kind == "PNG" else {}))
    return base64.b64encode(out.getvalue())


@dataclass(frozen=True)
class Live:
    """A server that answers at `url`."""

    url: str
    port: int
    store: Store
    files: Files
    hands: Any

    def last(self) -> dict[str, Any]:
        """The wishes of the newest job."""
        return self.jobs()[0].wishes

    def jobs(self) -> list[Job]:
        return self.store.jobs(limit=100)

    def shown(self, name: str) -> Image.Image:
        return shown(self.store, self.files, name)

    def leave(self, path: str, body: dict[str, Any], jobs: int) -> None:
        """Ask for pictures, and go away once so many jobs wait or run and the first of them is painted."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {"authorization": "Bearer x", "content-type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        self.until(lambda: len(self.store.jobs(None, ["queued", "running"])) == jobs)
        self.until(lambda: self.store.jobs(None, ["running"]))
        connection.close()

    def until(self, seen: Callable[[], Any], seconds: float = 10.0) -> Any:
        """What `seen` tells, once it tells anything."""
        end = time.monotonic() + seconds
        while not (found := seen()):
            assert time.monotonic() < end, "it never came"
            time.sleep(0.01)
        return found


@contextmanager
def live(folder: Path, speed: float = 0.0, steps: int = 3, worker: bool = False, **settings: Any) -> Iterator[Live]:
    """A server in a thread. worker: a real one paints, in a process of its own."""
    socket = listen("127.0.0.1", 0)
    port = socket.getsockname()[1]
    config = replace(Config(folder=folder, port=port), **settings)
    hands = None if worker else Hand(Store(config.url), Files(config.pictures), speed, steps)
    app = create_app(config, hands)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended"
            time.sleep(0.01)
        yield Live(f"http://127.0.0.1:{port}", port, app.state.store, app.state.files, app.state.hands)
    finally:
        server.should_exit = True
        thread.join(20)
        socket.close()
        if hands:
            hands.store.close()

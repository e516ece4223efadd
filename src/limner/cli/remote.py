"""Pictures from a running server: `limner paint --server URL`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from limner.cli.making import Bar, Output

if TYPE_CHECKING:
    from limner.client import Client
    from limner.recipe import Recipe
    from limner.tasks.task import Painted


def paint_there(server: str, texts: Sequence[str], fields: dict[str, Any], count: int, out: Output) -> None:
    """Order `count` pictures of each text from a server and save them as they are finished; $LIMNER_TOKEN comes along.

    All are put into the queue before the first is waited for. Ctrl-C takes back what is not done.
    """
    from limner.client import Client

    with Client(server) as client:
        wishes = {name: value for name, value in fields.items() if name != "prompt" and not name.endswith("_sha256")}
        jobs: list[dict[str, Any]] = []
        try:
            for text in texts or [str(fields.get("prompt", ""))]:
                jobs.append(client.order(text, count, **wishes))
            alone = len(jobs) * count == 1
            while jobs:
                _keep(client, _followed(client, jobs[0], out.quiet), out, alone)
                jobs.pop(0)
        finally:
            for job in jobs:
                _drop(client, job["id"])


def _followed(client: Client, job: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """The job when it is done, with a bar meanwhile."""
    with Bar(job["steps"], quiet) as bar:
        for kind, _ in client.watch(job["id"]):
            if kind == "step":
                bar.forward(str(job["recipe"].get("prompt", "")))
    return client.wait(job["id"])


class Made(NamedTuple):
    """What `Output.tell` reads of a picture that was painted elsewhere."""

    recipe: Recipe
    seed: int


def _keep(client: Client, job: dict[str, Any], out: Output, alone: bool) -> None:
    from limner.recipe import Recipe

    seconds = (job["finished"] - job["started"]) / len(job["pictures"])
    for one in job["pictures"]:
        recipe = Recipe.of(client.recipe(one["id"]))
        path = _save(client.file(one["id"]), out.path(recipe, alone), out)
        out.tell(path, cast("Painted", Made(recipe, one["seed"])), seconds)


def _save(data: bytes, path: Path, out: Output) -> Path:
    """A PNG as it came, with its recipe and its mark; other kinds, and files without words, are written anew."""
    from PIL import Image

    from limner.files import save_picture, written
    from limner.provenance.metadata import chunks, read_receipt

    if path.suffix.lower() == ".png" and not out.no_metadata:
        return written(path, lambda file: file.write(data))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        parts = chunks(read_receipt(image, "the picture"), words=not out.no_metadata)
        return save_picture(image, path, parts.png, parts.exif, parts.xmp, icc=image.info.get("icc_profile"))


def _drop(client: Client, id: str) -> None:
    from limner.errors import LimnerError

    try:
        client.cancel(id)
    except LimnerError:  # it is over, or the server is gone
        return

"""A running server from Python: `Client().paint("a red apple")` gives pictures that were made elsewhere."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from limner.errors import BadInput, LimnerError

if TYPE_CHECKING:
    import httpx
    from PIL import Image

HOME = "http://127.0.0.1:7860"
TOKEN = "LIMNER_TOKEN"  # the variable that holds one, so that it need not stand in a command
NOBODY = "local"  # said where no token is needed: a server hears changes only from whom no foreign page could be
PATIENCE = 120.0  # seconds in which a server may be away, or full, before the client gives up
OVER = ("done", "failed", "cancelled")
KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
THERE = ("upload:", "picture:", "canny:upload:", "canny:picture:")  # pictures that the server has


class NoServer(LimnerError):
    """A server that cannot be reached, or takes nothing now."""


class Client:
    """Asks one server. Jobs and pictures are the objects that its API answers with, as dictionaries.

    token: without one, what $LIMNER_TOKEN says. A server that is away for a while, or full, is asked again.
    """

    def __init__(
        self, url: str = HOME, token: str = "", patience: float = PATIENCE, transport: httpx.BaseTransport | None = None
    ) -> None:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise BadInput("limner.Client needs httpx: pip install 'limner[serve]'") from error
        self._lost: type[Exception] = httpx.TransportError
        self._unsent: tuple[type[Exception], ...] = (httpx.ConnectError, httpx.ConnectTimeout)
        self.url, self.patience = url if "://" in url else f"http://{url}", patience
        self._met = False  # whether it ever answered; who never did is not waited for
        said = {"authorization": f"Bearer {token or os.environ.get(TOKEN) or NOBODY}"}
        try:
            if httpx.URL(self.url).scheme not in ("http", "https") or not httpx.URL(self.url).host:
                raise httpx.InvalidURL("another scheme")
            self._http = httpx.Client(base_url=self.url, headers=said, timeout=30.0, transport=transport)
        except httpx.InvalidURL as error:
            raise BadInput(f"{url!r} is no address of a server, as {HOME} is one") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # pictures from words

    def paint(self, prompt: str = "", count: int = 1, **wishes: Any) -> list[Image.Image]:
        """Finished pictures, in order. Wishes are fields of the Recipe; pictures in them may be paths or Pillow's."""
        job = self.wait(self.order(prompt, count, **wishes)["id"])
        return [self.picture(one["id"]) for one in job["pictures"]]

    def order(self, prompt: str = "", count: int = 1, **wishes: Any) -> dict[str, Any]:
        """Put a job into the queue; what is answered is kept there, whatever becomes of this client."""
        recipe = self._sent({"prompt": prompt, **wishes})
        return self._ask("POST", "/v1/jobs", json={"recipe": recipe, "count": count}, patient=True)

    def wait(self, id: str) -> dict[str, Any]:
        """The job when it is done. Raises BadInput with the sentence of one that failed or was cancelled."""
        job: dict[str, Any] = {"state": "cancelled", "error": ""}
        for kind, data in self.watch(id):
            job = data if kind == "state" else job
        if job["state"] != "done":
            raise BadInput(job["error"] or "the job was cancelled")
        return job

    def watch(self, id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """("state" | "step" | "preview", data) of a job to its end, also over a restart of the server."""
        since = time.monotonic()
        while True:
            try:
                for kind, data in self._events(f"/v1/jobs/{id}/events"):
                    since = time.monotonic()
                    yield kind, data
                    if kind == "state" and data["state"] in OVER:
                        return
            except self._lost as error:
                if time.monotonic() - since > self.patience:
                    raise NoServer(f"{self.url} went away: {error}") from error
            time.sleep(0.5)  # the stream ended before the job: the server is being restarted

    def _events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._http.stream("GET", path, timeout=60.0) as answer:
            if answer.is_error:
                answer.read()
                self._refused(answer)
            kind = ""
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, json.loads(value)

    # what is there

    def job(self, id: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/jobs/{id}")

    def jobs(self, *states: str, limit: int = 50) -> list[dict[str, Any]]:
        """The newest first, of some states or of all."""
        return self._ask("GET", "/v1/jobs", params={"state": list(states), "limit": limit})["jobs"]

    def cancel(self, id: str) -> dict[str, Any]:
        return self._ask("POST", f"/v1/jobs/{id}/cancel")

    def pictures(self, words: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """The newest first; each of the words occurs in the prompt."""
        return self._ask("GET", "/v1/pictures", params={"q": words, "limit": limit})["pictures"]

    def recipe(self, id: str) -> dict[str, Any]:
        """The recipe that repeats a picture alone."""
        return self._ask("GET", f"/v1/pictures/{id}")["recipe"]

    def picture(self, id: str) -> Image.Image:
        """A picture, with what it carries in `info`."""
        from PIL import Image

        with Image.open(io.BytesIO(self.file(id))) as image:
            image.load()
            return image

    def file(self, id: str) -> bytes:
        """A picture's file, as it lies on the server."""
        return self._answer("GET", f"/v1/pictures/{id}/file").content

    def send(self, picture: Path | str | bytes | Image.Image) -> str:
        """Bring a picture; returns its name, which wishes take."""
        body, kind = _packed(picture)
        return self._ask("POST", "/v1/uploads", content=body, headers={"content-type": kind}, patient=True)["name"]

    def models(self) -> list[dict[str, Any]]:
        return self._ask("GET", "/v1/models", patient=True)["models"]

    def capabilities(self) -> dict[str, Any]:
        """Models, samplers, schedules, what is checked and how pictures are marked."""
        return self._ask("GET", "/v1/capabilities", patient=True)

    # within

    def _sent(self, wishes: Mapping[str, Any]) -> dict[str, Any]:
        """The wishes, with each picture of this machine brought to the server and named as it is there."""
        told = dict(wishes)
        if told.get("image"):
            told["image"] = self._name(told["image"])
        mask = told.get("mask")
        if mask and not (
            isinstance(mask, str) and (mask == "alpha" or mask.replace(",", "").replace(" ", "").isdigit())
        ):
            told["mask"] = self._name(mask)
        for field in ("controls", "picture_prompts"):
            if field in told:
                told[field] = [{**one, "image": self._name(one["image"])} for one in told[field]]
        return told

    def _name(self, picture: Any) -> str:
        if isinstance(picture, str) and picture.startswith(THERE):
            return picture
        if isinstance(picture, str) and picture.startswith("canny:"):
            return f"canny:{self.send(picture.removeprefix('canny:'))}"
        return self.send(picture)

    def _ask(self, method: str, path: str, patient: bool = False, **more: Any) -> Any:
        return self._answer(method, path, patient, **more).json()

    def _answer(self, method: str, path: str, patient: bool = False, **more: Any) -> httpx.Response:
        """One answer. A request that did not arrive is sent again, and a patient one also where the server is full."""
        until = time.monotonic() + self.patience
        while True:
            try:
                answer = self._http.request(method, path, **more)
            except self._unsent as error:
                if not self._met or time.monotonic() + 0.5 > until:
                    raise NoServer(f"{self.url} cannot be reached: {error}; `limner serve` starts a server") from error
                time.sleep(0.5)
                continue
            except self._lost as error:
                raise NoServer(f"{self.url} did not answer: {error or type(error).__name__}") from error
            self._met = True
            pause = float(answer.headers.get("retry-after", 1))
            if patient and answer.status_code in (429, 503) and time.monotonic() + pause < until:
                time.sleep(pause)
                continue
            if answer.is_error:
                self._refused(answer)
            return answer

    def _refused(self, answer: httpx.Response) -> None:
        try:
            sentence = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            sentence = f"{self.url} answers {answer.status_code} {answer.reason_phrase}; is it a server of Limner?"
        raise (NoServer if answer.status_code in (429, 503) else BadInput)(sentence)


def _packed(picture: Path | str | bytes | Image.Image) -> tuple[bytes, str]:
    """The bytes of a picture as PNG, JPEG or WebP, and which of them; files of these kinds go as they are."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, str | Path):
        path = Path(picture).expanduser()
        try:
            picture = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if isinstance(picture, bytes):
        try:
            with Image.open(io.BytesIO(picture)) as image:
                if image.format in KINDS:
                    return picture, KINDS[image.format]
                image.load()
                picture = image
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise BadInput(f"this is no picture that can be read: {error}") from error
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue(), KINDS["PNG"]

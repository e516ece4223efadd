"""The desk: where wishes become jobs. Every dialect of the API takes its orders here, so all have the same limits."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar

import anyio
from PIL import Image, UnidentifiedImageError

from limner.errors import BadInput
from limner.provenance.foreign import understood
from limner.provenance.metadata import parameters_of, read_receipt
from limner.recipe import MAX_SEED
from limner.serve.admission import affordable, room
from limner.serve.seams import Parts, Refused, Who
from limner.serve.shapes import Carried, JobShape, carried, job_shape
from limner.serve.tables import Job, Picture
from limner.serve.tokens import without_words
from limner.serve.wishes import MOST, SHOWN, complete, fits, key, networks, only_known, shown, walked

P = ParamSpec("P")
T = TypeVar("T")
LEAST = {"family": "mini"}  # what a model of which nothing is known takes at least
KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


async def aside(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A short call of store or files, off the loop."""
    return await anyio.to_thread.run_sync(partial(call, *args, **kwargs))


async def accept(parts: Parts, who: Who, fields: Mapping[str, Any], count: int = 1, watch: bool = False) -> Job:
    """The one door to the queue: wishes are checked, completed and kept, and the hands are woken.

    watch: the job has no key, so that it is painted alone, and its worker shows every step.

    Raises Refused with 422 for what is wrong, 429 where the queue is full, 503 while no model is known yet.
    """
    wishes = complete(fields, parts.config.model)
    if not 1 <= count <= parts.config.max_count:
        raise Refused(422, f"count should be from 1 to {parts.config.max_count}, not {count}", "count")
    if wishes["seed"] + count * wishes.get("best_of", 1) - 1 > MAX_SEED:
        raise Refused(422, f"the last picture's seed would be more than {MAX_SEED}", "seed")
    known, model = parts.hands.capabilities or {}, _model(parts, wishes)
    start = None
    for field, name in shown(wishes):
        digest = await find(parts, who, name, field)
        start = await aside(_size, parts, digest) if field == "image" else start
    affordable(wishes, model or LEAST, known, parts.config, start)
    steps = walked(wishes, model.get("defaults", {}))
    async with parts.turn:  # so that the limit is exact
        own, everybody = [await aside(parts.store.queue_length, owner) for owner in (who.owner, None)]
        room(own, everybody, parts.config)
        job = await aside(parts.store.add_job, who.owner, wishes, count, None if watch else key(wishes), steps)
    parts.hands.wake()
    await log(parts, who, "job", job.id, f"{count} x {without_words(wishes, parts.config.audit_prompts)}")
    parts.news.tell({"event": "queued", "job": job.id})
    return job


async def log(parts: Parts, who: Who, what: str, target: str, detail: str = "") -> None:
    """A line of the audit log."""
    await aside(parts.store.audit, who.owner, what, target, detail)


def capabilities(parts: Parts) -> dict[str, Any]:
    """What the workers told of themselves, this time or the last; 503 before the first one ever did."""
    if parts.hands.capabilities is None:
        raise Refused(503, "the first worker is still starting; ask again in a few seconds", retry_after=2)
    return parts.hands.capabilities


def _model(parts: Parts, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the model that wishes name; networks that the server does not offer are refused.

    Before the first worker ever told what is there, the server's own model is taken at its word.
    """
    told = parts.hands.capabilities
    models = {model["name"]: model for model in (told or {}).get("models", [])}
    if not parts.config.allow_paths:
        others = {name for names in (told or {}).get("networks", {}).values() for name in names}
        if told is None and any(name != parts.config.model for _, name in networks(wishes)):
            capabilities(parts)  # 503
        only_known(wishes, {*models, *others, parts.config.model})
    model: dict[str, Any] = models.get(wishes["model"], {})
    fits(wishes, model, told or {})
    return model


def _size(parts: Parts, digest: str) -> tuple[int, int]:
    """Width and height of a picture that is kept, by its header."""
    try:
        with Image.open(parts.files.path(digest), formats=tuple(KINDS)) as image:
            return image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise Refused(422, "the file of the picture to start from is gone from the server's folder", "image") from error


async def find(parts: Parts, who: Who, name: str, field: str) -> str:
    """The digest of a picture that wishes name: "upload:u_..." or "picture:p_..." of the same owner; else 422."""
    if SHOWN.fullmatch(name):
        kind, _, id = name.partition(":")
        row = await aside(parts.store.upload if kind == "upload" else parts.store.picture, id)
        if row is not None and row.owner == who.owner and getattr(row, "deleted", None) is None:
            return row.sha256
    raise Refused(422, f"{field} names {name!r}, and there is no such picture of yours", field)


async def told(parts: Parts, row: Job) -> JobShape:
    """A job as the API tells it."""
    return (await told_all(parts, [row]))[0]


async def told_all(parts: Parts, rows: list[Job]) -> list[JobShape]:
    ahead = await aside(parts.store.ahead) if any(row.state == "queued" for row in rows) else {}
    done = [row.id for row in rows if row.state == "done"]
    made = await aside(parts.store.pictures_of, done) if done else {}
    return [job_shape(row, ahead.get(row.id, 0), made.get(row.id, [])) for row in rows]


async def own_job(parts: Parts, who: Who, id: str) -> Job:
    """A job of the one who asks; another's is not there."""
    row = await aside(parts.store.job, id) if id.startswith("j_") and id.isascii() else None
    if row is None or row.owner != who.owner:
        raise Refused(404, "there is no such job of yours")
    return row


async def own_picture(parts: Parts, who: Who, id: str, deleted: bool = False) -> Picture:
    """A picture of the one who asks; another's is not there, nor is a deleted one, unless it is asked for."""
    row = await aside(parts.store.picture, id) if id.startswith("p_") and id.isascii() else None
    if row is None or row.owner != who.owner or (row.deleted is not None and not deleted):
        raise Refused(404, "there is no such picture of yours")
    return row


async def cancel(parts: Parts, who: Who, id: str) -> bool:
    """Stop a job that is not over; False: it was."""
    stopped = await aside(parts.store.cancel, id, who.owner)
    if stopped:
        parts.hands.cancel(id)
        await log(parts, who, "cancel", id)
        parts.news.tell({"event": "cancelled", "job": id})
    return stopped


async def take(parts: Parts, who: Who, body: bytes) -> Carried:
    """Keep a picture that somebody brought, after a look at its header; it is not decoded here."""
    kind, size, recipe, parameters = await aside(look, body)
    digest = await aside(parts.files.put, body)
    row = await aside(parts.store.add_upload, who.owner, digest, len(body), kind)
    await log(parts, who, "upload", row.id)
    return carried(row, size, recipe, parameters)


def look(body: bytes) -> tuple[str, tuple[int, int], dict[str, Any] | None, str | None]:
    """Kind, size, wishes and text of a picture's file, by its first bytes and its header; else 415 or 422."""
    try:
        with Image.open(io.BytesIO(body), formats=tuple(KINDS)) as image:
            kind, size = KINDS[str(image.format)], image.size
            parameters = parameters_of(image)
            recipe = _wishes(image, parameters)
    except UnidentifiedImageError as error:
        raise Refused(415, "the body should be a picture: PNG, JPEG or WebP") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise Refused(422, f"the picture cannot be read: {error}") from error
    if size[0] * size[1] > MOST:
        raise Refused(422, f"the picture has {size[0]}x{size[1]} pixels; at most {MOST:,} are taken")
    return kind, size, recipe, parameters


def _wishes(image: Image.Image, parameters: str | None) -> dict[str, Any] | None:
    """What would make a picture again, as far as it tells: by our own receipt, else by the text of other programs."""
    try:
        fields = read_receipt(image, "the picture").recipe.model_dump(mode="json", exclude_defaults=True)
    except BadInput:
        text = parameters or str(image.info.get("prompt") or "")  # ComfyUI's graph
        fields = understood(text).fields if text else {}
    beside = {"image", "image_sha256", "mask", "mask_sha256", "controls", "picture_prompts"}  # files of that machine
    kept = {name: value for name, value in fields.items() if name not in beside}
    return json.loads(json.dumps(kept)) or None

"""The OpenAI Images API: generations, edits and variations, by the same desk as everything else.

Field names are OpenAI's, and those that other open servers add: negative_prompt, num_inference_steps, guidance_scale,
seed, width, height. What has no meaning here is refused in OpenAI's form; what changes no picture is told as `ignored`.
"""

from __future__ import annotations

import base64
import io
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import UploadFile

from limner.errors import UnknownName
from limner.serve import desk
from limner.serve.desk import aside
from limner.serve.dialect import (
    Made,
    Order,
    accepted,
    answering,
    clothed,
    decoded,
    finished,
    has_clear,
    held,
    json_object,
    kept,
    packed,
    painted,
    png,
    stretched,
)
from limner.serve.events import watch
from limner.serve.routes import Here, Painter
from limner.serve.seams import Parts, Refused, Who
from limner.serve.tables import Job
from limner.serve.wishes import CHANCE, refusal

VARIATION = 0.3  # how far variations lean to another seed: the subject stays, details differ
FILES = 16  # of one request
OURS = {  # names there -> fields of a recipe
    "prompt": "prompt", "negative_prompt": "negative", "num_inference_steps": "steps", "guidance_scale": "cfg_scale",
    "seed": "seed", "style": "style", "sampler": "sampler", "schedule": "schedule", "strength": "strength",
    "model": "model",
}  # fmt: skip
IGNORED = ("user", "safety_identifier", "moderation")  # they change no picture
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
NOTHING = {  # no tokens are counted here
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}
T = TypeVar("T", bound="Asked")


class Asked(BaseModel):
    """What all three take; null is the same as nothing. Text of a form becomes a number where one is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[str, Field(max_length=32_000)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: str = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    background: Literal["auto", "transparent", "opaque"] = "auto"
    quality: Literal["auto", "standard"] = "auto"  # num_inference_steps says how much work is done
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    user: str | None = None
    safety_identifier: str | None = None
    moderation: str | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None
    sampler: str | None = None
    schedule: str | None = None

    @field_validator("size")
    @classmethod
    def _size(cls, value: str) -> str:
        if not re.fullmatch("auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", value):
            raise ValueError("should be auto or WIDTHxHEIGHT")
        return value

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height, where they are asked for: as `size`, or as width and height."""
        named = None if self.size == "auto" else tuple(map(int, self.size.split("x")))
        if self.width is None and self.height is None:
            return named  # type: ignore[return-value]
        if self.width is None or self.height is None:
            raise Refused(400, "width and height belong together", "height" if self.height is None else "width")
        if named and named != (self.width, self.height):
            raise Refused(400, f"size says {self.size}, width and height say {self.width}x{self.height}", "size")
        return self.width, self.height


class Generation(Asked):
    style: str | None = None  # one of the model's


class Edit(Asked):
    strength: Annotated[float, Field(ge=0, le=1)] | None = None


class Variation(Edit):
    prompt: Annotated[str, Field(max_length=32_000)] = ""


def refused(error: Refused) -> JSONResponse:
    status = 400 if error.status in (409, 415, 422) else error.status
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    if status == 500:
        headers["x-should-retry"] = "false"  # OpenAI's client would ask twice more, for the same end
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": fault(error, status)}, status, headers)


def fault(error: Refused, status: int) -> dict[str, Any]:
    field = (error.field or "").removeprefix("recipe.")
    names = {ours: theirs for theirs, ours in OURS.items()}
    unknown = error.message.startswith("no field is called")
    code = "unknown_parameter" if unknown else "model_not_found" if status == 404 and field == "model" else None
    code = "cancelled" if field == "cancelled" else code
    param = None if field == "cancelled" else names.get(field, field) or None
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": error.message, "type": kind, "param": param, "code": code}


router = APIRouter(route_class=answering(refused), include_in_schema=False)


# --- the three ways in


@router.post("/v1/images/generations")
async def generations(request: Request, here: Here, me: Painter) -> Response:
    """Pictures from words."""
    asked = read(Generation, await json_object(request))
    facts = model_of(here, asked)
    if asked.background == "transparent" and not facts.get("alpha"):
        raise Refused(400, f"the model {facts['name']} paints no transparent background", "background")
    if asked.style is not None and asked.style not in facts.get("styles", ()):
        known = facts.get("styles") or ["none"]
        raise Refused(400, str(UnknownName("style", asked.style, known)), "style")
    sides = asked.sides
    order = wishes(asked) | ({"width": sides[0], "height": sides[1]} if sides else {})
    return await answer(request, here, me, asked, [(order, asked.n)], "image_generation")


@router.post("/v1/images/edits")
async def edits(request: Request, here: Here, me: Painter) -> Response:
    """A picture and words to a picture; with a mask, what is clear in the mask is painted anew."""
    asked, files = await form(request, here, Edit)
    data = only(files, "image", "a picture is edited here")
    model_of(here, asked)
    mask = files.pop("mask", [])
    if files:
        raise Refused(400, f"no file is called {next(iter(files))!r} here; there are: image, mask", next(iter(files)))
    size = (await aside(desk.look, data))[1]
    if asked.background == "transparent" and not await aside(has_clear, data):
        raise Refused(400, "the picture has no transparency, and an edit keeps what it has", "background")
    sides = asked.sides or size
    if sides != size:
        data = await aside(resized, data, size, sides)
    order = wishes(asked) | {"task": "inpaint" if mask else "edit", "image": await kept(here, me, data)}
    if mask:
        order["mask"] = await kept(here, me, await aside(from_clear, only({"mask": mask}, "mask", ""), size, sides))
    return await answer(request, here, me, asked, [(order, asked.n)], "image_edit")


@router.post("/v1/images/variations")
async def variations(request: Request, here: Here, me: Painter) -> Response:
    """Pictures around one: of a picture of ours its own noise is varied; another is painted over."""
    asked, files = await form(request, here, Variation)
    data = only(files, "image", "a picture is varied here")
    model_of(here, asked)
    carried = await desk.take(here, me, data)
    size = (carried.width, carried.height)
    known = {model["name"] for model in desk.capabilities(here)["models"]}
    own = dict(carried.recipe or {})
    own.setdefault("model", "mini")
    plain = "seed" in own and own.get("task", "paint") == "paint" and own["model"] in known
    if plain and asked.model in (None, own["model"]) and asked.sides in (None, size):
        if asked.strength is not None:
            raise Refused(400, "a picture of ours is varied by its noise, which has no strength", "strength")
        own |= {"variation": VARIATION, "best_of": 1} | {k: v for k, v in wishes(asked).items() if k != "prompt" or v}
        orders: list[Order] = [(own | {"subseed": secrets.randbelow(CHANCE)}, 1) for _ in range(asked.n)]
    else:
        sides = asked.sides or size
        name = carried.name if sides == size else await kept(here, me, await aside(resized, data, size, sides))
        orders = [(wishes(asked) | {"task": "edit", "image": name}, asked.n)]
    return await answer(request, here, me, asked, orders, "image_edit")


def read(kind: type[T], fields: Mapping[str, Any]) -> T:
    """The fields of a request; what is wrong with them is one sentence."""
    try:
        asked = kind.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise refusal(error, kind) from error
    if asked.partial_images and not asked.stream:
        raise Refused(400, "partial_images are sent in a stream; stream is false", "partial_images")
    if asked.background == "transparent" and asked.output_format == "jpeg":
        raise Refused(400, "JPEG knows no transparent background; png and webp do", "background")
    if asked.output_format == "png" and asked.output_compression != 100:
        raise Refused(400, "output_compression is for jpeg and webp", "output_compression")
    changed = asked.output_format != "png" or asked.background == "opaque" or asked.stream
    if asked.response_format == "url" and changed:
        said = "a URL leads to the picture as it was made; b64_json can have it changed"
        raise Refused(400, said, "response_format")
    return asked


async def form(request: Request, here: Parts, kind: type[T]) -> tuple[T, dict[str, list[bytes]]]:
    """The fields and files of a multipart body."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(400, "the body should be multipart/form-data")
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=FILES, max_fields=64) as parts:
        for name, value in parts.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            else:
                fields[name] = value
    return read(kind, fields), files


def only(files: dict[str, list[bytes]], name: str, what: str) -> bytes:
    """The one file of a name."""
    found = files.pop(name, [])
    if len(found) != 1:
        raise Refused(400, f"one {name} should be sent, not {len(found)}" + (f": {what}" if what else ""), name)
    return found[0]


def model_of(here: Parts, asked: Asked) -> dict[str, Any]:
    """What is known of the model that is asked for."""
    models: dict[str, dict[str, Any]] = {model["name"]: model for model in desk.capabilities(here)["models"]}
    name = asked.model or here.config.model
    if name not in models and not (here.config.allow_paths or asked.model is None):
        raise Refused(404, str(UnknownName("model", name, models)), "model")
    return models.get(name, {"name": name, "alpha": True, "styles": [asked.model_dump().get("style")]})


def wishes(asked: Asked) -> dict[str, Any]:
    """Fields of a recipe, of what was said."""
    said = asked.model_dump(exclude_none=True)
    return {ours: said[theirs] for theirs, ours in OURS.items() if theirs in said}


def resized(data: bytes, size: tuple[int, int], sides: tuple[int, int]) -> bytes:
    """A picture in another size of the same form, to a pixel."""
    if abs(size[0] * sides[1] - size[1] * sides[0]) > max(*size, *sides):
        raise Refused(
            400, f"the picture is {size[0]}x{size[1]}, which has not the form of {sides[0]}x{sides[1]}", "size"
        )
    return png(stretched(data, sides, "image"))


def from_clear(data: bytes, size: tuple[int, int], sides: tuple[int, int]) -> bytes:
    """OpenAI's mask, clear where it is painted anew, as ours: white there."""
    mask = decoded(data, "mask")
    if mask.size != size:
        raise Refused(400, f"the mask is {mask.width}x{mask.height} and the picture {size[0]}x{size[1]}", "mask")
    if mask.mode != "RGBA":
        raise Refused(400, "nothing of the mask is clear; what is clear in it is painted anew", "mask")
    return png(ImageOps.invert(mask.getchannel("A")).resize(sides))


# --- answers


async def answer(request: Request, here: Parts, me: Who, asked: Asked, orders: list[Order], event: str) -> Response:
    """The pictures at once, or as a stream of events."""
    if asked.stream and len(orders) != 1:
        raise Refused(400, "variations of one of our pictures are several jobs, which are not streamed", "stream")
    jobs = await accepted(here, me, orders)
    if asked.stream:
        return StreamingResponse(stream(here, me, asked, jobs[0], event), 200, STREAM, "text/event-stream")
    return JSONResponse(await whole(request, asked, await painted(request, here, me, jobs)))


async def whole(request: Request, asked: Asked, made: list[Made]) -> dict[str, Any]:
    """What is answered without a stream. Beside OpenAI's fields: the seed of each picture, and what was ignored."""
    data: list[dict[str, Any]] = []
    for one in made:
        if asked.response_format == "url":
            shown: dict[str, Any] = {"url": f"{request.base_url}v1/pictures/{one.picture.id}/file"}
        else:
            shown = {"b64_json": await aside(given, asked, one)}
        data.append(shown | {"id": one.picture.id, "seed": one.picture.seed})
    more = {"background": asked.background} if asked.background != "auto" else {}
    ignored = [name for name in IGNORED if getattr(asked, name)]
    told = {"size": size_of(made), "output_format": asked.output_format, "ignored": ignored}
    return {"created": int(time.time()), "data": data} | told | more


def given(asked: Asked, one: Made) -> str:
    """A finished picture as it was asked for, in base64."""
    return packed(clothed(one.data, asked.output_format, asked.output_compression, asked.background == "opaque"))


def size_of(made: list[Made]) -> str:
    return f"{made[0].picture.width}x{made[0].picture.height}" if made else "0x0"


async def stream(here: Parts, me: Who, asked: Asked, job: Job, kind: str) -> AsyncIterator[str]:
    """Server-sent events: previews as partial images, spread over the steps, then each picture.

    A partial image is a small WebP, and says so.
    """
    same: dict[str, Any] = {"created_at": int(job.created), "quality": "auto", "background": asked.background}
    sent: dict[int, int] = {}  # number of a picture -> partial images of it
    share = 0.0
    try:
        async with held(here, me, [job]):
            async for event, told in watch(here, me.owner, job.id):
                if event == "step" and told.get("n"):
                    share = (told["i"] + 1) / told["n"]
                elif event == "state" and not sent:  # the first one may have come before anybody listened
                    told = here.hands.preview(job.id) or {}
                number = told.get("number") or 0
                index = sent.get(number, 0)
                if "webp" in told and index < asked.partial_images and share >= index / asked.partial_images:
                    sent[number] = index + 1
                    small = {"b64_json": told["webp"], "partial_image_index": index, "output_format": "webp"}
                    yield message(f"{kind}.partial_image", same | small | {"size": await aside(_size, told["webp"])})
            for one in await finished(here, job):
                full: dict[str, Any] = {
                    "b64_json": await aside(given, asked, one),
                    "output_format": asked.output_format,
                }
                full |= {"size": size_of([one]), "usage": NOTHING, "seed": one.picture.seed, "id": one.picture.id}
                yield message(f"{kind}.completed", same | full)
    except Refused as error:
        status = 400 if error.status == 422 else error.status
        yield message("error", {"error": fault(error, status)})


def message(kind: str, data: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | dict(data))}\n\n"


def _size(webp: str) -> str:
    try:
        with Image.open(io.BytesIO(base64.b64decode(webp)), formats=("WEBP",)) as image:
            return f"{image.width}x{image.height}"
    except (OSError, ValueError):
        return "auto"

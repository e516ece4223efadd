"""What foreign dialects of the API share: pictures in, jobs out, and a wait for them that ends with the client.

Here alone, beside the files of our own pictures, does the server decode pixels: a mask of another convention becomes
ours, a picture gets the size that was asked for. PNG, JPEG and WebP only, and no more than `DECODED` pixels.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi import Request, Response
from fastapi.routing import APIRoute
from PIL import Image, ImageOps
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from limner.errors import BadInput, LimnerError, NotSaved
from limner.provenance.metadata import Receipt, chunks, read_receipt
from limner.recipe import Recipe
from limner.serve import desk
from limner.serve.desk import aside
from limner.serve.events import watch
from limner.serve.seams import Parts, Refused, Who
from limner.serve.tables import Job, Picture

DECODED = 2**24  # pixels of a picture that is decoded here: 64 MB
INSIDE = ("an error inside", "its worker died")  # how sentences begin that no change of the request mends
Order = tuple[Mapping[str, Any], int]  # wishes, and how many pictures


class ClientGone(Exception):
    """Whoever asked does not wait for the answer any more."""


class Ending(Refused):
    """The server is about to end, and the job goes on when it is started again."""


@dataclass(frozen=True)
class Made:
    """A finished picture and the bytes of its file."""

    picture: Picture
    data: bytes


def answering(refused: Callable[[Refused], Response]) -> type[APIRoute]:
    """Routes whose refusals have a dialect's own form, which `refused` gives them."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handle(request)
                except Refused as error:
                    return refused(error)
                except NotSaved:
                    return refused(Refused(503, "the server cannot write to its disk or database", retry_after=10))
                except LimnerError as error:
                    field = str(error).partition(" ")[0]
                    return refused(Refused(422, str(error), field if field in Recipe.model_fields else None))
                except HTTPException as error:
                    return refused(Refused(error.status_code, str(error.detail)))
                except (ClientGone, ClientDisconnect):
                    return Response(status_code=499)  # nobody reads it

            return answer

    return Route


async def json_object(request: Request) -> dict[str, Any]:
    """The body of a request: one object of JSON."""
    raw = await request.body()
    try:
        body = json.loads(raw, parse_constant=_no_number)
        if _HALF.search(raw) or _HUGE.search(raw):
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON, of whole characters and finite numbers") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body should be an object")
    return body


_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a character, perhaps alone
_HUGE = re.compile(rb"\d[eE]\+?\d{3}|\d{300}")  # a number that may be infinite


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


# --- jobs


async def accepted(parts: Parts, who: Who, orders: Sequence[Order]) -> list[Job]:
    """The jobs of a request, all of them or none."""
    jobs: list[Job] = []
    async with held(parts, who, jobs):
        for wishes, count in orders:
            jobs.append(await desk.accept(parts, who, wishes, count))
    return jobs


@asynccontextmanager
async def held(parts: Parts, who: Who, jobs: Sequence[Job]) -> AsyncIterator[None]:
    """Jobs that somebody waits for: when the wait ends by an error, those that are not over are cancelled."""
    try:
        yield
    except Ending:
        raise
    except BaseException:  # a client that is gone, most of all
        with anyio.CancelScope(shield=True):
            for job in jobs:
                await desk.cancel(parts, who, job.id)
        raise


async def painted(request: Request, parts: Parts, who: Who, jobs: Sequence[Job]) -> list[Made]:
    """Wait for the pictures of jobs; when the client goes away they are cancelled."""
    async with held(parts, who, jobs):
        ends = asyncio.gather(*(end(parts, who, job) for job in jobs))
        gone = asyncio.ensure_future(_gone(request))
        both: set[asyncio.Future[Any]] = {ends, gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not ends.done():
                raise ClientGone
            return [one for made in ends.result() for one in made]
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Ends when the client has closed the connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def end(parts: Parts, who: Who, job: Job) -> list[Made]:
    """Wait for the end of a job; its pictures, in order. Refused says why there are none."""
    async for _ in watch(parts, who.owner, job.id):
        pass
    return await finished(parts, job)


async def finished(parts: Parts, job: Job) -> list[Made]:
    """The pictures of a job that is over."""
    now = await aside(parts.store.job, job.id)
    if now is None or now.state == "cancelled":
        raise Refused(400, "the job was cancelled", "cancelled")
    if now.state == "failed":
        said = now.error or "the job failed"
        raise Refused(500 if said.startswith(INSIDE) else 422, said)
    if now.state != "done":
        raise Ending(503, "the server is about to end; the job goes on when it is started again", retry_after=10)
    rows = (await aside(parts.store.pictures_of, [job.id]))[job.id]
    return [Made(row, await aside(parts.files.read, row.sha256)) for row in rows]


# --- pictures


async def kept(parts: Parts, who: Who, data: bytes) -> str:
    """Keep a picture of the client's; how wishes name it."""
    return (await desk.take(parts, who, data)).name


def unpacked(text: object, field: str) -> bytes:
    """The bytes of base64, as itself or in a data URL; addresses are not fetched."""
    if not isinstance(text, str):
        raise Refused(422, f"{field} should be a picture in base64", field)
    if text[:8].lower().startswith(("http:", "https:")):
        raise Refused(422, f"{field} is an address; this server fetches none: send the picture in base64", field)
    start = text.index(",") + 1 if text.startswith("data:") and "," in text[:200] else 0
    try:
        return base64.b64decode("".join(text[start:].split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{field} is not base64", field) from None


def packed(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decoded(data: bytes, field: str) -> Image.Image:
    """The pixels of a client's picture, upright, as RGBA, RGB or L."""
    size = desk.look(data)[1]
    if size[0] * size[1] > DECODED:
        raise Refused(422, f"{field} is {size[0]}x{size[1]}; at most {DECODED:,} pixels are taken here", field)
    try:
        with Image.open(io.BytesIO(data), formats=tuple(desk.KINDS)) as image:
            image.load()
            clear = has_clear(data)
            grey = image.mode in ("1", "L", "I", "I;16", "F")
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGBA" if clear else "L" if grey else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise Refused(422, f"{field} cannot be read: {error}", field) from error


def has_clear(data: bytes) -> bool:
    """Whether a picture can be clear anywhere, by its header."""
    with Image.open(io.BytesIO(data), formats=tuple(desk.KINDS)) as image:
        return "A" in image.getbands() or "transparency" in image.info


def stretched(data: bytes, sides: tuple[int, int], field: str) -> Image.Image:
    """The pixels of a client's picture in another size."""
    if sides[0] * sides[1] > DECODED:
        raise Refused(422, f"at most {DECODED:,} pixels are made of a picture here, not {sides[0]}x{sides[1]}", "width")
    return decoded(data, field).resize(sides, Image.Resampling.LANCZOS)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def clothed(data: bytes, kind: str, quality: int, opaque: bool) -> bytes:
    """One of our own files as png, jpeg or webp, with what it carries; opaque, and as JPEG, on white."""
    if kind == "png" and not opaque:
        return data
    with Image.open(io.BytesIO(data)) as file:
        receipt, icc = receipt_of(file), file.info.get("icc_profile")
        image: Image.Image = file.convert("RGBA" if opaque or kind == "jpeg" else file.mode)
    if opaque or kind == "jpeg":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    for carried in (chunks(receipt), chunks(None)):  # a prompt of thousands of words does not fit a JPEG
        out, more = io.BytesIO(), {"icc_profile": icc} if icc else {}
        try:
            if kind == "png":
                image.save(out, "PNG", pnginfo=carried.png, **more)
            else:
                lossless = {"lossless": True} if kind == "webp" and quality == 100 else {}
                image.save(out, kind.upper(), quality=quality, exif=carried.exif, xmp=carried.xmp, **lossless, **more)
            return out.getvalue()
        except ValueError:
            continue
    raise BadInput(f"the picture cannot be written as {kind}")


def receipt_of(image: Image.Image) -> Receipt | None:
    try:
        return read_receipt(image, "the picture")
    except BadInput:
        return None

"""The server's own API below /v1, and /health: jobs, pictures, uploads, models, described by OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

from limner import __version__
from limner.errors import nearest
from limner.serve import desk
from limner.serve.desk import aside
from limner.serve.events import stream
from limner.serve.seams import Parts, Refused, Who, parts, who
from limner.serve.shapes import (
    Carried,
    Error,
    FullPicture,
    Health,
    Jobs,
    JobShape,
    ModelName,
    Models,
    Pictures,
    PictureShape,
    State,
    full_picture,
    picture_shape,
)
from limner.serve.wishes import Move, Order, read

WORDS = {
    400: "The request is not one of ours.",
    401: "A token is needed.",
    403: "The token, or the page that asks, may not do this.",
    404: "There is nothing of yours by this name.",
    408: "The body came too slowly.",
    409: "The job or picture is not in a state for this.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is of another kind.",
    422: "Something in it is wrong; the sentence says what.",
    429: "The queue is full; Retry-After says when to come again.",
    431: "There are too many headers.",
    503: "The server cannot take this yet; Retry-After says when to come again.",
}
ALWAYS = (400, 401, 403, 414, 431)  # what the guard and the door may answer to any request
LAST = {"cache-control": "private, max-age=31536000, immutable"}  # a file of a digest never changes
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no"}  # proxies hand each event on at once

Here = Annotated[Parts, Depends(parts)]
Reader = Annotated[Who, Depends(who("read"))]
Painter = Annotated[Who, Depends(who("paint"))]
Limit = Annotated[int, Query(ge=1, le=200, description="How many at most.")]
Before = Annotated[
    str | None, Query(max_length=64, description="The id after which to go on: `more` of the page before.")
]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals that a route can answer with, for OpenAPI."""
    return {status: {"model": Error, "description": WORDS[status]} for status in (*ALWAYS, *statuses)}


def body(kind: type[BaseModel]) -> dict[str, Any]:
    """A body of JSON that the route reads by itself, for OpenAPI; `openapi` in app.py brings its schema."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def json_body(request: Request) -> bytes:
    """The body of a request that says it is JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the body should be application/json, not {kind or 'of no kind'}")
    return await request.body()


def only(*names: str) -> list[Any]:
    """The query of a route, which has these parameters; a misspelled one would be passed over in silence."""

    async def check(request: Request) -> None:
        if odd := next((name for name in request.query_params if name not in names), None):
            raise Refused(422, f"no parameter is called {odd[:40]!r}: {nearest(odd[:40], sorted(names))}", odd[:40])

    return [Depends(check)]


router = APIRouter(responses=refusals())


@router.get("/health", tags=["server"], responses={}, operation_id="health")
async def health(here: Here) -> Health:
    """Whether the server answers; it does while the model is loading. Needs no token."""
    return Health(status="ok", version=__version__, ready=here.hands.ready)


@router.get("/v1/models", tags=["server"], responses=refusals(503), operation_id="models")
async def models(here: Here, _: Reader) -> Models:
    """The models that paint here, with what each likes and can do."""
    known = desk.capabilities(here)["models"]
    return Models(models=known, data=[ModelName(id=one["name"]) for one in known])


@router.get("/v1/capabilities", tags=["server"], responses=refusals(503), operation_id="capabilities")
async def capabilities(here: Here, _: Reader) -> dict[str, Any]:
    """Models, samplers, schedules, the device, what is checked, and the marks that pictures carry."""
    return desk.capabilities(here)


@router.post(
    "/v1/jobs",
    status_code=202,
    tags=["jobs"],
    responses=refusals(408, 413, 415, 422, 429, 503),
    openapi_extra=body(Order),
    operation_id="add_job",
)
async def add_job(request: Request, here: Here, me: Painter) -> JobShape:
    """Order pictures. What is answered with 202 is kept: it runs at least once and finishes exactly once."""
    order: Order = read(Order, await json_body(request))
    return await desk.told(here, await desk.accept(here, me, order.recipe.given(), order.count, order.watch))


@router.get(
    "/v1/jobs",
    tags=["jobs"],
    responses=refusals(422),
    operation_id="jobs",
    dependencies=only("state", "limit", "before"),
)
async def jobs(
    here: Here,
    me: Reader,
    state: Annotated[list[State] | None, Query(description="Of these states only.")] = None,
    limit: Limit = 50,
    before: Before = None,
) -> Jobs:
    """Your jobs, the newest first."""
    rows = await aside(here.store.jobs, me.owner, state or (), limit, before)
    return Jobs(jobs=await desk.told_all(here, rows), more=rows[-1].id if len(rows) == limit else None)


@router.get("/v1/jobs/{id}", tags=["jobs"], responses=refusals(404), operation_id="job")
async def job(id: str, here: Here, me: Reader) -> JobShape:
    """One job, how far it is, and its pictures."""
    return await desk.told(here, await desk.own_job(here, me, id))


@router.post("/v1/jobs/{id}/cancel", tags=["jobs"], responses=refusals(404, 409), operation_id="cancel_job")
async def cancel_job(id: str, here: Here, me: Painter) -> JobShape:
    """Take a job out of the queue, or stop it after its present step."""
    await desk.own_job(here, me, id)
    if not await desk.cancel(here, me, id):
        raise Refused(409, "the job is over already")
    return await desk.told(here, await desk.own_job(here, me, id))


@router.post(
    "/v1/jobs/{id}/move",
    tags=["jobs"],
    responses=refusals(404, 408, 409, 413, 415, 422),
    openapi_extra=body(Move),
    operation_id="move_job",
)
async def move_job(id: str, request: Request, here: Here, me: Painter) -> JobShape:
    """Put a job that waits before another one of yours, or last."""
    move: Move = read(Move, await json_body(request))
    await desk.own_job(here, me, id)
    if move.before is not None:
        await desk.own_job(here, me, move.before)
    if not await aside(here.store.move, id, me.owner, move.before):
        raise Refused(409, "one of the two waits no more, or they are the same")
    here.news.tell({"event": "moved", "job": id})
    return await desk.told(here, await desk.own_job(here, me, id))


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}
}


@router.get(
    "/v1/jobs/{id}/events",
    tags=["jobs"],
    responses=EVENTS | refusals(404),
    response_class=StreamingResponse,
    operation_id="job_events",
)
async def job_events(id: str, here: Here, me: Reader) -> StreamingResponse:
    """What becomes of a job, to its end: `state` (the job, first of all as it is), `step`, and `preview` (WebP)."""
    await desk.own_job(here, me, id)
    return StreamingResponse(stream(here, me.owner, id), media_type="text/event-stream", headers=STREAM)


@router.get("/v1/events", tags=["jobs"], responses=EVENTS, response_class=StreamingResponse, operation_id="events")
async def events(here: Here, me: Reader) -> StreamingResponse:
    """The same for all of your jobs, for as long as you listen; `worker` tells of models that are being loaded."""
    return StreamingResponse(stream(here, me.owner), media_type="text/event-stream", headers=STREAM)


@router.get(
    "/v1/pictures",
    tags=["pictures"],
    responses=refusals(422),
    operation_id="pictures",
    dependencies=only("q", "limit", "before", "deleted"),
)
async def pictures(
    here: Here,
    me: Reader,
    q: Annotated[str, Query(max_length=400, description="Words that must all occur in the prompt.")] = "",
    limit: Limit = 50,
    before: Before = None,
    deleted: Annotated[bool, Query(description="Those that can be restored.")] = False,
) -> Pictures:
    """Your pictures, the newest first."""
    rows = await aside(here.store.pictures, me.owner, q.replace("\0", ""), limit, before, deleted)
    return Pictures(pictures=[full_picture(row) for row in rows], more=rows[-1].id if len(rows) == limit else None)


@router.get("/v1/pictures/{id}", tags=["pictures"], responses=refusals(404), operation_id="picture")
async def picture(id: str, here: Here, me: Reader) -> FullPicture:
    """One picture and the recipe that repeats it alone."""
    return full_picture(await desk.own_picture(here, me, id))


FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The file."}}


@router.get(
    "/v1/pictures/{id}/file",
    tags=["pictures"],
    responses=FILE | refusals(404),
    response_class=FileResponse,
    operation_id="picture_file",
)
async def picture_file(
    id: str, here: Here, me: Reader, download: Annotated[bool, Query(description="To be saved, not shown.")] = False
) -> Response:
    """The file of a picture, as it was made, with the recipe and the mark that it carries."""
    row = await desk.own_picture(here, me, id)
    path = here.files.path(row.sha256)
    if not await aside(path.is_file):
        raise Refused(404, "the file of this picture is gone from the server's folder")
    return FileResponse(
        path,
        media_type=row.kind,
        filename=f"limner-{row.seed}-{row.number}.png",
        content_disposition_type="attachment" if download else "inline",
        headers=LAST | {"etag": f'"{row.sha256}"'},
    )


@router.delete("/v1/pictures/{id}", tags=["pictures"], responses=refusals(404, 409), operation_id="delete_picture")
async def delete_picture(id: str, here: Here, me: Painter) -> PictureShape:
    """Delete a picture; until it is purged it can be restored."""
    await desk.own_picture(here, me, id)
    if await aside(here.store.delete, id, me.owner):
        await desk.log(here, me, "delete", id)
    return picture_shape(await desk.own_picture(here, me, id, deleted=True))


@router.post(
    "/v1/pictures/{id}/restore", tags=["pictures"], responses=refusals(404, 409), operation_id="restore_picture"
)
async def restore_picture(id: str, here: Here, me: Painter) -> PictureShape:
    """Undo a deletion."""
    await desk.own_picture(here, me, id, deleted=True)
    if not await aside(here.store.restore, id, me.owner):
        raise Refused(409, "the picture is not deleted")
    await desk.log(here, me, "restore", id)
    return picture_shape(await desk.own_picture(here, me, id))


PICTURE = {"requestBody": {"required": True, "content": {
    kind: {"schema": {"type": "string", "format": "binary"}} for kind in desk.KINDS.values()
}}}  # fmt: skip


@router.post(
    "/v1/uploads",
    status_code=201,
    tags=["pictures"],
    responses=refusals(408, 413, 415, 422),
    openapi_extra=PICTURE,
    operation_id="upload",
)
async def upload(request: Request, here: Here, me: Painter) -> Carried:
    """Bring a picture, for wishes to start from; the answer tells the settings that it carries, of ours or others."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in desk.KINDS.values():
        raise Refused(415, f"the body should be one of {', '.join(desk.KINDS.values())}, not {kind or 'of no kind'}")
    return await desk.take(here, me, await request.body())

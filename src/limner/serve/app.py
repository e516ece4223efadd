"""The application: `create_app(config)` joins store, files, hands and routes. Nothing here imports torch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from limner import __version__
from limner.errors import LimnerError, NotSaved
from limner.serve import a1111, openai, page, routes
from limner.serve.config import Config
from limner.serve.desk import aside
from limner.serve.events import News
from limner.serve.files import Files
from limner.serve.guard import Guard, places
from limner.serve.hand import Hands
from limner.serve.seams import Parts, Refused, parts_of
from limner.serve.store import Store
from limner.serve.tokens import door
from limner.serve.wishes import Move, Order

LOG = logging.getLogger("limner.serve")
DAY = 86_400  # seconds
EVERY = 3600.0  # seconds between two sweeps
KNOWN = "capabilities"  # the name under which the store remembers what the workers told


def create_app(config: Config, hands: Hands | None = None) -> FastAPI:
    """A server that is ready to answer; its hands begin to work when it starts, and rest when it ends.

    `app.state` holds its parts: `.config`, `.store`, `.files`, `.hands`, `.news`, and the `.door` that knows who asks.
    """
    app = FastAPI(
        title="Limner",
        version=__version__,
        summary="Pictures from words: jobs, their events, and the pictures they made.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        redirect_slashes=False,  # a redirection would name a host
        lifespan=_life,
    )
    store = Store(config.url)
    known = json.loads(store.meta(KNOWN) or "null")
    parts = Parts(config, store, Files(config.pictures), hands or Hands.of(config, known), News())
    if parts.hands.capabilities is None:
        parts.hands.capabilities = known
    app.state.parts, app.state.door = parts, door
    app.state.config, app.state.store, app.state.files = config, store, parts.files
    app.state.hands, app.state.news = parts.hands, parts.news
    for router in (routes.router, openai.router, a1111.router, page.router):
        app.include_router(router)
    app.add_middleware(Guard, ours=places(config), max_body=config.max_body)
    for kind, answer in ANSWERS.items():
        app.add_exception_handler(kind, answer)
    app.openapi = lambda: described(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    parts = parts_of(app)
    parts.hands.start()
    tasks = [asyncio.create_task(work(parts)) for work in (_repeat, _remember, _keep_house)]
    try:
        yield
    finally:
        parts.news.close()
        await (parts.hands.stop() if parts.hands.ready else parts.hands.stop(1.0))  # who only starts holds no job
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await aside(parts.store.close)


async def _repeat(parts: Parts) -> None:
    await parts.news.repeat(parts.hands)


async def _keep_house(parts: Parts) -> None:
    """Now and then: forget pictures that were deleted long ago, and remove the files that no row names."""
    while True:
        with contextlib.suppress(LimnerError):
            await aside(parts.store.purge, time.time() - parts.config.bin_days * DAY)
            await aside(parts.files.sweep, await aside(parts.store.digests))
        await asyncio.sleep(EVERY)


async def _remember(parts: Parts) -> None:
    """Keep what the workers tell of themselves, so that the next server knows it at once."""
    with parts.hands.subscribe() as heard:
        async for event in heard:
            if event["event"] == "ready":
                with contextlib.suppress(LimnerError):
                    await aside(parts.store.set_meta, KNOWN, json.dumps(event["capabilities"]))


def refuse(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "field": field}}, status, headers)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return refuse(error.status, error.message, error.field, headers)


def _mendable(_: Request, error: Exception) -> JSONResponse:
    return refuse(422, str(error))


def _not_saved(_: Request, error: Exception) -> JSONResponse:
    LOG.error("%s", error)
    return refuse(
        503, "the server cannot write to its disk or its database; nothing was accepted", None, {"retry-after": "10"}
    )


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    return refuse(422, f"{field or 'the request'}: {first['msg']}", field)


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this address", 405: "this address does not take this method"}
    message = said.get(error.status_code, str(error.detail))
    return refuse(error.status_code, message, None, dict(error.headers or {}))


def _inside(request: Request, error: Exception) -> JSONResponse:
    return refuse(500, "an error inside; the server's log says more")


ANSWERS: dict[type[Exception], Callable[[Request, Exception], JSONResponse]] = {
    Refused: _refused,
    NotSaved: _not_saved,
    LimnerError: _mendable,
    RequestValidationError: _invalid,
    HTTPException: _http,
    Exception: _inside,
}


def described(app: FastAPI) -> dict[str, Any]:
    """The description of every route, with the bodies that routes read by themselves, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = made["components"]["schemas"]
        for kind in (Order, Move):
            body = kind.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**body.pop("$defs", {}), kind.__name__: body}
        error = {"schema": {"$ref": "#/components/schemas/Error"}}
        told = {"description": routes.WORDS[422], "content": {"application/json": error}}
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, ways in made["paths"].items():
            for way in ways.values():
                if "HTTPValidationError" in str(way["responses"].get("422")):  # FastAPI's own form of it
                    way["responses"]["422"] = told
                way["security"] = [] if path == "/health" else [{"token": []}]
        app.openapi_schema = made
    return app.openapi_schema

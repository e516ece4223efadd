"""The page: files of a closed table, with fixed types and entity tags; no name is looked for on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

HOME = "index.html"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
TYPES |= {".js": "text/javascript; charset=utf-8"}
SCRIPTS = (
    "about", "api", "canvas", "compare", "dom", "drop", "gallery", "grid", "main", "paint", "queue", "steps", "store",
    "viewer", "words",
)  # fmt: skip
NAMES = (HOME, "style.css", "icon.svg", *(f"{name}.js" for name in SCRIPTS))

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Leaf:
    """One file of the page as it is sent."""

    body: bytes
    kind: str
    tag: str  # of its bytes


@cache
def leaves() -> dict[str, Leaf]:
    """The table: read once, so that an upgrade under a running server does not mix two pages."""
    folder = files("limner.serve") / "page"
    return {name: _leaf(name, (folder / name).read_bytes()) for name in NAMES}


def _leaf(name: str, body: bytes) -> Leaf:
    tag = hashlib.sha256(body).hexdigest()[:32]
    return Leaf(body, TYPES[name[name.rindex(".") :]], f'"{tag}"')


@router.api_route("/", methods=["GET", "HEAD"])
async def home(request: Request) -> Response:
    return _answer(leaves()[HOME], request)


@router.api_route("/page/{file}", methods=["GET", "HEAD"])
async def leaf(file: str, request: Request) -> Response:
    found = leaves().get(file)
    return _answer(found, request) if found else Response("no such file", 404, media_type="text/plain")


def _answer(found: Leaf, request: Request) -> Response:
    """The file, or 304 where the browser has it: it asks each time, so that an upgrade is seen at once."""
    headers = {"ETag": found.tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if found.tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers | {"Content-Type": found.kind})

"""What every route stands on: who asks, the parts of the server, and how a refusal is said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from fastapi import FastAPI, Request

if TYPE_CHECKING:
    from limner.serve.config import Config
    from limner.serve.events import News
    from limner.serve.files import Files
    from limner.serve.hand import Hands
    from limner.serve.store import Store

Scope = Literal["paint", "read", "admin"]
SCOPES: frozenset[str] = frozenset({"paint", "read", "admin"})
LOCAL = "local"  # the owner of everything where nobody needs a token


class Refused(Exception):
    """A request that is answered with a status and one sentence; `field` names what is wrong with it."""

    def __init__(self, status: int, message: str, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.retry_after = status, message, field, retry_after


@dataclass(frozen=True)
class Who:
    """Who asks: the owner of what they make, and what they may do."""

    owner: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class Parts:
    """The parts of a server, as `app.state` holds them."""

    config: Config
    store: Store
    files: Files
    hands: Hands
    news: News
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of who is let into the queue


def parts(request: Request) -> Parts:
    """A dependency: the parts of the server that answers."""
    return parts_of(request.app)


def parts_of(app: FastAPI) -> Parts:
    return cast(Parts, app.state.parts)


def who(scope: Scope) -> Callable[[Request], Awaitable[Who]]:
    """A dependency: who asks, when they may do what `scope` says; else 401 or 403.

    `app.state.door` knows tokens: it is called with the request and the scope.
    """

    async def ask(request: Request) -> Who:
        return cast(Who, await request.app.state.door(request, scope))

    return ask


async def everybody(request: Request, scope: Scope) -> Who:
    """The door of a server without tokens."""
    return Who(LOCAL, SCOPES)

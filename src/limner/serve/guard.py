"""The guard before the application: who may speak to it from where, how much, how slowly, and what every answer wears.

A server on this machine is reachable from every page that a browser here has open: by a form, by an image, and by a
name that an attacker points to 127.0.0.1 (DNS rebinding). So a request is heard only when its Host is one of ours, and
one that changes something only when it comes from our own page or carries a token in a header, which no foreign page
can send. Origin and Sec-Fetch-Site are as the Fetch standard and Fetch Metadata define them.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import anyio
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from limner.errors import BadInput

if TYPE_CHECKING:
    import asyncio

    from limner.serve.config import Config

PAGE = "/"  # the one address that a link on a foreign page may open
SHOWN = "/page/"  # what the page is made of lies below
REPORTS = "/csp-report"  # where browsers tell what the policy kept from running
BASIC = "/sdapi/"  # below it a token may also be a password: AUTOMATIC1111's clients can send no other kind
SAFE = {"GET", "HEAD", "OPTIONS"}
ONCE = {b"host", b"origin", b"sec-fetch-site", b"authorization", b"content-length", b"transfer-encoding"}
DEFAULT_PORTS = {"http": 80, "https": 443}

MIB = 2**20
MAX_FIELDS = 64  # headers of a request; browsers send 20, proxies add 10
MAX_HEADERS = 12 * 1024  # bytes of them all; uvicorn itself stops reading at 16 KiB
MAX_TARGET = 4096  # bytes of path and query
MAX_REPORT = 64 * 1024  # bytes of a report of the policy
PATIENCE = 20.0  # seconds that a body may be late in all
SLOWEST = 16 * 1024  # bytes per second that buy it more
HEAD = 20.0  # seconds for the head of a request
LIMITS = {"/v1/jobs": MIB, "/v1/images/generations": MIB}  # bytes of bodies that hold words alone, by their path
AT_ONCE = 8  # bodies of the largest size that are held in memory together

_NAME = r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]"
_PORT = r"(?::([1-9][0-9]{0,4}))?"
_HOST = re.compile(rf"({_NAME}){_PORT}", re.I)
_ORIGIN = re.compile(rf"(https?)://({_NAME}){_PORT}", re.I)
_BEARER = re.compile(r"bearer +[A-Za-z0-9._~+/-]{1,512}=*", re.I)
_BASIC = re.compile(r"basic +[A-Za-z0-9+/]{1,1024}={0,2}", re.I)
_ODD = re.compile(r"[\x00-\x1f\x7f\\]|/\.{1,2}(?:/|$)|//")  # in a path: what a route of ours never holds

POLICY = (  # of the page: nothing inline, nothing foreign; pictures also from memory
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"report-uri {REPORTS}"
)
BARE = f"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox; report-uri {REPORTS}"
WORN = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
TAKEN_OFF = {*WORN, b"content-security-policy", b"set-cookie", b"server"}  # of what the application says


class Place(NamedTuple):
    """An origin, as RFC 6454 has it."""

    scheme: str
    host: str
    port: int


@dataclass
class Tally:
    """What the guard saw since the server started."""

    reports: int = 0  # of the policy, by browsers
    refused: Counter[int] = field(default_factory=Counter)  # by status


class Refusal(HTTPException):
    """An answer in place of the application's; an HTTPException, so that frameworks let it pass."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))


def _host(text: str) -> str:
    """A name in small letters; an IPv6 address in its shortest form; "" where it is none."""
    if not text.startswith("["):
        return text.lower()
    try:
        return f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]"
    except ValueError:
        return ""


def parse_host(text: str) -> tuple[str, int | None] | None:
    """Host and port of a Host header, or None where it is anything else."""
    match = _HOST.fullmatch(text)
    port = int(match[2]) if match and match[2] else None
    return (_host(match[1]), port) if match and _host(match[1]) and (port or 0) < 2**16 else None


def parse_origin(text: str) -> Place | None:
    match = _ORIGIN.fullmatch(text)
    if match is None or (told := parse_host(text.partition("://")[2])) is None:
        return None
    scheme = match[1].lower()
    return Place(scheme, told[0], told[1] or DEFAULT_PORTS[scheme])


def places(config: Config) -> frozenset[Place]:
    """The origins that a server is reached as: its address and port, the loopback's names, and `config.hosts`.

    Those are "name" (as a proxy on the usual ports has it), "name:port", or with a scheme, which is then the only one.
    """
    address = f"[{config.host}]" if ":" in config.host else config.host
    ours = {"localhost", "127.0.0.1", "[::1]", address} - {"0.0.0.0", "[::]"}
    found = {Place("http", _host(name), config.port) for name in ours}
    for name in config.hosts:
        schemes = [name.partition("://")[0]] if "://" in name else list(DEFAULT_PORTS)
        read = [parse_origin(f"{scheme}://{name.rpartition('://')[2]}") for scheme in schemes]
        if None in read:
            raise BadInput(f"{name!r} is no host: say a name, name:port or https://name")
        found |= {place for place in read if place}
    return frozenset(found)


class Guard:
    """The middleware, in plain ASGI."""

    def __init__(
        self,
        app: ASGIApp,
        ours: Iterable[Place],
        max_body: int = 32 * MIB,
        limits: Mapping[str, int] = LIMITS,
        tally: Tally | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """limits: bytes of bodies below a path, where they are fewer than `max_body`."""
        self.app, self.ours, self.patience = app, frozenset(ours), patience
        self.max_body, self.limits = max_body, {**limits, REPORTS: MAX_REPORT}
        self.tally = tally or Tally()
        self.held = 0  # bytes of bodies that are in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._hear(scope, receive, send)
        else:  # there are no WebSockets here
            await send({"type": "websocket.close", "code": 1008})

    async def _hear(self, scope: Scope, receive: Receive, send: Send) -> None:
        talk = _Exchange(self, scope, receive, send)
        try:
            check(scope, self.ours, talk.limit)
            app = partial(_count, self.tally) if scope["path"] == REPORTS else self.app
            await app(scope, talk.receive, talk.send)
        except Refusal as refusal:
            talk.refusal = refusal
        except Exception:
            if talk.refusal is None:
                if not talk.began:
                    await talk.answer(500, "an error inside; the server's log says more")
                raise
        finally:
            self.held -= talk.got
        if talk.refusal and not talk.began:
            self.tally.refused[talk.refusal.status_code] += 1
            await talk.answer(talk.refusal.status_code, talk.refusal.detail, talk.refusal.headers)


class _Exchange:
    """One request and its answer: counts what comes, dresses what goes."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._receive, self._send, self._path = guard, receive, send, scope["path"]
        below = (most for path, most in guard.limits.items() if self._path.startswith(path))
        self.limit = min(next(below, guard.max_body), guard.max_body)
        self.got, self.waited = 0, 0.0  # bytes; seconds
        self.read = self.began = False
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        """The application's next message; a body that is too large or too slow ends here."""
        if self.read:
            return await self._receive()
        since = time.monotonic()
        try:
            with anyio.fail_after(self._guard.patience + self.got / SLOWEST - self.waited):
                message = await self._receive()
        except TimeoutError:
            raise self._stop(408, "the body came too slowly") from None
        self.waited += time.monotonic() - since
        if message["type"] == "http.request":
            self.read = not message.get("more_body", False)
            self._hold(len(message.get("body", b"")))
        return message

    def _hold(self, size: int) -> None:
        self.got += size
        self._guard.held += size
        if self.got > self.limit:
            raise self._stop(413, _too_large(self.limit))
        if self._guard.held > AT_ONCE * self._guard.max_body:
            raise self._stop(503, "too many large bodies are being read; try again", {"retry-after": "2"})

    def _stop(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> Refusal:
        """Remembered, for the application may turn it into an answer of its own."""
        self.refusal = Refusal(status, message, headers)
        return self.refusal

    async def send(self, message: Message) -> None:
        if self.refusal and not self.began:
            return  # what the application makes of our refusal
        if message["type"] == "http.response.start":
            self.began = True
            message = {**message, "headers": dressed(message.get("headers", ()), self._path)}
        await self._send(message)

    async def answer(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """A refusal as JSON; the connection ends with it, whatever of the body is still to come."""
        self.refusal, body = None, json.dumps({"error": {"message": message, "field": None}}).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        raw = [(name.encode(), value.encode()) for name, value in (fields | dict(headers or {})).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def check(scope: Scope, ours: frozenset[Place], limit: int) -> None:
    """Refuse a request by its head: 400, 403, 404, 413, 414 or 431."""
    fields: list[tuple[bytes, bytes]] = scope["headers"]
    if len(fields) > MAX_FIELDS or sum(len(name) + len(value) for name, value in fields) > MAX_HEADERS:
        raise Refusal(431, f"a request has up to {MAX_FIELDS} headers of {MAX_HEADERS} bytes in all")
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
        raise Refusal(414, f"an address is up to {MAX_TARGET} bytes long")
    names = Counter(name for name, _ in fields)
    if twice := next((name for name in ONCE if names[name] > 1), None):
        raise Refusal(400, f"the header {twice.decode()} is there more than once")
    said = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
    host = parse_host(said.get("host", ""))
    here = {place for place in ours if host and place.host == host[0] and _port(place, host[1])}
    if not here:
        raise Refusal(400, "this server does not answer to the name in the Host header; its operator may allow it")
    if not scope["path"].startswith("/") or _ODD.search(scope["path"]):
        raise Refusal(404, "there is nothing at this address")
    _check_from(scope["method"], scope["path"], said, here)
    _check_length(said, limit)


def _port(place: Place, said: int | None) -> bool:
    return place.port == (said or DEFAULT_PORTS[place.scheme])


def _check_from(method: str, path: str, said: Mapping[str, str], here: set[Place]) -> None:
    """Refuse what another page sends. An own page's requests say so; programs send a token in place of an origin, or
    JSON, which no page can send to another's server without asking first, and that is never granted.

    A report of the policy comes with `Origin: null`, because the page tells no referrer; it is counted, no more.
    """
    site, origin = said.get("sec-fetch-site", ""), said.get("origin")
    if site not in ("", "same-origin", "none") and not _opens_page(method, path, said):
        raise Refusal(403, "another site's page sent this; open the server's own page")
    if path == REPORTS:
        return
    if origin is not None and parse_origin(origin) not in here:
        raise Refusal(403, "the Origin header names another page than this server's")
    if method in SAFE or origin is not None or carries_token(said.get("authorization", ""), path):
        return
    if not site and said.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        return
    raise Refusal(403, "a request that changes something needs a JSON body, or Authorization: Bearer and a token")


def _opens_page(method: str, path: str, said: Mapping[str, str]) -> bool:
    """Whether this is a link that a person followed, or a redirection after a sign-in, to the page itself."""
    navigates = said.get("sec-fetch-mode") == "navigate" and said.get("sec-fetch-dest") == "document"
    return method == "GET" and path == PAGE and navigates


def carries_token(authorization: str, path: str) -> bool:
    """Whether a token, right or wrong, stands where no foreign page can put one."""
    return bool(_BEARER.fullmatch(authorization) or (path.startswith(BASIC) and _BASIC.fullmatch(authorization)))


def _check_length(said: Mapping[str, str], limit: int) -> None:
    length = said.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or ("content-length" in said and "transfer-encoding" in said):
        raise Refusal(400, "the length of the body is said in two ways, or in none")
    if len(length) > 15 or int(length) > limit:
        raise Refusal(413, _too_large(limit))


def _too_large(limit: int) -> str:
    return f"the body is larger than the {limit} bytes that are read here"


def dressed(fields: Iterable[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those that every answer wears; cookies and leave for foreign pages are dropped.

    A challenge is always one for a token: asked for a password, browsers keep it, and send it along from any page.
    """
    own = [(name.lower(), value) for name, value in fields]
    kept = [(n, v) for n, v in own if n not in TAKEN_OFF and not n.startswith(b"access-control-")]
    kept = [(n, b"Bearer" if n == b"www-authenticate" else v) for n, v in kept]
    if not any(name == b"cache-control" for name, _ in kept):
        kept.append((b"cache-control", b"no-store"))
    policy = POLICY if path == PAGE or path.startswith(SHOWN) else BARE
    return [*kept, *WORN.items(), (b"content-security-policy", policy.encode())]


async def _count(tally: Tally, scope: Scope, receive: Receive, send: Send) -> None:
    """POST counts a report and keeps nothing of it; GET tells how many there were."""
    if scope["method"] not in ("POST", "GET"):
        raise Refusal(405, "reports are posted", {"allow": "GET, POST"})
    while (await receive()).get("more_body"):
        pass
    tally.reports += scope["method"] == "POST"
    body = b"" if scope["method"] == "POST" else json.dumps({"reports": tally.reports}).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))] if body else []
    await send({"type": "http.response.start", "status": 200 if body else 204, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class Patient(H11Protocol):
    """uvicorn's protocol that does not wait for ever for the head of a request (its `http=` setting takes it)."""

    seconds = HEAD
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()

    def _watch(self) -> None:
        """Between requests the time runs from the first byte on; while one is answered it stands still."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self.transport.abort)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

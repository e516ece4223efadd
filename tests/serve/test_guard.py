"""The guard, spoken to as attackers do: over raw sockets, against uvicorn with a small application."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from limner.errors import BadInput
from limner.serve.config import Config
from limner.serve.guard import (
    AT_ONCE,
    BARE,
    MAX_FIELDS,
    POLICY,
    Guard,
    Patient,
    Place,
    Tally,
    parse_host,
    parse_origin,
    places,
)

BODY = 100_000  # bytes that the small application is sent at most
PATIENCE = 0.3  # seconds
TOKEN = "Authorization: Bearer lim_anything"


class Hasty(Patient):
    seconds = 0.5


def small_app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> HTMLResponse:
        return HTMLResponse("<!doctype html><title>page</title>")

    @app.api_route("/v1/thing", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    async def thing(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/v1/form")
    async def form(request: Request) -> dict[str, int]:
        async with request.form() as told:
            return {"fields": len(told)}

    @app.post("/sdapi/v1/thing")
    async def dialect() -> dict[str, int]:
        return {}

    @app.post("/v1/jobs")
    async def jobs(body: dict[str, Any]) -> dict[str, int]:
        return {"fields": len(body)}

    @app.post("/v1/deaf")
    async def deaf(request: Request) -> dict[str, str]:
        try:
            await request.body()
        except Exception:
            return {"all": "well"}
        return {}

    @app.get("/v1/boom")
    async def boom() -> None:
        raise RuntimeError("inside")

    @app.get("/v1/lax")
    async def lax() -> JSONResponse:
        lax = {"Access-Control-Allow-Origin": "*", "Content-Security-Policy": "none", "WWW-Authenticate": "Basic"}
        answer = JSONResponse({}, headers=lax)
        answer.set_cookie("session", "1")
        return answer

    @app.get("/v1/stream")
    async def stream() -> StreamingResponse:
        async def events() -> Any:
            for i in range(3):
                yield f"data: {i}\n\n"
                await asyncio.sleep(0.2)

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@dataclass(frozen=True)
class Server:
    port: int
    tally: Tally

    def ask(self, head: str, body: bytes = b"", wait: float = 5.0) -> tuple[int, dict[str, str], bytes]:
        """Send what is said, as it is; the first answer: status, headers, body. Status 0: closed without one."""
        with self.open(wait) as line:
            line.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            return answer(line, has_body=not head.startswith("HEAD"))

    def open(self, wait: float = 5.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=wait)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def get(self, path: str, *more: str, method: str = "GET", body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        length = (f"Content-Length: {len(body)}",) if body or method in ("POST", "PUT", "PATCH") else ()
        return self.ask("\n".join([f"{method} {path} HTTP/1.1", f"Host: {self.host}", *length, *more]), body)


def answer(line: socket.socket, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
    got = b""
    while b"\r\n\r\n" not in got:
        try:
            more = line.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return 0, {}, got
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (text.partition(": ") for text in lines)}
    assert len(fields) == len(lines), f"a header is there twice: {lines}"
    while has_body and len(body) < int(fields.get("content-length", 0)):
        more = line.recv(65536)
        assert more, f"the body ended after {len(body)} bytes"
        body += more
    return int(first.split()[1]), fields, body


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen(128)
        port, tally = ours.getsockname()[1], Tally()
        hosts = ("limner.example", "https://safe.example", "odd.example:8443")
        app = small_app()
        settings = {"ours": places(Config(port=port, hosts=hosts)), "max_body": BODY, "patience": PATIENCE}
        app.add_middleware(Guard, tally=tally, limits={"/v1/jobs": 1000}, **settings)
        config = uvicorn.Config(app, http=Hasty, ws="none", log_config=None, server_header=False, lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([ours])), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield Server(port, tally)
        running.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


# where a request comes from: 8 origins x 5 sites x 6 ways

ORIGINS = {
    "absent": None, "own": "http://{host}", "ours by another name": "http://localhost:{port}", "null": "null",
    "another port": "http://127.0.0.1:1", "another scheme": "https://{host}", "foreign": "http://evil.example",
    "looks like ours": "http://{host}.evil.example",
}  # fmt: skip
SITES = [None, "same-origin", "none", "same-site", "cross-site"]
FORM = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
WAYS: dict[str, tuple[str, str, list[str], bytes]] = {
    "navigate": ("GET", "/", ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], b""),
    "get": ("GET", "/v1/thing", ["Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"], b""),
    "json as text": ("POST", "/v1/thing", ["Content-Type: text/plain"], b"{}"),
    "form": ("POST", "/v1/form", ["Content-Type: multipart/form-data; boundary=x"], FORM),
    "json": ("POST", "/v1/thing", ["Content-Type: application/json; charset=utf-8"], b"{}"),
    "with a token": ("POST", "/v1/thing", [TOKEN], b""),
}


@pytest.mark.parametrize(("origin", "site", "way"), list(itertools.product(ORIGINS, SITES, WAYS)))
def test_who_may_speak_from_where(server: Server, origin: str, site: str | None, way: str):
    method, path, more, body = WAYS[way]
    said = ORIGINS[origin]
    more = more + ([f"Origin: {said.format(host=server.host, port=server.port)}"] if said else [])
    status, fields, _ = server.get(
        path, *more, *([f"Sec-Fetch-Site: {site}"] if site else []), method=method, body=body
    )
    foreign = origin not in ("absent", "own")
    elsewhere = site in ("same-site", "cross-site") and way != "navigate"
    unproven = origin == "absent" and (way in ("json as text", "form") or (way == "json" and site is not None))
    assert status == (403 if foreign or elsewhere or unproven else 200)
    assert not [name for name in fields if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_every_method_that_changes_needs_the_same(server: Server, method: str):
    assert server.get("/v1/thing", method=method)[0] == 403
    assert server.get("/v1/thing", TOKEN, method=method)[0] == 200
    assert server.get("/v1/thing", f"Origin: http://{server.host}", method=method)[0] == 200


def test_a_preflight_gets_no_leave(server: Server):
    ask = ["Origin: http://evil.example", "Access-Control-Request-Method: POST"]
    status, fields, _ = server.get("/v1/thing", *ask, method="OPTIONS")
    assert status == 403
    assert not [name for name in fields if name.startswith("access-control")]


@pytest.mark.parametrize(
    "more",
    [
        ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"],
        ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: object"],
        ["Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: document"],
        ["Sec-Fetch-Dest: script"],
        [],
    ],
)
def test_only_a_link_opens_the_page_from_elsewhere(server: Server, more: list[str]):
    assert server.get("/", "Sec-Fetch-Site: cross-site", *more)[0] == 403


@pytest.mark.parametrize("path", ["/v1/thing", "/page/main.js", "/csp-report", "/?", "/health"])
def test_a_link_from_elsewhere_opens_the_page_alone(server: Server, path: str):
    more = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"]
    assert server.get(path, *more)[0] == (200 if path == "/?" else 403)


@pytest.mark.parametrize(
    "authorization", ["Bearer", "Bearer ", "bearer a b", "Basic dTpw", "Digest x", "lim_x", "Bearer é"]
)
def test_what_is_no_bearer_token_proves_nothing(server: Server, authorization: str):
    assert server.get("/v1/thing", f"Authorization: {authorization}", method="POST")[0] == 403


def test_a_password_is_a_token_for_the_clients_that_can_send_no_other(server: Server):
    assert server.get("/sdapi/v1/thing", "Authorization: Basic dTpw", method="POST")[0] == 200
    foreign = ["Authorization: Basic dTpw", "Origin: http://evil.example"]
    assert server.get("/sdapi/v1/thing", *foreign, method="POST")[0] == 403


# by which name

HOSTS = {
    "127.0.0.1:{port}": 200, "localhost:{port}": 200, "LOCALHOST:{port}": 200, "[::1]:{port}": 200,
    "[0:0:0:0:0:0:0:1]:{port}": 200, "limner.example": 200, "limner.example:80": 200, "limner.example:443": 200,
    "safe.example": 200, "safe.example:443": 200, "odd.example:8443": 200,
    "127.0.0.1": 400, "localhost": 400, "localhost:1": 400, "127.0.0.1:1{port}": 400, "127.0.0.1:0{port}": 400,
    "127.0.0.1:": 400, "127.0.0.1:{port}:{port}": 400, "127.0.0.1:+{port}": 400, "127.0.0.1:{port}x": 400,
    "evil.example": 400, "evil.example:{port}": 400, "127.0.0.1.evil.example:{port}": 400,
    "localhost.evil.example:{port}": 400, "evil.example#127.0.0.1:{port}": 400, "localhost.:{port}": 400,
    "evil@127.0.0.1:{port}": 400, "127.0.0.1:{port}@evil.example": 400, "127.0.0.1:{port}/x?": 400,
    "127.0.0.1:{port}?": 400, "127.0.0.1:{port}#": 400, "127.0.0.1:{port}\\x": 400, "127.0.0.1 :{port}": 400,
    "2130706433:{port}": 400, "0x7f000001:{port}": 400, "127.1:{port}": 400, "0:{port}": 400, "0.0.0.0:{port}": 400,
    "[::]:{port}": 400, "[::ffff:127.0.0.1]:{port}": 400, "[::1%25lo]:{port}": 400, "::1:{port}": 400, "[::1": 400,
    "http://127.0.0.1:{port}": 400, "127.0.0.1:{port},evil.example": 400, "*": 400, "": 400, "-": 400,
    "odd.example": 400, "safe.example:80": 400, "limner.example:8080": 400, "x.limner.example": 400,
    "lımner.example": 400, "limner.example:99999": 400, "ⅼocalhost:{port}": 400,
}  # fmt: skip


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_it_answers_to_its_own_names_alone(server: Server, host: str, status: int):
    said = host.format(port=server.port).encode().decode("latin-1")
    assert server.ask(f"GET / HTTP/1.1\nHost: {said}")[0] == status


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1",
        "GET / HTTP/1.0",
        "GET / HTTP/1.1\nHost: {host}\nHost: {host}",
        "GET / HTTP/1.1\nHost: {host}\nHost: evil.example",
        "GET / HTTP/1.1\nHost: evil.example\nX-Forwarded-Host: {host}",
        "GET / HTTP/1.1\nX-Forwarded-Host: {host}",
    ],
)
def test_one_host_header_counts(server: Server, head: str):
    assert server.ask(head.format(host=server.host))[0] == 400


def test_an_origin_must_be_that_of_the_host_that_was_asked(server: Server):
    def ask(host: str, origin: str) -> int:
        length = "Content-Length: 0"
        return server.ask(f"POST /v1/thing HTTP/1.1\nHost: {host}\nOrigin: {origin}\n{length}")[0]

    assert ask("limner.example", "https://limner.example") == 200
    assert ask("limner.example", "http://limner.example") == 200
    assert ask("safe.example", "https://safe.example") == 200
    assert ask("safe.example", "https://safe.example:443") == 200
    assert ask("safe.example", "http://safe.example") == 403
    assert ask("odd.example:8443", "https://odd.example:8443") == 200
    assert ask("odd.example:8443", "https://odd.example") == 403
    assert ask("safe.example", "https://limner.example") == 403


@pytest.mark.parametrize(
    "origin", ["http://{host}/", "http://{host}, null", "//{host}", "{host}", "", "file://", "http://"]
)
def test_what_is_no_origin_is_refused(server: Server, origin: str):
    assert server.get("/v1/thing", f"Origin: {origin.format(host=server.host)}")[0] == 403


@pytest.mark.parametrize("name", ["Origin", "Sec-Fetch-Site", "Authorization"])
def test_what_decides_stands_there_once(server: Server, name: str):
    said = {"Origin": f"http://{server.host}", "Sec-Fetch-Site": "same-origin", "Authorization": "Bearer x"}[name]
    assert server.get("/v1/thing", f"{name}: {said}", f"{name}: {said}")[0] == 400


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://evil.example/", 404), ("*", 404), ("//evil.example/", 404), ("/..", 404), ("/v1/../v1/thing", 404),
        ("/v1/%2e%2e/thing", 404), ("/v1%5cthing", 404), ("/v1/thing%00", 404), ("/v1/./thing", 404),
        ("/page/%2e%2e%2f%2e%2e%2fetc/passwd", 404), ("/v1//thing", 404), ("/%252e%252e/", 404),
        ("/v1/thing?a=../..", 200),
        ("/" + "a" * 5000, 414), ("/v1/thing?" + "a" * 5000, 414),
    ],
)  # fmt: skip
def test_odd_addresses_lead_nowhere(server: Server, target: str, status: int):
    assert server.get(target)[0] == status


# how much, and how slowly


def test_headers_are_counted(server: Server):
    many = [f"X-{i}: 1" for i in range(MAX_FIELDS - 1)]
    assert server.get("/v1/thing", *many)[0] == 200
    assert server.get("/v1/thing", *many, "X-More: 1")[0] == 431
    assert server.get("/v1/thing", "X: " + "a" * 11_000)[0] == 200
    assert server.get("/v1/thing", "X: " + "a" * 13_000)[0] == 431
    assert server.get("/v1/thing", "X: " + "a" * 100_000)[0] in (0, 400, 431)  # uvicorn may stop reading
    assert server.get("/v1/thing", "Range: bytes=" + ",".join(f"{i}-{i}" for i in range(10_000)))[0] in (0, 400, 431)


def chunked(server: Server, path: str, sizes: list[int]) -> tuple[int, dict[str, str], bytes]:
    parts = [b"%x\r\n%s\r\n" % (size, b"a" * size) for size in sizes]
    return server.ask(
        f"POST {path} HTTP/1.1\nHost: {server.host}\n{TOKEN}\nTransfer-Encoding: chunked",
        b"".join(parts) + b"0\r\n\r\n",
    )


def test_a_body_that_says_it_is_too_large_is_not_read(server: Server):
    status, fields, body = server.ask(
        f"POST /v1/thing HTTP/1.1\nHost: {server.host}\n{TOKEN}\nContent-Length: {BODY + 1}"
    )
    assert (status, fields["connection"]) == (413, "close")
    assert "100000 bytes" in json.loads(body)["error"]["message"]
    assert server.get("/v1/thing", TOKEN, method="POST", body=b"a" * BODY)[0] == 200


@pytest.mark.parametrize("path", ["/v1/thing", "/v1/deaf"])
def test_a_body_that_says_nothing_is_counted(server: Server, path: str):
    assert chunked(server, path, [10_000] * 10)[0] == 200
    status, _, body = chunked(server, path, [10_000] * 10 + [1])
    assert status == 413  # also where the application makes something else of it
    assert "larger" in json.loads(body)["error"]["message"]


def test_words_need_less_room(server: Server):
    def ask(body: bytes) -> int:
        return server.get("/v1/jobs", TOKEN, "Content-Type: application/json", method="POST", body=body)[0]

    assert ask(json.dumps({"a": "b" * 900}).encode()) == 200
    assert ask(json.dumps({"a": "b" * 1000}).encode()) == 413
    assert chunked(server, "/v1/jobs", [600, 600])[0] == 413  # FastAPI, which reads it, lets the refusal pass


@pytest.mark.parametrize("length", ["-1", "+1", "1e3", "0x10", "1,2", "1 1", "²", "99999999999999999999"])
def test_a_length_is_a_number(server: Server, length: str):
    said = length.encode().decode("latin-1")
    head = f"POST /v1/thing HTTP/1.1\nHost: {server.host}\n{TOKEN}\nContent-Length: {said}"
    assert server.ask(head)[0] in (400, 413)


@pytest.mark.parametrize(
    "more",
    ["Content-Length: 5\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\nContent-Length: 5",
     "Content-Length: 5\nContent-Length: 6", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity"],
)  # fmt: skip
def test_a_length_is_said_in_one_way(server: Server, more: str):
    status = server.ask(f"POST /v1/thing HTTP/1.1\nHost: {server.host}\n{TOKEN}\n{more}", b"0\r\n\r\n")[0]
    assert status in (400, 501)


def test_a_body_that_does_not_come_is_not_waited_for(server: Server):
    began = time.monotonic()
    status, fields, _ = server.ask(f"POST /v1/thing HTTP/1.1\nHost: {server.host}\n{TOKEN}\nContent-Length: 10", b"12")
    assert (status, fields["connection"]) == (408, "close")
    assert PATIENCE * 0.9 < time.monotonic() - began < PATIENCE + 2


def test_drops_do_not_buy_time(server: Server):
    with server.open() as line:
        line.sendall(
            f"POST /v1/thing HTTP/1.1\r\nHost: {server.host}\r\n{TOKEN}\r\nContent-Length: 90\r\n\r\n".encode()
        )
        line.settimeout(0.05)
        for _ in range(60):
            line.sendall(b"a")
            try:
                if first := line.recv(100):
                    break
            except TimeoutError:
                continue
        assert first.startswith(b"HTTP/1.1 408")


def test_a_body_of_a_stream_does_not_keep_it(server: Server):
    head = f"GET /v1/stream HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 5\r\n\r\n"
    with server.open() as line:
        line.sendall(head.encode())
        got = b""
        while part := line.recv(4096):
            got += part
    assert got.startswith(b"HTTP/1.1 200")
    assert b"data: 2" not in got  # it ended when the body had not come


def test_the_head_of_a_request_is_not_waited_for_either(server: Server):
    began = time.monotonic()
    for start in (b"", b"GET / HTTP/1.1\r\nHost: "):
        with server.open() as line:
            line.sendall(start)
            assert answer(line)[0] == 0
    assert 2 * Hasty.seconds * 0.9 < time.monotonic() - began < 2 * Hasty.seconds + 4


def test_a_stream_lasts_longer_than_that(server: Server):
    with server.open() as line:
        line.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        got = b""
        while b"data: 2" not in got:
            part = line.recv(4096)
            assert part
            got += part


def test_slow_ones_do_not_keep_others_waiting(server: Server):
    lines = [server.open() for _ in range(60)]
    for i, line in enumerate(lines):
        line.sendall(f"POST /v1/thing HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 9{i}".encode())
    times = []
    for _ in range(30):
        began = time.monotonic()
        assert server.get("/v1/thing")[0] == 200
        times.append(time.monotonic() - began)
    for line in lines:
        line.close()
    assert sorted(times)[15] < 0.25


def test_memory_for_bodies_is_shared():
    """As many large bodies as `AT_ONCE` are held; the next is sent away, until they are let go."""

    async def scene() -> list[int]:
        gate, statuses = asyncio.Event(), []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await gate.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        guard = Guard(app, [Place("http", "localhost", 80)], max_body=100)

        async def one() -> None:
            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"a" * 100, "more_body": False}

            async def send(message: dict[str, Any]) -> None:
                statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

            headers = [(b"host", b"localhost"), (b"authorization", b"Bearer x")]
            await guard(_scope(method="POST", headers=headers), receive, send)  # type: ignore[arg-type]

        held = [asyncio.create_task(one()) for _ in range(AT_ONCE)]
        await asyncio.sleep(0)
        await one()
        gate.set()
        await asyncio.gather(*held)
        await one()
        assert guard.held == 0
        return statuses

    assert asyncio.run(scene()) == [503] + [200] * (AT_ONCE + 1)


def _scope(**changes: Any) -> dict[str, Any]:
    base = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    return base | changes


def test_there_are_no_websockets():
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(None, [])(_scope(type="websocket"), None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# what every answer wears


@pytest.mark.parametrize(
    ("path", "method", "more", "status"),
    [
        ("/", "GET", [], 200), ("/", "HEAD", [], 200), ("/page/x.js", "GET", [], 404), ("/v1/thing", "GET", [], 200),
        ("/v1/none", "GET", [], 404), ("/", "POST", [TOKEN], 405), ("/v1/thing", "POST", [], 403),
        ("/v1/boom", "GET", [], 500), ("/csp-report", "GET", [], 200), ("/v1/thing", "GET", ["Origin: null"], 403),
        ("/v1/lax", "GET", [], 200), ("/v1/stream", "GET", [], 200), ("/..", "GET", [], 404),
    ],
)  # fmt: skip
def test_every_answer_wears_the_same(server: Server, path: str, method: str, more: list[str], status: int):
    got, fields, _ = server.get(path, *more, method=method)
    assert got == status
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["referrer-policy"] == "no-referrer"
    assert fields["cross-origin-opener-policy"] == "same-origin"
    assert fields["cross-origin-resource-policy"] == "same-origin"
    assert fields["x-frame-options"] == "DENY"
    assert fields["cache-control"]
    assert fields["content-security-policy"] == (POLICY if path == "/" or path.startswith("/page/") else BARE)
    assert not {"set-cookie", "server", "access-control-allow-origin"} & fields.keys()
    assert fields.get("www-authenticate", "Bearer") == "Bearer"


@pytest.mark.parametrize("policy", [POLICY, BARE])
def test_the_policies_let_nothing_inline_run(policy: str):
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules.get("script-src", "'none'") in ("'self'", "'none'")
    assert rules.get("style-src", "'none'") in ("'self'", "'none'")
    assert "unsafe" not in policy
    assert "*" not in policy


def test_an_error_inside_says_nothing_of_the_inside(server: Server):
    status, fields, body = server.get("/v1/boom")
    assert (status, fields["content-type"]) == (500, "application/json")
    assert json.loads(body) == {"error": {"message": "an error inside; the server's log says more", "field": None}}


def test_reports_of_the_policy_are_counted(server: Server):
    def seen() -> int:
        return json.loads(server.get("/csp-report")[2])["reports"]

    before, report = seen(), b'{"csp-report": {"blocked-uri": "inline"}}'
    by_browser = ["Content-Type: application/csp-report", "Origin: null", "Sec-Fetch-Site: same-origin"]
    assert server.get("/csp-report", *by_browser, method="POST", body=report)[0] == 204
    assert seen() == server.tally.reports == before + 1
    elsewhere = ["Origin: null", "Sec-Fetch-Site: cross-site"]
    assert server.get("/csp-report", *elsewhere, method="POST", body=report)[0] == 403
    assert server.get("/csp-report", *by_browser, method="POST", body=b"a" * 70_000)[0] == 413
    assert chunked(server, "/csp-report", [40_000, 40_000])[0] == 413
    assert server.get("/csp-report", TOKEN, method="DELETE")[0] == 405
    assert server.ask("POST /csp-report HTTP/1.1\nHost: evil.example\nContent-Length: 0")[0] == 400
    assert seen() == before + 1


def test_refusals_are_counted(server: Server):
    before = server.tally.refused[403]
    server.get("/v1/thing", method="POST")
    assert server.tally.refused[403] == before + 1


# the parsers


@pytest.mark.parametrize(
    ("text", "found"),
    [("a.b:1", ("a.b", 1)), ("A", ("a", None)), ("[::1]", ("[::1]", None)), ("[::0001]:80", ("[::1]", 80))],
)
def test_hosts_are_read_exactly(text: str, found: tuple[str, int | None]):
    assert parse_host(text) == found


@pytest.mark.parametrize(
    "text", ["", "a:", "a:0", "a:65536", "a b", "[::g]", "[1]", "a:1\n", "-a", "a-", "a..", "[::1]x"]
)
def test_what_is_no_host(text: str):
    assert parse_host(text) is None


def test_origins_have_a_port():
    assert parse_origin("https://A.example") == Place("https", "a.example", 443)
    assert parse_origin("http://[::1]:8") == Place("http", "[::1]", 8)
    assert parse_origin("ftp://a.example") is None


def test_the_places_of_a_config():
    base = Config(port=7860)
    usual = {Place("http", name, 7860) for name in ("localhost", "127.0.0.1", "[::1]")}
    assert places(base) == usual
    assert places(replace(base, host="0.0.0.0")) == places(replace(base, host="::")) == usual
    assert places(replace(base, host="192.0.2.1")) == usual | {Place("http", "192.0.2.1", 7860)}
    assert places(replace(base, host="2001:DB8::1")) == usual | {Place("http", "[2001:db8::1]", 7860)}
    both = {Place("http", "a.example", 80), Place("https", "a.example", 443)}
    assert places(replace(base, hosts=("a.example",))) == usual | both
    assert places(replace(base, hosts=("https://a.example",))) == usual | {Place("https", "a.example", 443)}


@pytest.mark.parametrize("name", ["", "a b", "https://", "a.example/path", "*", "*.a.example", "ftp://a", "http://a:b"])
def test_a_name_that_is_no_host_is_refused(name: str):
    with pytest.raises(BadInput, match="is no host"):
        places(Config(hosts=(name,)))

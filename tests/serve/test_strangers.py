"""What strangers get: nothing of others, no file but by its id, no address fetched, and no words back but as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel
from tests.serve.conftest import Here, png, serving

from limner.recipe import Recipe
from limner.serve import a1111, openai, page, routes
from limner.serve.config import Config
from limner.serve.tokens import add, digest, make
from limner.serve.wishes import Move, Order

OPEN = {"/", "/page/{file}", "/health"}  # these need no token
ROUTES = sorted(
    (method, route.path)
    for router in (routes.router, openai.router, a1111.router, page.router)
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods
)
CLOSED = [(method, path) for method, path in ROUTES if path not in OPEN]
PICTURE = base64.b64encode(png()).decode()
BODIES: dict[str, dict[str, Any]] = {
    "/v1/jobs": {"json": {"recipe": {"prompt": "a cat"}}},
    "/v1/jobs/{id}/move": {"json": {"before": None}},
    "/v1/uploads": {"content": png(), "headers": {"content-type": "image/png"}},
    "/v1/images/generations": {"json": {"prompt": "a cat"}},
    "/v1/images/edits": {"data": {"prompt": "a cat"}, "files": {"image": ("a.png", png(), "image/png")}},
    "/v1/images/variations": {"files": {"image": ("a.png", png(), "image/png")}},
    "/sdapi/v1/txt2img": {"json": {"prompt": "a cat"}},
    "/sdapi/v1/img2img": {"json": {"prompt": "a cat", "init_images": [PICTURE]}},
    "/sdapi/v1/options": {"json": {}},
    "/sdapi/v1/png-info": {"json": {"image": PICTURE}},
    "/sdapi/v1/extra-single-image": {"json": {"image": PICTURE}},
}
KINDS = {"application/json", "image/png", "text/event-stream", "text/plain; charset=utf-8"}


@dataclass(frozen=True)
class Team:
    """A server with tokens; anna has a job, a picture and an upload, ben has nothing."""

    here: Here
    anna: str
    ben: str
    reader: str
    wrong: dict[str, str]
    job: str
    picture: str
    upload: str

    async def ask(self, method: str, path: str, token: str | None, **told: Any) -> httpx.Response:
        headers = told.pop("headers", {}) | ({"authorization": f"Bearer {token}"} if token else {})
        if not token:  # a same-origin page that has no token
            headers |= {"authorization": "", "origin": f"http://127.0.0.1:{self.here.config.port}"}
        return await self.here.client.request(method, path, headers=headers, **told)

    def filled(self, path: str) -> str:
        id = self.job if "/jobs/" in path else self.picture
        return path.replace("{id}", id).replace("{name}", "loras").replace("{file}", "main.js")


@pytest.fixture
def team(config: Config) -> Callable[..., None]:
    def call(test: Callable[[Team], Any], **settings: Any) -> None:
        async def body() -> None:
            async with serving(replace(config, **settings)) as here:
                tokens = [add(here.store, name, scopes)[0] for name, scopes in
                          (("anna", "paint read"), ("ben", "paint read"), ("rita", "read"))]  # fmt: skip
                old, gone = make(), add(here.store, "gone")
                here.store.add_token("old", digest(old), "paint read admin", time.time() - 1)
                here.store.revoke(gone[1].id)
                wrong = {"wrong": make(), "expired": old, "revoked": gone[0], "no token at all": "local"}
                hers = {"authorization": f"Bearer {tokens[0]}"}
                job = await here.client.post("/v1/jobs", json={"recipe": {"prompt": "hers"}}, headers=hers)
                sent = await here.client.post(
                    "/v1/uploads", content=png(), headers=hers | {"content-type": "image/png"}
                )
                until = time.monotonic() + 5
                while not (rows := here.store.pictures()):
                    assert time.monotonic() < until
                    await asyncio.sleep(0.01)
                await test(Team(here, *tokens, wrong, job.json()["id"], rows[0].id, sent.json()["id"]))

        asyncio.run(body())

    return call


def test_no_route_is_forgotten():
    """Each of the API's is here, with a body where it takes one."""
    assert len(CLOSED) > 30
    takes = {path for method, path in CLOSED if method == "POST" and "{id}" not in path}
    assert takes - set(BODIES) == {"/sdapi/v1/interrupt", "/sdapi/v1/refresh-checkpoints"} & takes


def test_without_a_good_token_every_route_is_closed(team: Callable[..., None]):
    async def test(team: Team) -> None:
        for method, path in CLOSED:
            for why, token in [("none", None), *team.wrong.items()]:
                got = await team.ask(method, team.filled(path), token, **BODIES.get(path, {}))
                assert got.status_code == 401, (method, path, why, got.text)
                assert got.headers["www-authenticate"].startswith("Bearer")
                assert got.headers["content-type"] == "application/json"
        for path in OPEN:
            assert (await team.ask("GET", team.filled(path), None)).status_code == 200
        assert len(team.here.store.jobs(None)) == 1

    team(test)


def test_what_only_reads_changes_nothing(team: Callable[..., None]):
    async def test(team: Team) -> None:
        for method, path in CLOSED:
            if method in ("GET", "HEAD") or path == "/sdapi/v1/png-info":
                continue
            got = await team.ask(method, team.filled(path), team.reader, **BODIES.get(path, {}))
            assert got.status_code == 403, (method, path, got.text)
        assert len(team.here.store.jobs(None)) == 1
        assert team.here.store.picture(team.picture).deleted is None  # type: ignore[union-attr]

    team(test)


def test_another_s_things_are_not_there(team: Callable[..., None]):
    """By their ids, in lists, in searches and in wishes; the answer is that of an id that never was."""

    async def test(team: Team) -> None:
        for method, path in CLOSED:
            if "{id}" not in path:
                continue
            got = await team.ask(method, team.filled(path), team.ben, **BODIES.get(path, {}))
            never = team.filled(path).replace(team.job, "j_" + 16 * "0").replace(team.picture, "p_" + 16 * "0")
            none = await team.ask(method, never, team.ben, **BODIES.get(path, {}))
            assert (got.status_code, got.text) == (404, none.text), (method, path)
        for path in ("/v1/jobs", "/v1/pictures", "/v1/pictures?q=hers", "/v1/pictures?deleted=true",
                     "/sdapi/v1/progress", f"/v1/jobs?before={team.job}",
                     f"/v1/pictures?before={team.picture}"):  # fmt: skip
            got = await team.ask("GET", path, team.ben)
            assert got.status_code == 200
            assert not re.search(r"hers|[jpu]_[0-9a-f]{16}", got.text.replace(team.job, "")), path
        for wishes in (
            {"task": "edit", "image": f"picture:{team.picture}"},
            {"task": "edit", "image": f"upload:{team.upload}"},
            {"task": "inpaint", "image": f"upload:{team.upload}", "mask": f"upload:{team.upload}"},
            {"controls": [{"net": "mini", "image": f"canny:upload:{team.upload}"}]},
            {"picture_prompts": [{"net": "mini", "image": f"picture:{team.picture}"}]},
        ):
            got = await team.ask("POST", "/v1/jobs", team.ben, json={"recipe": wishes})
            assert got.status_code == 422, got.text
            assert "no such picture of yours" in got.json()["error"]["message"]
        mine = (await team.ask("POST", "/v1/jobs", team.ben, json={"recipe": {}})).json()["id"]
        got = await team.ask("POST", f"/v1/jobs/{mine}/move", team.ben, json={"before": team.job})
        assert got.status_code == 404
        assert (await team.ask("GET", f"/v1/pictures/{team.picture}/file", team.anna)).status_code == 200

    team(test)


# paths

UPS = ["../", "..\\", "%2e%2e/", "%2e%2e%2f", "..%2f", "%252e%252e%252f", "..%5c", "..;/", "....//", "..%c0%af",
       "..%ef%bc%8f", "．．/", "%uff0e%uff0e/", ".%00./", "./../"]  # fmt: skip
TARGETS = ["canary.txt", "limner.db", "etc/passwd"]
TRAVERSALS = [
    *(up * 3 + target for up in UPS for target in TARGETS),
    "{folder}/canary.txt", "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "file://{folder}/canary.txt",
    "/proc/self/environ", "C:\\Windows\\win.ini", "\\\\server\\share\\x", "\\\\?\\C:\\x", "canary.txt\0.png",
    "link.png", "~/canary.txt", "$HOME/canary.txt", "CON", "a" * 4096, ".", "..", "\uff0fetc\uff0fpasswd",
]  # fmt: skip
NAMES = ["model", "refiner", "upscaler", "style", "sampler", "schedule", "image", "mask", "syntax", "noise", "task"]
LISTS = ["parts", "embeddings"]


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[str]:
    """A file beside the server's folder, and a link to it within; afterwards nothing new lies around."""
    secret = f"canary-{make()}"
    (tmp_path / "canary.txt").write_text(secret)
    (tmp_path / "serve" / "pictures").mkdir(parents=True)
    (tmp_path / "serve" / "pictures" / "link.png").symlink_to(tmp_path / "canary.txt")
    yield secret
    assert {path.name for path in tmp_path.iterdir()} == {"canary.txt", "serve"}
    outside = re.compile(r"limner\.db(-\w+)?|pictures|[0-9a-f]{2}|[0-9a-f]{64}|link\.png")
    assert all(outside.fullmatch(path.name) for path in (tmp_path / "serve").rglob("*"))


def test_there_are_sixty_paths():
    assert len(set(TRAVERSALS)) == len(TRAVERSALS) >= 60


def nothing_of(secret: str, got: httpx.Response) -> None:
    assert got.status_code < 500, got.text
    assert secret not in got.text
    assert "root:" not in got.text


SOME = pytest.mark.parametrize(
    "vectors", [pytest.param(TRAVERSALS[::8], id="some"), pytest.param(TRAVERSALS, id="all", marks=pytest.mark.slow)]
)


def told(vectors: list[str], folder: Path) -> list[str]:
    return [vector.replace("{folder}", str(folder)) for vector in vectors]


async def raw(team: Team, method: str, path: str) -> tuple[int, bytes]:
    """Ask for a path as it is: clients tidy theirs."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:%d" % team.here.config.port), (b"authorization", f"Bearer {team.anna}".encode())]
    scope = {"type": "http", "method": method, "path": unquote(path), "raw_path": quote(path, safe="%/;").encode()}
    scope |= {"query_string": b"", "headers": headers, "scheme": "http", "http_version": "1.1", "root_path": ""}
    await team.here.app(scope | {"asgi": {"version": "3.0"}, "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2)},
                        receive, send)  # fmt: skip
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@SOME
def test_no_parameter_of_an_address_is_a_path(
    team: Callable[..., None], canary: str, tmp_path: Path, vectors: list[str]
):
    async def test(team: Team) -> None:
        for said in told(vectors, tmp_path):
            for method, path in ROUTES:
                for text in {said, quote(said, safe="")} if "{" in path else ():
                    status, body = await raw(team, method, re.sub(r"\{\w+\}", lambda _, text=text: text, path))
                    assert status in (404, 405, 414, 415, 422), (method, path, text, status)
                    assert canary.encode() not in body
            for path in ("/v1/pictures", "/v1/jobs"):
                for name in ("q", "before", "state"):
                    nothing_of(canary, await team.ask("GET", path, team.anna, params={name: said}))

    team(test)


@SOME
def test_no_field_of_a_body_is_a_path(team: Callable[..., None], canary: str, tmp_path: Path, vectors: list[str]):
    async def test(team: Team) -> None:
        async def refused(wishes: dict[str, Any]) -> None:
            got = await team.ask("POST", "/v1/jobs", team.anna, json={"recipe": wishes})
            assert got.status_code == 422, (wishes, got.text)
            nothing_of(canary, got)

        for said in told(vectors, tmp_path):
            for name in NAMES:
                await refused({name: said})
            for name in LISTS:
                await refused({name: [said]})
            for kind in ("controls", "picture_prompts"):
                await refused({kind: [{"net": said, "image": f"upload:{team.upload}"}]})
                await refused({kind: [{"net": "mini", "image": said}]})
            for mark in ("upload:", "picture:", "canny:", "upload:u_", "picture:p_"):
                await refused({"task": "edit", "image": mark + said})
            await refused({said: "a field"})
            move = await team.ask("POST", f"/v1/jobs/{team.job}/move", team.anna, json={"before": said})
            assert move.status_code in (404, 422)
            nothing_of(canary, move)

    team(test)


@SOME
def test_words_and_names_of_files_are_not_paths_either(
    team: Callable[..., None], canary: str, tmp_path: Path, vectors: list[str]
):
    """What people write freely is kept as they wrote it, and no file is called by it."""

    async def test(team: Team) -> None:
        for said in told(vectors, tmp_path):
            words = {"prompt": said, "negative": said, "toward": said, "regions": [{"box": "left:0-1", "prompt": said}]}
            got = await team.ask("POST", "/v1/jobs", team.anna, json={"recipe": words})
            assert got.status_code == (422 if "\0" in said else 202), got.text
            nothing_of(canary, got)
            got = await team.ask("POST", "/v1/uploads", team.anna, content=said.encode(), headers={
                "content-type": "image/png", "content-disposition": "attachment; filename=../../x.png"})  # fmt: skip
            assert got.status_code == 415
        sent = {"image": ("../../../canary.txt", b"no picture", "image/png")}
        got = await team.ask("POST", "/v1/images/edits", team.anna, data={"prompt": "a"}, files=sent)
        assert 400 <= got.status_code < 500

    team(test, max_queue=1000)


# addresses


URLS = [
    "http://127.0.0.1:{port}/a.png", "//127.0.0.1:{port}/a.png", "data:text/html,<img src=http://127.0.0.1:{port}>",
    "HTTP://127.0.0.1:{port}/", "https://127.0.0.1:{port}/a.png", "ftp://127.0.0.1:{port}/", "http://2130706433:{port}/",
    "gopher://localhost:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://169.254.169.254/latest/meta-data/",
    "hf:127.0.0.1:{port}/a", "\\\\127.0.0.1@{port}\\a", "jar:http://127.0.0.1:{port}!/",
]  # fmt: skip


@pytest.mark.parametrize(
    "urls", [pytest.param(URLS[:3], id="some"), pytest.param(URLS, id="all", marks=pytest.mark.slow)]
)
def test_no_address_is_fetched(team: Callable[..., None], urls: list[str]):
    async def test(team: Team) -> None:
        calls: list[object] = []
        spy = await asyncio.start_server(lambda *told: calls.append(told), "127.0.0.1", 0)
        for url in (one.format(port=spy.sockets[0].getsockname()[1]) for one in urls):
            for wishes in (
                {"model": url}, {"refiner": url}, {"upscaler": url}, {"parts": [url]}, {"embeddings": [url]},
                {"task": "edit", "image": url}, {"task": "inpaint", "image": f"upload:{team.upload}", "mask": url},
                {"controls": [{"net": "mini", "image": url}]}, {"picture_prompts": [{"net": "mini", "image": url}]},
            ):  # fmt: skip
                got = await team.ask("POST", "/v1/jobs", team.anna, json={"recipe": wishes})
                assert got.status_code == 422, (wishes, got.text)
            for path, body in (
                ("/sdapi/v1/img2img", {"init_images": [url]}),
                ("/sdapi/v1/img2img", {"init_images": [PICTURE], "mask": url}),
                ("/sdapi/v1/png-info", {"image": url}),
                ("/sdapi/v1/extra-single-image", {"image": url}),
                ("/v1/images/generations", {"prompt": "a", "model": url}),
            ):
                got = await team.ask("POST", path, team.anna, json=body)
                assert 400 <= got.status_code < 500, (path, body, got.text)
            got = await team.ask("POST", "/v1/images/edits", team.anna, data={"prompt": "a", "image": url})
            assert 400 <= got.status_code < 500
        spy.close()
        await spy.wait_closed()
        assert not calls

    team(test)


@pytest.mark.parametrize("kind", [Order, Move])
def test_the_description_offers_no_address(kind: type[BaseModel]):
    """No field of a body says that it takes a URL or a path."""
    schema = kind.model_json_schema()
    fields = [pair for one in (schema, *schema.get("$defs", {}).values()) for pair in one["properties"].items()]
    assert fields
    for name, field in fields:
        assert field.get("format") not in ("uri", "url", "path", "file-path"), name
        assert not re.search(r"url|uri|path|href|link|callback|webhook", name), name


# words that would run elsewhere

HOSTILE = [
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>',
    "<svg/onload=alert(1)>", "javascript:alert(1)", "'-alert(1)-'", "${alert(1)}", "{{7*7}}", "<!--", "]]>",
    "\r\nSet-Cookie: a=b\r\n\r\n<html>", "\n\nevent: state\ndata: {}\n\n", "'; DROP TABLE jobs; --", "%s%n%x", "$(id)",
    "`id`", "| id", "\u202egnp.exe", "\ufeff<html>", "=cmd|' /C calc'!A0", "\x1b[2J\x1b]0;x\x07",
    "\u2028alert(1)\u2029",
]  # fmt: skip


def test_hostile_words_come_back_as_json_and_in_files_of_fixed_kinds(team: Callable[..., None]):
    async def test(team: Team) -> None:
        async def get(path: str, **params: Any) -> httpx.Response:
            got = await team.ask("GET", path, team.anna, params=params)
            _check(got)
            return got

        for words in HOSTILE:
            told = {
                "prompt": words,
                "negative": words,
                "toward": words,
                "regions": [{"box": "left:0-1", "prompt": words}],
            }
            got = await team.ask("POST", "/v1/jobs", team.anna, json={"recipe": told})
            _check(got)
            assert (got.status_code, got.json()["recipe"]["prompt"]) == (202, words)
            for body in ({"model": words, "style": words}, {"sampler": words}, {"image": words}, {words: words}):
                got = await team.ask("POST", "/v1/jobs", team.anna, json={"recipe": body})
                _check(got)
                assert got.status_code == 422
            for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
                got = await team.ask("POST", path, team.anna, json={"prompt": words, "n": words, "steps": words})
                _check(got)
                assert 400 <= got.status_code < 500
            await get("/v1/pictures", q=words, limit=words)
            await get("/v1/jobs", state=words, before=words)
            kind = {"content-type": re.sub(rb"[\r\n\0]", b"", words.encode())}
            _check(await team.ask("POST", "/v1/uploads", team.anna, content=png(), headers=kind))
        until = time.monotonic() + 20
        while (jobs := (await get("/v1/jobs", limit=200)).json()["jobs"])[0]["state"] != "done":
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert [job["recipe"]["prompt"] for job in jobs] == [*reversed(HOSTILE), "hers"]
        for job in jobs:
            made = job["pictures"][0]["id"]
            await get(f"/v1/pictures/{made}")
            await get(f"/v1/pictures/{made}/file", download=made[-1] in "01234567")
            await get(f"/v1/jobs/{job['id']}/events")
            assert made in (await get("/v1/pictures", q=job["recipe"]["prompt"])).text
        await get("/sdapi/v1/progress")

    team(test)


def _check(got: httpx.Response) -> None:
    assert got.status_code < 500, got.text
    assert got.headers["content-type"].removesuffix("; charset=utf-8") in {one.partition(";")[0] for one in KINDS}
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in got.headers["content-security-policy"]
    assert "set-cookie" not in got.headers
    if got.headers["content-type"] == "application/json":
        json.loads(got.text)
    if got.headers["content-type"].startswith("text/event-stream"):
        for line in got.text.splitlines():
            if name := re.match(r"(\w*):", line):
                assert name[1] in ("event", "data", "id", "retry", "")
            if line.startswith("data:"):
                json.loads(line.removeprefix("data:"))
    if "content-disposition" in got.headers:
        assert re.fullmatch(r'(inline|attachment); filename="limner-\d+-\d+\.png"', got.headers["content-disposition"])


def test_a_picture_that_carries_hostile_words_is_told_as_json(team: Callable[..., None]):
    async def test(team: Team) -> None:
        for words in HOSTILE[::3]:
            data = png(recipe=Recipe(prompt=words))
            got = await team.ask("POST", "/v1/uploads", team.anna, content=data, headers={"content-type": "image/png"})
            assert got.status_code == 201
            assert got.json()["recipe"]["prompt"] == words
            _check(got)
            body = {"image": base64.b64encode(data).decode()}
            _check(await team.ask("POST", "/sdapi/v1/png-info", team.anna, json=body))

    team(test)

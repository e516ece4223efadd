"""Tokens: what is made, what is kept, and who is let in."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from limner.errors import BadInput, UnknownName
from limner.serve import tokens
from limner.serve.config import Config
from limner.serve.seams import Parts, Refused, Who, who
from limner.serve.store import Store
from limner.serve.tokens import add, check_start, digest, door, everyone_is_local, make, said, without_words


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'limner.db'}")
    yield store
    store.close()


def small_app(store: Store, config: Config) -> TestClient:
    app = FastAPI()
    app.state.parts, app.state.door = Parts(config, store, None, None, None), door  # type: ignore[arg-type]

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": error.message}, error.status)

    def route(scope: Any) -> None:
        asked = Depends(who(scope))

        @app.get(f"/{scope}")
        @app.get(f"/sdapi/{scope}")
        async def ask(me: Who = asked) -> dict[str, Any]:
            return {"owner": me.owner, "scopes": sorted(me.scopes)}

    for scope in ("paint", "read", "admin"):
        route(scope)
    return TestClient(app)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_is_random_and_can_be_told_from_other_words():
    made = {make() for _ in range(200)}
    assert len(made) == 200
    assert all(re.fullmatch(r"lim_[A-Za-z0-9_-]{43}", one) for one in made)  # 256 bits


def test_the_database_holds_the_digest_alone(store: Store, tmp_path: Path):
    token, row = add(store, " anna ", "read,paint", days=2)
    assert (row.name, row.scopes, row.hash) == ("anna", "paint read", digest(token))
    assert row.expires == pytest.approx(time.time() + 2 * 86400, abs=60)
    assert len(digest(token)) == 64
    for file in tmp_path.iterdir():
        assert token.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("name", "scopes", "days", "why"),
    [("a", "paint write", None, "no scope is called 'write'"), ("a", "", None, "one scope at least"),
     ("  ", "read", None, "needs a name"), ("a", "read", 0, "more than 0"), ("a", "read", float("nan"), "more than 0"),
     ("a", "read", 1e9, "more than 0")],
)  # fmt: skip
def test_what_is_no_token_is_not_made(store: Store, name: str, scopes: str, days: float | None, why: str):
    with pytest.raises((BadInput, UnknownName), match=why):
        add(store, name, scopes, days)
    assert store.tokens() == []


@pytest.mark.parametrize(
    ("authorization", "path", "token"),
    [
        ("Bearer lim_x", "/", "lim_x"), ("bearer  lim_x ", "/", "lim_x"), ("lim_x", "/", ""), ("", "/", ""),
        ("Basic " + base64.b64encode(b"me:lim:x").decode(), "/sdapi/v1/txt2img", "lim:x"),
        ("Basic " + base64.b64encode(b"me:lim_x").decode(), "/v1/jobs", ""),
        ("Basic ####", "/sdapi/v1", ""), ("Basic " + base64.b64encode(b"\xff:\xff").decode(), "/sdapi/v1", ""),
    ],
)  # fmt: skip
def test_a_token_stands_in_the_authorization_header(authorization: str, path: str, token: str):
    assert said(authorization, path) == token


def test_without_tokens_whoever_is_at_the_machine_is_let_in(store: Store):
    client = small_app(store, Config())
    for scope in ("paint", "read", "admin"):
        told = client.get(f"/{scope}", headers=bearer("whatever clients must send"))
        assert told.json() == {"owner": "local", "scopes": ["admin", "paint", "read"]}


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"token_required": True}, {"hosts": ("limner.example",)}])
def test_where_others_can_come_in_nobody_is_local(store: Store, settings: dict[str, Any]):
    config = replace(Config(), **settings)
    assert not everyone_is_local(config, store)
    assert small_app(store, config).get("/read").status_code == 401
    with pytest.raises(BadInput, match="needs a token; `limner serve token add NAME` makes one"):
        check_start(config, store)
    _, row = add(store, "anna")
    check_start(config, store)
    store.revoke(row.id)
    with pytest.raises(BadInput, match="needs a token"):
        check_start(config, store)


def test_an_expired_token_is_none_to_start_with(store: Store):
    store.add_token("old", digest(make()), "read", time.time() - 1)
    with pytest.raises(BadInput, match=r"0\.0\.0\.0"):
        check_start(Config(host="0.0.0.0"), store)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_loopback_starts_without(store: Store, host: str):
    check_start(Config(host=host, hosts=("localhost:8080",)), store)


def test_scopes(store: Store):
    client = small_app(store, Config())
    made = {scopes: add(store, "a", scopes) for scopes in ("read", "paint", "paint read", "admin")}
    for scopes, (token, row) in made.items():
        for scope in ("paint", "read", "admin"):
            told = client.get(f"/{scope}", headers=bearer(token))
            good = scope in scopes or scopes == "admin"
            assert told.status_code == (200 if good else 403)
            assert told.json()["owner"] == row.id if good else "may" in told.json()["error"]


def test_all_that_is_no_good_token_gets_the_same_answer(store: Store):
    client = small_app(store, Config())
    token, row = add(store, "a")
    old = make()
    store.add_token("old", digest(old), "paint read", time.time() - 1)
    wrong = [make(), token[:-1], token + "A", token.upper(), digest(token), row.id, row.hash, old, "lim_", "é" * 47]
    answers = {(a.status_code, a.text) for a in (client.get("/read", headers=bearer_raw(one)) for one in wrong)}
    answers |= {(a.status_code, a.text) for a in (
        client.get("/read"),
        client.get("/read", headers={"Cookie": f"token={token}; Authorization=Bearer {token}"}),
        client.get(f"/read?token={token}&access_token={token}&key={token}"),
        client.get("/read", headers={"X-API-Key": token, "Proxy-Authorization": f"Bearer {token}"}),
    )}  # fmt: skip
    assert {status for status, _ in answers} == {401}
    assert len(answers) == 1
    assert client.get("/read", headers=bearer(token)).status_code == 200
    store.revoke(row.id)
    assert client.get("/read", headers=bearer(token)).status_code == 401  # at once


def bearer_raw(token: str) -> dict[str, bytes]:
    return {"Authorization": b"Bearer " + token.encode()}


def test_a_token_expires_while_the_server_runs(store: Store, monkeypatch: pytest.MonkeyPatch):
    client = small_app(store, Config())
    token, row = add(store, "a", days=1)
    assert client.get("/read", headers=bearer(token)).status_code == 200
    monkeypatch.setattr(store, "_clock", lambda: (row.expires or 0) + 1)
    assert client.get("/read", headers=bearer(token)).status_code == 401


def test_the_first_token_closes_the_door_for_good(store: Store):
    client = small_app(store, Config())
    assert client.get("/read").status_code == 200
    _, row = add(store, "a")
    assert client.get("/read").status_code == 401
    store.revoke(row.id)
    assert client.get("/read").status_code == 401
    assert small_app(store, Config()).get("/read").status_code == 401  # also after a restart


def test_a_password_opens_the_dialect_of_a_program_alone(store: Store):
    token, row = add(store, "a")
    client = small_app(store, Config())
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{token}".encode()).decode()}
    assert client.get("/sdapi/read", headers=basic).json()["owner"] == row.id
    assert client.get("/read", headers=basic).status_code == 401


def test_digests_are_compared_in_constant_time(store: Store, monkeypatch: pytest.MonkeyPatch):
    """And what has not the form of a token costs no look into the database."""
    token, _ = add(store, "a")
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda a, b: not seen.append((a, b)) and a == b)
    assert tokens.find(store, token)
    assert seen == [(digest(token), digest(token))]
    monkeypatch.setattr(store, "find_token", None)
    assert tokens.find(store, "x" * 10_000) is None


def test_the_audit_log_tells_no_words():
    wishes = {
        "prompt": "secret",
        "negative": "secret",
        "toward": "secret",
        "regions": [{"prompt": "secret"}],
        "steps": 9,
    }
    assert json.loads(without_words(wishes)) == {"steps": 9}
    assert json.loads(without_words(wishes, prompts=True)) == wishes

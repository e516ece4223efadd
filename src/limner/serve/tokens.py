"""Tokens: how they are made, what of them is kept, and the door that asks for one.

A token is 256 random bits, said in the Authorization header and nowhere else: not in a cookie, which browsers send
along from any page, and not in an address, which logs keep. The database holds its SHA-256 alone; a random token needs
no slow hash, for there is nothing to guess.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import Request

from limner.errors import BadInput, UnknownName
from limner.serve.config import LOOPBACK
from limner.serve.guard import BASIC, places
from limner.serve.seams import LOCAL, SCOPES, Refused, Scope, Who, parts_of, who

if TYPE_CHECKING:
    from limner.serve.config import Config
    from limner.serve.store import Store
    from limner.serve.tables import Token

__all__ = ["add", "check_start", "digest", "door", "everyone_is_local", "make", "said", "who", "without_words"]

MARK = "lim_"  # so that programs that search for leaked secrets know one
TOKEN = re.compile(rf"{MARK}[A-Za-z0-9_-]{{43}}")
USUAL = ("paint", "read")  # scopes of a token where none are said
LONGEST = 36_500  # days; a hundred years
NAMES = {*LOOPBACK, "[::1]"}
DAY = 86_400  # seconds
WORDS = ("prompt", "negative", "toward", "regions")  # fields of wishes that hold what somebody wrote
NOT_KNOWN = "this needs a token in the Authorization header: Bearer and a token that is neither revoked nor expired"


def make() -> str:
    return MARK + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def add(store: Store, name: str, scopes: str = " ".join(USUAL), days: float | None = None) -> tuple[str, Token]:
    """A new token: its text, which is shown once and kept nowhere, and its row. days: until it expires."""
    named = scopes.replace(",", " ").split()
    for scope in named:
        if scope not in SCOPES:
            raise UnknownName("scope", scope, SCOPES)
    if not named or not name.strip():
        raise BadInput("a token needs a name, and one scope at least: " + ", ".join(sorted(SCOPES)))
    if days is not None and not 0 < days <= LONGEST:  # NaN is in no range
        raise BadInput(f"a token lasts for more than 0 and up to {LONGEST} days, not {days}")
    token = make()
    expires = None if days is None else time.time() + days * DAY
    return token, store.add_token(name.strip(), digest(token), " ".join(sorted(set(named))), expires)


def said(authorization: str, path: str = "/") -> str:
    """The token that an Authorization header says, or "". Below /sdapi it may be the password of a Basic one."""
    kind, _, rest = authorization.partition(" ")
    if kind.lower() == "bearer":
        return rest.strip()
    if kind.lower() == "basic" and path.startswith(BASIC):
        try:
            return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


async def door(request: Request, scope: Scope) -> Who:
    """Who asks, when they may do what the scope says; else 401, or 403 for a token that may not. admin may do it all.

    On a loopback address of a server that never had a token, whoever asks is the one at the machine.
    """
    app = request.app
    store, config = parts_of(app).store, parts_of(app).config
    if not getattr(app.state, "locked", False):
        if await to_thread.run_sync(everyone_is_local, config, store):
            return Who(LOCAL, SCOPES)
        app.state.locked = True  # for good: a server whose last token was revoked is not open again
    token = said(request.headers.get("authorization", ""), request.scope["path"])
    found = await to_thread.run_sync(find, store, token)
    if found is None:
        raise Refused(401, NOT_KNOWN)
    scopes = frozenset(found.scopes.split())
    if "admin" in scopes:
        scopes = SCOPES
    if scope not in scopes:
        raise Refused(403, f"the token may {' and '.join(sorted(scopes))}; this needs one that may {scope}")
    return Who(found.id, scopes)


def find(store: Store, token: str) -> Token | None:
    """The good token of a text. The database compares digests, whose timing tells nothing of the token."""
    if not TOKEN.fullmatch(token):
        return None
    found = store.find_token(digest(token))
    return found if found and hmac.compare_digest(found.hash, digest(token)) else None


def everyone_is_local(config: Config, store: Store) -> bool:
    """Whether no token is asked for: only this machine can come in, and no token was ever made."""
    return not needs_token(config) and not store.tokens()


def needs_token(config: Config) -> bool:
    """Whether others than this machine can come in: by the address, or by a name that a proxy passes on."""
    return config.token_required or not config.local or any(place.host not in NAMES for place in places(config))


def check_start(config: Config, store: Store) -> None:
    """Refuse to start where strangers could come in, or nobody."""
    if not needs_token(config):
        return
    now = time.time()
    if not any(t.revoked is None and (t.expires is None or t.expires > now) for t in store.tokens()):
        why = "is told to ask for one" if config.local and config.token_required else "can be reached from elsewhere"
        raise BadInput(f"a server on {config.host} that {why} needs a token; `limner serve token add NAME` makes one")


def without_words(wishes: Mapping[str, Any], prompts: bool = False) -> str:
    """What the audit log tells of a job: its wishes as JSON, without what somebody wrote unless `prompts`."""
    kept = {name: value for name, value in wishes.items() if prompts or name not in WORDS}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

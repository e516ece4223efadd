"""The tables: what a job, a picture, an upload, a token are as rows, in SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import sqlalchemy as sa
from sqlalchemy import Text

State = Literal["queued", "running", "done", "failed", "cancelled"]


def new_id(mark: str) -> str:
    """j_ for a job, p_ for a picture, u_ for an upload, t_ for a token, and 64 random bits."""
    return f"{mark}_{secrets.token_hex(8)}"


@dataclass(frozen=True)
class Job:
    """What somebody wished for, and how far it is."""

    id: str
    owner: str
    key: str | None  # jobs of one key may be painted together; None: alone
    wishes: dict[str, Any]
    count: int  # pictures
    steps: int
    place: float  # among its owner's
    created: float  # seconds since 1970, as all times here
    state: State = "queued"
    started: float | None = None  # when it was last claimed
    finished: float | None = None
    attempt: int = 0  # claims so far; the fencing token
    returned: int = 0  # of which were given back in peace
    worker: str = ""
    lease: float = 0.0  # until when the worker holds it; 0 while it waits, so that anybody may claim it
    steps_done: int = 0
    error: str = ""


@dataclass(frozen=True)
class NewPicture:
    """A picture whose file is in its place, to become a row."""

    number: int  # in its job, from 0
    sha256: str
    bytes: int
    width: int
    height: int
    prompt: str
    seed: int
    recipe: dict[str, Any]
    kind: str = "image/png"
    id: str = field(default_factory=lambda: new_id("p"))


@dataclass(frozen=True)
class Picture:
    """A picture that is kept."""

    id: str
    job: str
    number: int
    owner: str
    sha256: str
    bytes: int
    width: int
    height: int
    kind: str
    prompt: str
    seed: int
    recipe: dict[str, Any]
    created: float
    deleted: float | None  # when; until it is purged it can be restored


@dataclass(frozen=True)
class Upload:
    """A picture that somebody brought."""

    id: str
    owner: str
    sha256: str
    bytes: int
    kind: str
    created: float


@dataclass(frozen=True)
class Token:
    """Who may come in. The token itself is known to its bearer alone."""

    id: str
    name: str
    hash: str  # SHA-256 of the token
    scopes: str  # "paint read admin"
    expires: float | None
    created: float
    used: float | None  # to the minute
    revoked: float | None


@dataclass(frozen=True)
class Audit:
    """Who did what, when."""

    at: float
    who: str
    what: str
    target: str
    detail: str


class Words(sa.TypeDecorator[str]):
    """Text, less what no database holds: NUL, and halves of surrogate pairs."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _: Any) -> str | None:
        return value if value is None else plain(value)


class Json(sa.TypeDecorator[Any]):
    """A value as JSON in a column of text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _: Any) -> str:
        return json.dumps(value)

    def process_result_value(self, value: Any, _: Any) -> Any:
        return json.loads(value)


TYPES: dict[Any, type[sa.types.TypeEngine[Any]]] = {
    int: sa.BigInteger,
    float: sa.Double,
    dict[str, Any]: Json,
}  # else Words
tables = sa.MetaData()


def _table(table: str, kind: type, *more: sa.Column[Any] | sa.Index | sa.UniqueConstraint) -> sa.Table:
    """A table whose rows are a dataclass: a column a field, which may be empty where the field may be None."""
    columns = []
    for name, hint in get_type_hints(kind).items():
        empty = type(None) in get_args(hint)
        plain = next(part for part in get_args(hint) if part is not type(None)) if empty else hint
        columns.append(sa.Column(name, TYPES.get(plain, Words)(), primary_key=name == "id", nullable=empty))
    return sa.Table(table, tables, *columns, *more)


jobs_ = _table(
    "jobs",
    Job,
    sa.Index("jobs_state", "state", "owner"),
    sa.Index("jobs_place", "owner", "place"),
    sa.Index("jobs_served", "owner", "started"),
    sa.Index("jobs_created", "owner", "created"),
    sa.Index("jobs_newest", "created"),
)
pictures_ = _table(
    "pictures",
    Picture,
    sa.Column("words", Words, nullable=False),  # the prompt as it is searched
    sa.UniqueConstraint("job", "number"),
    sa.Index("pictures_created", "owner", "created"),
    sa.Index("pictures_newest", "created"),
    sa.Index("pictures_sha256", "sha256"),
)
uploads_ = _table("uploads", Upload, sa.Index("uploads_sha256", "sha256"))
tokens_ = _table("tokens", Token, sa.UniqueConstraint("hash"))
audit_ = _table("audit", Audit, sa.Index("audit_at", "at"))
meta_ = sa.Table("meta", tables, sa.Column("name", Words, primary_key=True), sa.Column("value", Words, nullable=False))


def plain(text: str) -> str:
    """Text that every database holds: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()

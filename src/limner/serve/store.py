"""What the server remembers: jobs, pictures, uploads, tokens; in SQLite or, by the same statements, in PostgreSQL.

The promise: a job that `add_job` returned runs at least once and finishes exactly once. A worker holds a job by a
lease, and the attempt is its fencing token (Kleppmann, How to do distributed locking, 2016): who lost it cannot finish.
Every method is one transaction, on the disk when it returns; what cannot be written is `NotSaved`, and nothing of it
is kept.
"""

from __future__ import annotations

import math
import re
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row, Text
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError

from limner.errors import BadInput, NotSaved
from limner.serve.tables import (
    Audit,
    Job,
    NewPicture,
    Picture,
    State,
    Token,
    Upload,
    audit_,
    jobs_,
    meta_,
    new_id,
    pictures_,
    plain,
    tables,
    tokens_,
    uploads_,
)

SCHEMA = 1  # of the tables
ATTEMPTS = 5  # runs that may die under a job before it is given up
BUSY = 30  # seconds that a statement waits for another process's
WAL_IS_SOUND = (3, 51, 3)  # older SQLite can corrupt a database whose write-ahead log is reset while it is read
USED = 60  # seconds between two notes of when a token was used, so that not every request is a write
UPLOAD = re.compile(r"upload:(u_[0-9a-f]{16})")  # in the wishes of a job
LOCK = 0x6C696D6E  # PostgreSQL's advisory lock of this schema: "limn"


j, p = jobs_.c, pictures_.c
OPEN = j.state.in_(("queued", "running")) & (j.lease < sa.bindparam("now"))  # what may be claimed
LINE = sa.select(j.id, j.owner, j.key, j.count.label("size"), j.created, (j.attempt > j.returned).label("died"))
LINE = LINE.where(OPEN).order_by(j.place, j.id)
_owners, _theirs = sa.select(j.owner).where(OPEN).distinct().subquery(), jobs_.alias()
_last = sa.select(sa.func.max(_theirs.c.started)).where(_theirs.c.owner == _owners.c.owner).scalar_subquery()
SERVED = sa.select(_owners.c.owner, _last)  # when each of those who wait was served last


class Store:
    """The tables of one database; any number of threads, processes and servers may hold it at once."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        """`url` is sqlite:///path, a plain path, or postgresql://user@host/name; `clock` is for tests."""
        self.engine = _engine(url)
        self.lite = self.engine.dialect.name == "sqlite"
        self._clock = clock or (time.time if self.lite else None)  # None: the database's, which its servers share
        self._turn: AbstractContextManager[Any] = threading.Lock() if self.lite else nullcontext()
        with self._write(alone=True) as c:
            tables.create_all(c)
            c.execute(_insert_if_new(self.lite, name="schema", value=str(SCHEMA)))
            found = int(c.scalars(sa.select(meta_.c.value).where(meta_.c.name == "schema")).one())
        if found > SCHEMA:
            raise BadInput(f"{self.name} is a database of version {found}; this Limner knows up to {SCHEMA}")

    @property
    def name(self) -> str:
        """The database as a person may see it, without a password."""
        return self.engine.url.database or "" if self.lite else self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self.engine.dispose()

    # jobs

    def add_job(self, owner: str, wishes: Mapping[str, Any], count: int, key: str | None, steps: int) -> Job:
        """Accept a job at the end of its owner's queue; it is on the disk when this returns."""
        with self._write() as c:
            last = c.scalar(sa.select(sa.func.max(j.place)).where(j.owner == owner)) or 0.0
            job = Job(new_id("j"), owner, key, dict(wishes), count, steps, last + 1, self._now(c))
            c.execute(jobs_.insert().values(**vars(job)))
        return job

    def job(self, id: str) -> Job | None:
        with self._read() as c:
            row = c.execute(sa.select(jobs_).where(j.id == id)).one_or_none()
        return Job(**row._mapping) if row else None

    def jobs(
        self, owner: str | None = None, states: Iterable[State] = (), limit: int = 50, before: str | None = None
    ) -> list[Job]:
        """The newest first; owner None: everybody's; no states: all; `before` is the last id of the page before."""
        query = sa.select(jobs_) if owner is None else sa.select(jobs_).where(j.owner == owner)
        wanted = list(states)
        query = query.where(j.state.in_(wanted)) if wanted else query
        with self._read() as c:
            rows = _page(c, query, jobs_, ["created", "place", "id"], before, limit)
        return [Job(**row._mapping) for row in rows]

    def queue_length(self, owner: str | None = None) -> int:
        """Jobs that wait, of one owner or of all."""
        query = sa.select(sa.func.count()).select_from(jobs_).where(j.state == "queued")
        with self._read() as c:
            return c.scalar(query if owner is None else query.where(j.owner == owner)) or 0

    def ahead(self) -> dict[str, int]:
        """For each job that waits: how many run or come before it, if nobody else comes and each runs alone."""
        with self._read() as c:
            now = self._now(c)
            held = sa.select(sa.func.count()).select_from(jobs_).where(j.state == "running", j.lease >= now)
            running = c.scalar(held) or 0
            return {row.id: i for i, row in enumerate(self._line(c, now), running)}

    def cancel(self, id: str, owner: str | None = None) -> bool:
        """Stop a job that is not over; a worker that paints it sees so at its next step. owner None: anybody's."""
        mine = j.state.in_(("queued", "running")) & (j.id == id)
        with self._write() as c:
            over = {"state": "cancelled", "finished": self._now(c), "lease": 0.0}
            return _changed(
                c, jobs_.update().where(mine if owner is None else mine & (j.owner == owner)).values(**over)
            )

    def move(self, id: str, owner: str, before: str | None) -> bool:
        """Put a waiting job before another of the same owner, or last; False where one of the two waits no more."""
        with self._write(alone=True) as c:
            query = sa.select(j.id, j.place).where(j.owner == owner, j.state == "queued").order_by(j.place, j.id)
            rows = c.execute(query).all()
            order = [row.id for row in rows if row.id != id]
            if len(order) == len(rows) or (before is not None and before not in order):
                return False
            order.insert(len(order) if before is None else order.index(before), id)
            place = -math.inf
            for job, row in zip(order, rows, strict=True):  # the same places, dealt out anew; no two the same
                place = max(row.place, math.nextafter(place, math.inf))
                c.execute(jobs_.update().where(j.id == job, j.place != place).values(place=place))
            return True

    # what workers do

    def claim(self, worker: str, lease: float, most: int = 8) -> list[Job]:
        """The next job by fair turns, and others of its key with it, up to `most` pictures; [] where nobody waits.

        Owners take turns, the one served longest ago first; inside an owner it goes by place. A job whose lease has run
        out is claimed anew, and alone, so that what killed its worker kills nobody beside it; the fifth time it fails.
        """
        with self._write(alone=True) as c:
            now = self._now(c)
            gone = f"its worker died {ATTEMPTS} times at it, so it is not tried again"
            worn = {"state": "failed", "error": gone, "finished": now, "lease": 0.0}
            c.execute(jobs_.update().where(OPEN, j.attempt - j.returned >= ATTEMPTS).values(**worn), {"now": now})
            chosen = _together(self._line(c, now), most)
            # a row that somebody else holds just now is being cancelled, finished or renewed
            free = sa.select(j.id).where(j.id.in_(chosen), OPEN).with_for_update(skip_locked=True)
            held = set(c.scalars(free, {"now": now}))
            mine = {"state": "running", "worker": worker, "lease": now + lease, "started": now, "steps_done": 0}
            c.execute(jobs_.update().where(j.id.in_(held)).values(attempt=j.attempt + 1, error="", **mine))
            rows = {row.id: row for row in c.execute(sa.select(jobs_).where(j.id.in_(held)))}
            return [Job(**rows[id]._mapping) for id in chosen if id in rows]

    def renew(self, worker: str, held: Sequence[tuple[str, int]], lease: float) -> list[str]:
        """Hold on to jobs, each told by id and attempt; a cancelled or stolen one is missing from what returns."""
        ours = sa.tuple_(j.id, j.attempt).in_(list(held)) & (j.state == "running") & (j.worker == worker)
        with self._write() as c:
            c.execute(jobs_.update().where(ours).values(lease=self._now(c) + lease))
            return list(c.scalars(sa.select(j.id).where(ours)))

    def give_back(self, worker: str, died: bool = False) -> list[str]:
        """Put what a worker holds back into the queue at once: it stops, or it died, which counts against its jobs."""
        ours = (j.worker == worker) & (j.state == "running")
        with self._write() as c:
            ids = list(c.scalars(sa.select(j.id).where(ours).with_for_update()))
            free = {"state": "queued", "lease": 0.0, "steps_done": 0, "returned": j.returned + (0 if died else 1)}
            c.execute(jobs_.update().where(j.id.in_(ids)).values(**free))
            return ids

    def progress(self, id: str, attempt: int, steps_done: int) -> bool:
        """Note how far a job is; each note is a commit, so once a second is enough. False: it is no longer ours."""
        with self._write() as c:
            return _changed(c, jobs_.update().where(*_running(id, attempt)).values(steps_done=steps_done))

    def finish(self, id: str, attempt: int, worker: str, pictures: Sequence[NewPicture]) -> bool:
        """The pictures' rows and the job's end in one commit; False, and nothing, where the job is no longer ours."""
        with self._write() as c:
            now = self._now(c)
            over = {"state": "done", "finished": now, "steps_done": j.steps, "lease": 0.0}
            if not _changed(c, jobs_.update().where(*_running(id, attempt, worker)).values(**over)):
                return False
            owner = c.scalars(sa.select(j.owner).where(j.id == id)).one()
            rows = [_row(picture) | {"job": id, "owner": owner, "created": now} for picture in pictures]
            if rows:
                c.execute(pictures_.insert(), rows)
            return True

    def fail(self, id: str, attempt: int, worker: str, error: str) -> bool:
        """End a job by a sentence; False where it is no longer ours."""
        with self._write() as c:
            over = {"state": "failed", "error": error, "finished": self._now(c), "lease": 0.0}
            return _changed(c, jobs_.update().where(*_running(id, attempt, worker)).values(**over))

    # pictures and uploads

    def pictures(
        self,
        owner: str | None = None,
        query: str = "",
        limit: int = 50,
        before: str | None = None,
        deleted: bool = False,
    ) -> list[Picture]:
        """The newest first; each word of the query must occur in the prompt; `deleted`: those that can be restored."""
        rows = sa.select(pictures_).where(p.deleted.is_not(None) if deleted else p.deleted.is_(None))
        rows = rows if owner is None else rows.where(p.owner == owner)
        for word in _fold(query).split():
            rows = rows.where(p.words.contains(word, autoescape=True))
        with self._read() as c:
            page = _page(c, rows, pictures_, ["created", "number", "id"], before, limit)
        return [_picture(row) for row in page]

    def pictures_of(self, jobs: Iterable[str]) -> dict[str, list[Picture]]:
        """The pictures of jobs, by their number, without those deleted."""
        found: dict[str, list[Picture]] = {job: [] for job in jobs}
        rows = sa.select(pictures_).where(p.job.in_(list(found)), p.deleted.is_(None)).order_by(p.number)
        with self._read() as c:
            for row in c.execute(rows):
                found[row.job].append(_picture(row))
        return found

    def picture(self, id: str) -> Picture | None:
        """Also one that is deleted, until it is purged."""
        with self._read() as c:
            row = c.execute(sa.select(pictures_).where(p.id == id)).one_or_none()
        return _picture(row) if row else None

    def delete(self, id: str, owner: str | None = None) -> bool:
        return self._bin(id, owner, p.deleted.is_(None), lambda now: now)

    def restore(self, id: str, owner: str | None = None) -> bool:
        return self._bin(id, owner, p.deleted.is_not(None), lambda _: None)

    def _bin(self, id: str, owner: str | None, now_in: sa.ColumnElement[bool], to: Callable[[float], Any]) -> bool:
        here = (p.id == id) & now_in
        with self._write() as c:
            change = pictures_.update().where(here if owner is None else here & (p.owner == owner))
            return _changed(c, change.values(deleted=to(self._now(c))))

    def purge(self, older_than: float) -> list[str]:
        """Forget what nobody sees since a time: pictures that were deleted, then jobs that ended and have no picture
        (with the words in them), then uploads that no job names. Returns the digests that no row names any more.
        """
        u = uploads_.c
        binned = p.deleted.is_not(None) & (p.deleted < older_than)
        over = j.state.in_(("done", "failed", "cancelled")) & (j.finished < older_than)
        with self._write() as c:
            before = _digests(c)
            c.execute(pictures_.delete().where(binned))
            c.execute(jobs_.delete().where(over & ~sa.exists().where(p.job == j.id)))
            wishes = sa.type_coerce(j.wishes, Text)
            told = c.scalars(sa.select(wishes).where(wishes.contains("upload:")))
            named = {id for one in told for id in UPLOAD.findall(one)}
            if old := set(c.scalars(sa.select(u.id).where(u.created < older_than))) - named:
                c.execute(uploads_.delete().where(u.id == sa.bindparam("old")), [{"old": id} for id in old])
            return sorted(before - _digests(c))

    def digests(self) -> set[str]:
        """Every file that a row names: what a sweep must keep."""
        with self._read() as c:
            return _digests(c)

    def add_upload(self, owner: str, sha256: str, bytes: int, kind: str) -> Upload:
        with self._write() as c:
            upload = Upload(new_id("u"), owner, sha256, bytes, kind, self._now(c))
            c.execute(uploads_.insert().values(**vars(upload)))
        return upload

    def upload(self, id: str) -> Upload | None:
        with self._read() as c:
            row = c.execute(sa.select(uploads_).where(uploads_.c.id == id)).one_or_none()
        return Upload(**row._mapping) if row else None

    # tokens, the audit log, and what else is remembered

    def add_token(self, name: str, hash: str, scopes: str, expires: float | None = None) -> Token:
        with self._write() as c:
            token = Token(new_id("t"), name, hash, scopes, expires, self._now(c), None, None)
            c.execute(tokens_.insert().values(**vars(token)))
        return token

    def find_token(self, hash: str) -> Token | None:
        """The token of a digest, where it is neither revoked nor expired; notes, now and then, that it was used."""
        t = tokens_.c
        with self._read() as c:
            now = self._now(c)
            row = c.execute(sa.select(tokens_).where(t.hash == hash, t.revoked.is_(None))).one_or_none()
        if row is None or (row.expires is not None and row.expires <= now):
            return None
        if row.used is None or now - row.used >= USED:
            with self._write() as c:
                c.execute(tokens_.update().where(t.id == row.id).values(used=now))
        return Token(**row._mapping)

    def revoke(self, id: str) -> bool:
        with self._write() as c:
            good = (tokens_.c.id == id) & tokens_.c.revoked.is_(None)
            return _changed(c, tokens_.update().where(good).values(revoked=self._now(c)))

    def tokens(self) -> list[Token]:
        """All that ever were, the oldest first."""
        with self._read() as c:
            rows = c.execute(sa.select(tokens_).order_by(tokens_.c.created, tokens_.c.id))
            return [Token(**row._mapping) for row in rows]

    def audit(self, who: str, what: str, target: str = "", detail: str = "") -> None:
        with self._write() as c:
            c.execute(audit_.insert().values(at=self._now(c), who=who, what=what, target=target, detail=detail))

    def audits(self, limit: int = 100) -> list[Audit]:
        """The newest first."""
        with self._read() as c:
            rows = c.execute(sa.select(audit_).order_by(audit_.c.at.desc()).limit(limit))
            return [Audit(**row._mapping) for row in rows]

    def meta(self, name: str) -> str | None:
        with self._read() as c:
            return c.scalar(sa.select(meta_.c.value).where(meta_.c.name == name))

    def set_meta(self, name: str, value: str) -> None:
        with self._write() as c:
            if not _changed(c, meta_.update().where(meta_.c.name == name).values(value=value)):
                c.execute(_insert_if_new(self.lite, name=name, value=value))

    # within

    @contextmanager
    def _write(self, alone: bool = False) -> Iterator[Connection]:
        """One transaction that writes. SQLite has one writer anyway; `alone` makes it so on PostgreSQL too."""
        with self._turn, _said(self), self.engine.begin() as c:
            if alone and not self.lite:
                c.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield c

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with _said(self), self.engine.connect().execution_options(limner_reads=True) as c:
            yield c

    def _now(self, c: Connection) -> float:
        if self._clock:
            return self._clock()
        return float(c.scalars(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))).one())

    def _line(self, c: Connection, now: float) -> list[Row[Any]]:
        """The jobs that may be claimed, in the order in which one worker would take them one by one."""
        queues: dict[str, list[Row[Any]]] = {}
        for row in c.execute(LINE, {"now": now}):
            queues.setdefault(row.owner, []).append(row)
        served = {owner: at or 0.0 for owner, at in c.execute(SERVED, {"now": now})}

        def turn(owner: str) -> tuple[float, float]:
            return served.get(owner, 0.0), min(row.created for row in queues[owner])

        rounds = zip_longest(*(queues[owner] for owner in sorted(queues, key=turn)))
        return [row for round_ in rounds for row in round_ if row is not None]


def _engine(url: str) -> sa.Engine:
    try:
        address = sa.make_url(url if "://" in url else f"sqlite:///{url}")
    except ArgumentError as error:
        raise BadInput(f"{url!r} is no address of a database: sqlite:///path or postgresql://user@host/name") from error
    kind = address.drivername.partition("+")[0]
    if kind == "sqlite" and address.database:
        _own_file(Path(address.database))
        engine = sa.create_engine(address, connect_args={"timeout": BUSY}, pool_size=8, max_overflow=56)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if kind in ("postgresql", "postgres"):
        if find_spec("psycopg") is None:
            raise BadInput("PostgreSQL is spoken to by psycopg, which is not here: pip install 'psycopg[binary]'")
        address = address.set(drivername="postgresql+psycopg")
        return sa.create_engine(address, pool_pre_ping=True, pool_size=8, max_overflow=24)
    raise BadInput(f"{url!r} is no database that jobs can be kept in: there are sqlite:///path and postgresql://...")


def _own_file(path: Path) -> None:
    """A database that only its owner reads: it holds what people wished for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        raise NotSaved(f"{path} could not be made: {error.strerror or error}") from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """A commit is on the disk when it returns: EXTRA syncs the folder too, from which the journal was removed."""
    connection.isolation_level = None  # transactions begin where we say so
    sound = sqlite3.sqlite_version_info >= WAL_IS_SOUND
    connection.execute(f"PRAGMA journal_mode={'WAL' if sound else 'DELETE'}")
    connection.execute("PRAGMA synchronous=EXTRA")


def _begin_sqlite(c: Connection) -> None:
    """A writer takes the lock at once: one that reads first and writes later can be turned away in the middle."""
    c.exec_driver_sql("BEGIN" if c.get_execution_options().get("limner_reads") else "BEGIN IMMEDIATE")


@contextmanager
def _said(store: Store) -> Iterator[None]:
    """What a database says, in one sentence of ours."""
    try:
        yield
    except (DBAPIError, TimeoutError) as error:  # the latter: every connection is busy
        said = (str(getattr(error, "orig", error)).strip().splitlines() or [type(error).__name__])[0]
        raise NotSaved(f"{store.name} cannot be used: {said}; nothing was changed") from error


def _insert_if_new(lite: bool, **row: str) -> sa.Insert:
    if lite:
        return meta_.insert().prefix_with("OR IGNORE").values(**row)
    from sqlalchemy.dialects.postgresql import insert

    return insert(meta_).values(**row).on_conflict_do_nothing()


def _together(line: list[Row[Any]], most: int) -> list[str]:
    """The first in the line, and those behind it that may be painted with it."""
    if not line:
        return []
    first, chosen, room = line[0], [line[0].id], most - line[0].size
    for row in line[1:] if first.key is not None and not first.died else []:
        if row.key == first.key and not row.died and row.size <= room:
            chosen.append(row.id)
            room -= row.size
    return chosen


def _page(
    c: Connection, query: sa.Select[Any], table: sa.Table, order: list[str], before: str | None, limit: int
) -> Sequence[Row[Any]]:
    """The rows after a row, the newest first; after a row that is not there comes nothing."""
    columns = [table.c[name] for name in order]
    if before is not None:
        mark = c.execute(sa.select(*columns).where(table.c.id == before)).one_or_none()
        query = query.where(sa.tuple_(*columns) < tuple(mark)) if mark else query.where(sa.false())
    return c.execute(query.order_by(*(column.desc() for column in columns)).limit(limit)).all()


def _running(id: str, attempt: int, worker: str | None = None) -> list[sa.ColumnElement[bool]]:
    ours = [j.id == id, j.attempt == attempt, j.state == "running"]
    return ours if worker is None else [*ours, j.worker == worker]


def _changed(c: Connection, change: sa.Update) -> bool:
    return c.execute(change).rowcount > 0


def _digests(c: Connection) -> set[str]:
    return set(c.scalars(sa.union(sa.select(p.sha256), sa.select(uploads_.c.sha256))))


def _picture(row: Row[Any]) -> Picture:
    return Picture(**{name: value for name, value in row._mapping.items() if name != "words"})


def _row(picture: NewPicture) -> dict[str, Any]:
    return vars(picture) | {"words": _fold(picture.prompt), "deleted": None}


def _fold(text: str) -> str:
    """Text as it is searched: capitals, accents' encodings and widths do not matter."""
    return unicodedata.normalize("NFKC", plain(text)).casefold()

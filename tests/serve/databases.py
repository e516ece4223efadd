"""The databases that the server's tests run on: a SQLite file, and a real PostgreSQL where its programs are found."""

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa

from limner.serve import store as module
from limner.serve.store import Store

KINDS = ("sqlite", "postgresql")


def url_of(kind: str, folder: Path) -> str:
    """The address of an empty database; the test is skipped, in words, where there is none of its kind."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'limner.db'}"
    url = postgres()
    if not url.startswith("postgresql://"):
        pytest.skip(url)
    emptied(Store(url)).close()
    return url


def emptied(store: Store) -> Store:
    with store.engine.begin() as c:
        for table in module.tables.sorted_tables:
            if table.name != "meta":
                c.execute(table.delete())
    return store


def hasty(store: Store) -> Store:
    """A SQLite that syncs nothing, for tests in which no power fails."""
    if store.lite:
        sa.event.listen(store.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        store.engine.dispose()
    return store


@cache
def postgres() -> str:
    """The address of a server of this run's own, on a socket in a folder; else why there is none."""
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if found is None:
        return "no PostgreSQL here: apt-get install postgresql brings initdb"
    programs = Path(found).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="limner-pg-", dir="/tmp"))  # a socket's path is at most 107 letters
    who: dict[str, object] = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.getuid() == 0:  # which it refuses to run as
        person = pwd.getpwnam("nobody")
        os.chown(folder, person.pw_uid, person.pw_gid)
        who |= {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
    data, control = folder / "data", programs / "pg_ctl"
    make = [found, "-D", data, "-U", "limner", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=40 -c shared_buffers=16MB"
    subprocess.run(make, check=True, **who)  # type: ignore[call-overload]
    subprocess.run([control, "-D", data, "-w", "-o", options, "start"], check=True, **who)  # type: ignore[call-overload]

    def stop() -> None:
        subprocess.run([control, "-D", data, "-m", "immediate", "stop"], check=False, **who)  # type: ignore[call-overload]
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return f"postgresql://limner@/postgres?host={folder}"

"""`limner serve`: a page and an API for this machine, or with tokens for a team."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from limner.cli.making import flag
from limner.cli.say import as_json, plain, rows
from limner.errors import BadInput

if TYPE_CHECKING:
    from limner.serve.config import Config
    from limner.serve.store import Store
    from limner.serve.tables import Token

app = App(name="serve", help="Serve a page that paints, and an API.")
token = App(name="token", help="Who may come in: add, list and revoke tokens.")
app.command(token)

Folder = Annotated[
    Path | None, flag("Where jobs and pictures are kept; without it, in Limner's data folder.", "--folder")
]
Database = Annotated[str, flag("A URL of a database, as postgresql://user@host/name; else a file there.", "--database")]
MISSING = "`limner serve` needs packages that are not here: pip install 'limner[serve]'"


@app.default
def serve(
    *,
    host: Annotated[
        str, flag("The address to listen on; others than the loopback's need a token.", "--host")
    ] = "127.0.0.1",
    port: Annotated[int, flag("The port; 0 for a free one.", "--port")] = 7860,
    folder: Folder = None,
    database: Database = "",
    model: Annotated[str, flag("The model that paints where a job names none.", "--model", "-m")] = "mini",
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], flag("Where to paint.", "--device")] = "auto",
    keep: Annotated[
        Literal["all", "one", "layer"], flag("In memory: all networks, one at a time, or one layer.", "--keep")
    ] = "all",
    workers: Annotated[int, flag("Processes that paint.", "--workers")] = 1,
    cache_models: Annotated[int, flag("Models that each keeps loaded.", "--cache-models")] = 1,
    token_required: Annotated[bool, flag("Ask for a token on this machine, too.", "--token-required")] = False,
    allow_host: Annotated[
        list[str] | None, flag("A name that it is reached by; repeat at will.", "--allow-host")
    ] = None,
    allow_paths: Annotated[bool, flag("Let jobs name models by paths on this machine.", "--allow-paths")] = False,
    max_queue: Annotated[int, flag("Jobs of one owner that may wait.", "--max-queue")] = 100,
    max_queue_all: Annotated[int, flag("Jobs of everybody that may wait.", "--max-queue-all")] = 1000,
    memory: Annotated[float, flag("GB that a job may need by its estimate; 0: what is there.", "--memory")] = 0.0,
    audit_prompts: Annotated[bool, flag("Let the audit log keep the words of jobs.", "--audit-prompts")] = False,
    open_page: Annotated[bool, flag("Open the page in a browser.", "--open")] = False,
    verbose: Annotated[bool, flag("Log each request, and what workers say.", "--verbose")] = False,
) -> None:
    """Serve a page that paints, and an API: limner serve

    The address is printed at once; the page takes jobs while the model is loading. Jobs and pictures are kept across
    restarts. Ctrl-C stops it; a job that was running begins anew next time.
    """
    for name, value in (("workers", workers), ("cache-models", cache_models), ("max-queue", max_queue)):
        if value < 1:
            raise BadInput(f"--{name} should be 1 or more, not {value}")
    if not memory >= 0:
        raise BadInput(f"--memory should be 0 or more, not {memory}")
    config = replace(
        _config(folder, database),
        host=host,
        port=port,
        hosts=tuple(allow_host or ()),
        token_required=token_required,
        max_queue=max_queue,
        max_queue_all=max(max_queue, max_queue_all),
        memory=int(memory * 1e9),
        model=_known(model),
        device=device,
        keep=keep,
        workers=workers,
        cache_models=cache_models,
        allow_paths=allow_paths,
        audit_prompts=audit_prompts,
    )
    _run(config, open_page, verbose)


def _config(folder: Path | None, database: str) -> Config:
    from limner.serve.config import Config

    return Config(folder=folder.expanduser(), database=database) if folder else Config(database=database)


def _known(model: str) -> str:
    """A path is told to the workers as a whole one: they may be elsewhere. A name that ships is no path."""
    from limner.recipe import SHIPPED

    path = Path(model).expanduser()
    return str(path.resolve()) if model not in SHIPPED and path.exists() else model


def _run(config: Config, open_page: bool, verbose: bool) -> None:
    try:
        from limner.serve.run import address, run
    except ModuleNotFoundError as error:
        raise BadInput(f"{MISSING} ({error.name})") from error

    def begun(config: Config, _: object) -> None:
        print(f"Limner is at {address(config)}", flush=True)
        if sys.stderr.isatty():
            print("Ctrl-C stops it.", file=sys.stderr)
        if open_page:
            import webbrowser

            webbrowser.open(address(config))

    run(config, begun, verbose)


@token.command
def add(
    name: Annotated[str, Parameter(help="Whose it is; the list and the audit log tell it.")],
    *,
    scopes: Annotated[str, flag("What it may: paint, read, admin, with commas.", "--scopes")] = "paint,read",
    expires: Annotated[str, flag("When it ends, as 30d or 12h; without it, never.", "--expires")] = "",
    folder: Folder = None,
    database: Database = "",
) -> None:
    """Make a token and print it, once: limner serve token add anna"""
    from limner.serve.tokens import add as make

    with _Opened(folder, database) as store:
        text, made = make(store, name, scopes, _days(expires))
        store.audit("operator", "token add", made.id, made.scopes)
    print(text, flush=True)
    print(f"{made.id} of {plain(made.name)}; only its digest is kept, so it is not shown again", file=sys.stderr)


@token.command(name="list")
def list_tokens(
    *,
    json: Annotated[bool, flag("Print a line of JSON for each.", "--json")] = False,
    folder: Folder = None,
    database: Database = "",
) -> None:
    """Every token that ever was, without its text."""
    with _Opened(folder, database) as store:
        found = store.tokens()
    if json:
        for one in found:
            as_json({name: value for name, value in vars(one).items() if name != "hash"})
    else:
        rows([[one.id, _state(one), one.scopes, plain(one.name)] for one in found])


@token.command
def revoke(
    id: Annotated[str, Parameter(help="The id that the list tells, or the name where one alone has it.")],
    *,
    folder: Folder = None,
    database: Database = "",
) -> None:
    """End a token at once."""
    with _Opened(folder, database) as store:
        found = [one for one in store.tokens() if one.revoked is None and id in (one.id, one.name)]
        if len(found) != 1:
            raise BadInput(f"{'no token is' if not found else f'{len(found)} tokens are'} called {id!r}; say its id")
        store.revoke(found[0].id)
        store.audit("operator", "token revoke", found[0].id)
    print(f"{found[0].id} of {plain(found[0].name)} is revoked")


class _Opened:
    """The database of a server, which may be running meanwhile."""

    def __init__(self, folder: Path | None, database: str) -> None:
        self._config = _config(folder, database)

    def __enter__(self) -> Store:
        from limner.serve.store import Store

        self._store = Store(self._config.url)
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


def _days(text: str) -> float | None:
    """Days of "30d", "12h", "90m" or "2w"."""
    if not text:
        return None
    units = {"m": 1 / 1440, "h": 1 / 24, "d": 1.0, "w": 7.0}
    try:
        return float(text[:-1]) * units[text[-1]]
    except (ValueError, KeyError):
        raise BadInput(f"--expires should look like 90m, 12h, 30d or 2w, not {text!r}") from None


def _state(one: Token) -> str:
    import time

    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.expires)) if one.expires else ""
    if one.revoked:
        return "revoked"
    if one.expires and one.expires <= time.time():
        return f"expired {day}"
    return f"until {day}" if day else "for good"

"""How commands print: aligned rows, one line of JSON, and nothing that could steer the terminal."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

STDIN = "\0stdin"  # stands for a lone dash, which the parser would take for a flag


def plain(text: str) -> str:
    """Words of a stranger's file without control characters: "\\x1b[2J" is shown and clears no screen."""
    return "".join(mark if mark == "\n" or mark.isprintable() else repr(mark)[1:-1] for mark in text)


def rows(table: Sequence[Sequence[str]], indent: str = "") -> None:
    """Columns as wide as their widest cell, but for the last; an empty table prints nothing."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)] if table else []
    for row in table:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)]
        print(f"{indent}{'  '.join([*cells, row[-1]])}".rstrip())


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Gives what a loop calls now and then: it raises KeyboardInterrupt where Ctrl-C was pressed and came to nothing.

    Python drops an exception that is raised inside a finaliser or a callback, and with it somebody's wish to stop.
    """
    pressed = threading.Event()

    def note(*_: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def as_json(value: Any) -> None:
    print(json.dumps(value), flush=True)


def size(count: float) -> str:
    """Bytes as a person reads them: 1.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.{0 if unit == 'bytes' else 1}f} {unit}"

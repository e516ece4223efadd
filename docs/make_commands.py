"""Write docs/commands.md from the commands' own help: `python docs/make_commands.py`. A test compares the two."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
MODELS = ("list", "show", "add", "verify", "convert", "remove")
TRAIN = ("autoencoder", "text", "eye", "denoiser")


def page() -> str:
    from limner.cli import COMMANDS

    calls = [(), *((name,) for name in COMMANDS), *(("models", verb) for verb in MODELS)]
    calls += [("train", stage) for stage in TRAIN]
    calls += [("data", "pictograms")]
    parts = ["# Commands", "", "Made by `python docs/make_commands.py` from the commands' own help.", ""]
    for call in calls:
        line = " ".join(("limner", *call))
        parts += [f"## {line}", "", "```text", helped(call), "```", ""]
    return "\n".join(parts)


def helped(call: tuple[str, ...]) -> str:
    """What `limner CALL --help` prints on a terminal of 100 columns."""
    from limner.cli import main

    told, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(told):
            main([*call, "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return "\n".join(line.rstrip() for line in told.getvalue().strip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

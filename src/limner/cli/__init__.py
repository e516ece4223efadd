"""Floor 7: the command line. A command is a file that is imported when it is asked for, so help imports no torch."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnknownCommandError

from limner import __version__
from limner.cli.help import two_columns
from limner.cli.say import STDIN, plain
from limner.errors import LimnerError, UnknownName

COMMANDS = {  # name -> where it is, and what help says of it without looking there
    "paint": ("limner.cli.paint:paint", "Paint pictures from words."),
    "edit": ("limner.cli.edit:edit", "Change a picture by words."),
    "inpaint": ("limner.cli.edit:inpaint", "Paint a part of a picture anew."),
    "outpaint": ("limner.cli.edit:outpaint", "Paint on beyond a picture's borders."),
    "upscale": ("limner.cli.edit:upscale", "Make a picture larger and paint its details."),
    "vary": ("limner.cli.vary:vary", "Make variations of a picture."),
    "morph": ("limner.cli.vary:morph", "Paint the way from one prompt or seed to another."),
    "tile": ("limner.cli.tile:tile", "Paint a texture whose borders join."),
    "sheet": ("limner.cli.sheet:sheet", "Paint sprites onto one sheet."),
    "grid": ("limner.cli.grid:grid", "Lay settings against one another."),
    "campaign": ("limner.cli.campaign:campaign", "Paint every row of a table."),
    "cutout": ("limner.cli.cutout:cutout", "Make a picture's background transparent."),
    "match": ("limner.cli.match:match", "Score how well texts fit pictures."),
    "find": ("limner.cli.find:find", "Search a folder of pictures by words."),
    "show": ("limner.cli.show:show", "Print the recipe that a picture carries."),
    "describe": ("limner.cli.describe:describe", "Say in words what is in a picture."),
    "models": ("limner.cli.models:models", "List the models that are here."),
    "samplers": ("limner.cli.samplers:samplers", "List the samplers and the schedules."),
    "serve": ("limner.cli.serve:app", "Serve a page that paints, and an API."),
    "doctor": ("limner.cli.doctor:doctor", "Check this machine and what is installed."),
    "train": ("limner.cli.train:app", "Train the networks of a model on your own pictures."),
    "data": ("limner.cli.data:app", "Rebuild the pictures that the shipped model was trained on."),
    "evaluate": ("limner.cli.evaluate:evaluate", "Judge a model by numbers and by a sheet of pictures."),
}
OURS = Path(__file__).parents[1]
FAILED, STOPPED, UNREAD = 2, 130, 141  # exit statuses: an error in words, Ctrl-C, a reader that went away


def build(asked: str = "") -> App:
    """The commands; the one that is asked for speaks of itself, at length."""
    app = App(
        name="limner",
        help='Words to pictures, with a small model of our own: limner paint "a red apple"',
        version=__version__,
        version_flags=["--version"],
        help_formatter=two_columns,
        help_format="plaintext",
        default_parameter=Parameter(negative=()),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for number, (name, (where, help)) in enumerate(COMMANDS.items()):
        app.command(where, name=name, help=None if name == asked else help, sort_key=number)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every failure that a person can mend is one sentence on standard error and the status 2."""
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # on a busy machine waiting threads should soon give way
    argv = [STDIN if word == "-" else word for word in (sys.argv[1:] if argv is None else argv)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        with _plain_warnings():
            status = build(*argv[:1])(argv)
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (LimnerError, CycloptsError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        _drop_output()
        return UNREAD
    except OSError as error:  # what no command foresaw, such as a full disk under standard output
        _drop_output()
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _drop_output() -> None:
    """Python flushes standard output once more as it ends, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    if isinstance(error, UnknownCommandError) and error.app and error.unused_tokens:  # its own text imports them all
        error = UnknownName("command", error.unused_tokens[0], [name for name in error.app if name[0] != "-"])
    if isinstance(error, CycloptsError):
        return " ".join(str(error).split())
    return plain(str(error))


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """What the package warns of is said in one line; warnings of others stay as Python shows them."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if OURS in Path(filename).parents:
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            others(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=UserWarning, module=r"limner\.")
        warnings.showwarning = show
        yield

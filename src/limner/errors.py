"""What can go wrong, in one sentence each: what was found, what was expected, the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LimnerError(Exception):
    """The base of every error that a person can mend; the command line prints its sentence and exits with 2."""


class UnknownName(LimnerError, KeyError):
    """A name that no registry, family or config knows; a KeyError too, so that `in` and `get` of mappings work."""

    __str__ = Exception.__str__  # a KeyError would show the sentence in quotes

    def __init__(self, kind: str, found: str, choices: Iterable[str]) -> None:
        known = sorted(choices)
        super().__init__(f"no {kind} is called {found!r}: {nearest(found, known)}")


class BadInput(LimnerError):
    """A value that cannot be used: a size, a number, a picture."""


class BadWeights(LimnerError):
    """A weight file that is refused before use; the sentence names the file and, where it can, the tensor."""


class BadData(LimnerError):
    """A shard or a picture of a training set that cannot be read."""


class NotSaved(LimnerError):
    """A file that could not be written; nothing half-written is left behind."""


def nearest(found: str, known: list[str], show: int = 12) -> str:
    """The end of a sentence: the nearest names first, then the choices."""
    close = difflib.get_close_matches(found.lower(), known, n=3, cutoff=0.5)
    choices = ", ".join(known[:show]) + (f" and {len(known) - show} more" if len(known) > show else "")
    return (f"did you mean {' or '.join(close)}? " if close else "") + f"There are: {choices}."

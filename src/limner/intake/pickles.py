"""Pickled weights (.ckpt, .pt, .pth, .bin): refused in this process, converted in one that can do nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from limner.errors import BadInput, BadWeights, NotSaved
from limner.weights.io import read_header

CHILD = Path(__file__).with_name("pickle_child.py")
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment: what Python needs to start
PATIENCE = 60  # seconds that the other process gets for any file
SLOWEST = 2_000_000  # bytes a second; below it the other process is given up
MOST_SAID = 65_536  # bytes of its answer


@dataclass(frozen=True)
class Converted:
    path: Path
    tensors: int
    at: str  # the name in the old file that the weights stood under; "" for none
    beside: tuple[str, ...]  # what was left out: the optimizer, callbacks, numbers of the run


def convert_pickle(old: Path, new: Path) -> Converted:
    """The tensors of a pickle as safetensors, names and dtypes as they were; nothing of it is run.

    Reading happens in a process of its own (`pickle_child.py`), which gets two open files and has no other: it cannot
    open, import, start or connect to anything, and its memory and time are limited. This one reads the result alone.
    """
    if new.suffix != ".safetensors":
        raise BadInput(f"{new} should end in .safetensors, which is what a pickle is converted to")
    if new.exists():
        raise BadInput(f"{new} is there already, and nothing is written over it")
    partial = new.with_name(f".{new.name}.partial")
    try:
        new.parent.mkdir(parents=True, exist_ok=True)
        with old.open("rb") as source, partial.open("wb") as target:
            told = _child(old, source, target)
            os.fsync(target.fileno())
        if len(read_header(partial).entries) != told["tensors"]:
            raise BadWeights(f"{old} was not converted: its tensors were not all written")
        os.replace(partial, new)
    except OSError as error:
        raise NotSaved(f"{old} could not be converted to {new}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return Converted(new, told["tensors"], told["at"], tuple(told["beside"]))


def _child(old: Path, source: BinaryIO, target: BinaryIO) -> dict[str, Any]:
    size = os.fstat(source.fileno()).st_size
    most = 2 * size + 1_000_000  # bytes: weights that share a storage are written twice
    command = [sys.executable, "-I", "-S", "-B", str(CHILD), str(most)]
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                command,
                stdin=source,
                stdout=target,
                stderr=said,
                env=kept,
                timeout=PATIENCE + size / SLOWEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BadWeights(f"{old} was not converted: it took too long, and was stopped") from None
        said.seek(0)
        text = said.read(MOST_SAID)
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    if "error" in told:
        raise BadWeights(f"{old} is not converted: {told['error']}")
    if done.returncode or not {"tensors", "at", "beside"} <= set(told):
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
        raise BadWeights(f"{old} is not converted: the process that read it was stopped ({how})")
    return dict(told)

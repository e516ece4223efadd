import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from limner.cli import main


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


Limner = Callable[..., Said]


@pytest.fixture
def limner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Limner:
    """The command, called in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: object) -> Said:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return Said(status, *capsys.readouterr())

    return call


@pytest.fixture
def paint(limner: Limner, tiny_folder: Path) -> Limner:
    """`limner paint` with the tiny model, in few steps."""
    return lambda *argv: limner("paint", "-m", tiny_folder, "--size", 64, "--steps", 2, "--device", "cpu", *argv)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """The command as a process of its own."""

    def begin(*argv: object, **more: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "limner", *(str(word) for word in argv)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path} | more
        return subprocess.Popen(command, **options)

    return begin

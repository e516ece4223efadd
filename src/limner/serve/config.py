"""What one server is told when it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIB = 2**20


def home() -> Path:
    """Where a server keeps its pictures when it is told no folder: beside the models that were added."""
    if told := os.environ.get("LIMNER_HOME"):
        return Path(told).expanduser() / "serve"
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "limner" / "serve"


@dataclass(frozen=True)
class Config:
    """The settings of a server; each has its flag in `limner serve`."""

    folder: Path = field(default_factory=home)  # of the picture files and, without a URL, of the database
    database: str = ""  # a URL of SQLAlchemy; "": limner.db in the folder
    host: str = "127.0.0.1"
    port: int = 7860
    hosts: tuple[str, ...] = ()  # names that the Host header may say beside the loopback's and `host`
    token_required: bool = False  # also on a loopback address
    max_queue: int = 100  # jobs of one owner that wait
    max_queue_all: int = 1000  # jobs of everybody that wait
    max_count: int = 64  # pictures of one job
    max_body: int = 32 * MIB  # bytes of a request
    memory: int = 0  # bytes that a job may need by its estimate; 0: what the machine has
    model: str = "mini"  # painted with where a job names none
    device: str = "auto"
    keep: str = "all"  # what a worker has in memory: every network, one at a time, or one layer
    workers: int = 1
    cache_models: int = 1  # models that a worker keeps loaded
    allow_paths: bool = False  # networks may be named by paths
    bin_days: float = 30.0  # days in which a deleted picture can be restored
    audit_prompts: bool = False  # the audit log tells the words, too

    @property
    def url(self) -> str:
        """The database's."""
        return self.database or f"sqlite:///{self.folder / 'limner.db'}"

    @property
    def pictures(self) -> Path:
        """The folder of the files that are named by their digests."""
        return self.folder / "pictures"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

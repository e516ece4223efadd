"""How much there is: read from the machine, and from its control groups where there are any."""

from pathlib import Path

import pytest

from limner import memory
from limner.memory import cost_of, free, gb, machine


def group(folder: Path, version: int, limit: str, used: int, cache: int) -> Path:
    folder.mkdir(parents=True)
    most, now = memory.GROUPS[version - 1 == 0]
    (folder / most).write_text(limit + "\n")
    (folder / now).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 0\n")
    return folder


def test_there_is_less_free_than_there_is():
    assert 0 < free() <= machine()


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int):
    own = group(tmp_path / "own", version, str(100 * 2**20), 60 * 2**20, 20 * 2**20)
    monkeypatch.setattr(memory, "_folders", lambda: [tmp_path / "none", own])
    assert machine() == 100 * 2**20
    assert free() == 60 * 2**20  # pages of files can be taken back


@pytest.mark.parametrize("limit", ["max", "", "9223372036854771712"])
def test_no_limit_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str):
    whole = machine()
    monkeypatch.setattr(memory, "_folders", lambda: [group(tmp_path / "own", 2, limit, 5, 0)])
    assert machine() == whole


def test_a_full_container_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = group(tmp_path / "own", 2, "100", 200, 0)
    monkeypatch.setattr(memory, "_folders", lambda: [own])
    assert free() == 0


def test_families_without_a_figure_cost_what_published_ones_do():
    assert cost_of("") == cost_of("sdxl") == memory.PUBLISHED
    assert cost_of("mini").walk < cost_of("sd15").walk
    assert gb(9.14e9) == "9.1 GB"

"""How much there is: read from the machine, and from its control groups where there are any."""

import os
import platform
import subprocess
import sys
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_what_is_freed_is_held_until_it_is_given_back():
    """In a process of its own: it holds for all of it."""
    code = """if True:
        import numpy as np
        from limner import memory

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        def worked():
            np.ones(2**24)  # 128 MiB
            return resident()

        before = resident()
        print(worked() - before > 2**26)
        assert memory.hold_freed()
        print(worked() - before > 2**26)
        memory.trim()
        print(resident() - before > 2**26, worked() - before > 2**26)
        memory.let_go()
        print(resident() - before > 2**26, worked() - before > 2**26)
    """
    told = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    child = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["False", "True", "False", "True", "False", "False"]


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_what_is_held_is_wished_in_large_pages_and_takes_nothing_before_it_is_used():
    code = """if True:
        import ctypes
        from limner import memory

        def said(key):
            return next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]

        def wished(size):
            held = bytearray(size)
            at = ctypes.addressof(ctypes.c_char.from_buffer(held)) + size // 2
            for line in open("/proc/self/smaps"):
                if "-" in line.split()[0]:
                    first, last = (int(end, 16) for end in line.split()[0].split("-"))
                    here = first <= at < last
                elif line.startswith("VmFlags") and here:
                    return "hg" in line.split()

        before = int(said("VmRSS"))
        assert memory.hold_freed()
        print(int(said("VmRSS")) - before < 2**14)  # KiB
        print(wished(2**27), wished(2**29))
        memory.let_go()
        print(wished(2**27))
    """
    told = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    child = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["True", "True", "True", "False"]


def test_large_pages_are_told_as_the_system_has_them():
    there = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    told = memory.large_pages()
    assert f"[{told}]" in there.read_text() if there.exists() else told == ""


def test_who_told_the_c_library_himself_has_his_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not memory.hold_freed()

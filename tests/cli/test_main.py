import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from limner import __version__
from limner.cli import COMMANDS, samplers

HERE = ("paint", "show", "describe", "models", "samplers", "doctor")
Start = Callable[..., subprocess.Popen[str]]


def test_help_lists_every_command_and_the_version_is_ours(limner):
    said = limner("--help")
    assert said.status == 0 and said.err == ""
    assert all(f"  {name} " in said.out for name in COMMANDS)
    assert limner().out == said.out
    assert limner("--version").out.strip() == __version__


def test_help_is_quick_and_imports_nothing_heavy():
    """Under 0.3 s on an idle machine; the time of the process's own processor is not the neighbours' affair."""
    code = "import sys; from limner.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    begun = os.times()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    spent = os.times()
    assert not {"torch", "numpy", "pydantic", "PIL", "tokenizers"} & set(said.stderr.split())
    assert spent.children_user + spent.children_system - begun.children_user - begun.children_system < 0.6


@pytest.mark.parametrize("name", HERE)
def test_each_command_explains_itself_without_torch(name: str):
    code = f"import sys; from limner.cli import main; main(['{name}', '--help']); print(*sys.modules, file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"limner {name}" in said.stdout
    assert not {"torch", "numpy", "pydantic", "PIL"} & set(said.stderr.split())


def test_an_unknown_command_or_flag_is_told_the_nearest(limner):
    said = limner("pain")
    assert said.status == 2 and said.out == ""
    assert said.err.startswith("error: no command is called 'pain': did you mean paint")
    said = limner("paint", "a cat", "--stepps", 3)
    assert said.status == 2
    assert "--stepps" in said.err and "--steps" in said.err and said.err.count("\n") == 1


def test_a_value_of_another_kind_is_refused_in_a_line(limner):
    said = limner("paint", "a cat", "--steps", "few")
    assert said.status == 2
    assert "few" in said.err and "--steps" in said.err and said.err.count("\n") == 1


def test_the_module_is_the_command(start: Start):
    process = start("pain")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and err.startswith("error: no command")


def test_a_reader_that_goes_away_ends_it_quietly(start: Start, tiny_folder: Path):
    process = start("paint", "a cat", "-m", tiny_folder, "--size", 64, "--steps", 4, "--count", 3_000)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_standard_output_is_said(start: Start):
    with Path("/dev/full").open("w") as full:
        process = start("samplers", stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_pipe_sees_no_progress_and_warnings_are_one_line(start: Start, tiny_folder: Path):
    process = start("paint", "cat " * 10_000, "-m", tiny_folder, "--size", 64, "--steps", 2, "--seed", 1)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.startswith("cat-cat-cat") and "  seed 1  " in out
    cut = "the prompt is cut after 62 word pieces, before 'cat cat cat cat cat cat cat ca': the model reads no more"
    assert err.splitlines() == [f"warning: {cut}"]


def test_warnings_of_others_are_shown_as_python_shows_them(limner, monkeypatch: pytest.MonkeyPatch):
    def loud(*_: object, **__: object) -> None:
        warnings.warn_explicit("mine", UserWarning, samplers.__file__, 1, module="limner.cli.samplers")
        with pytest.raises(DeprecationWarning):  # an error here, as the tests ask for; no business of ours
            warnings.warn_explicit("theirs", DeprecationWarning, "/elsewhere.py", 1, module="elsewhere")

    monkeypatch.setattr(samplers, "as_json", loud)
    said = limner("samplers", "--json")
    assert said.err == "warning: mine\n"


def test_a_terminal_sees_a_bar_on_standard_error(tiny_folder: Path, tmp_path: Path):
    pty = pytest.importorskip("pty")
    theirs, ours = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "limner",
        "paint",
        "a [red] cat",
        "-m",
        str(tiny_folder),
        "--size",
        "64",
        "-s",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=ours, cwd=tmp_path, text=True) as process:
        os.close(ours)
        seen = b""
        try:
            while chunk := os.read(theirs, 4096):
                seen += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.read().startswith("a-red-cat-1.png  seed 1")
    assert b"a [red] cat" in seen and b"/24" in seen

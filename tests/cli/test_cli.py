"""The command line as a person meets it: whole commands on a tiny model, and processes where processes matter."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from limner.cli import COMMANDS, main
from limner.cli.say import interruptible
from limner.image import from_pil, open_picture
from limner.provenance.metadata import is_marked, read_receipt


@pytest.fixture
def at(tmp_path, monkeypatch, tiny_folder):
    """An empty folder to stand in, and the flags of a quick picture."""
    monkeypatch.chdir(tmp_path)
    return ["--model", str(tiny_folder), "--steps", "2"]


def pictures(folder: Path = Path()) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".partial")


def python(*words: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False, **more)


def test_help_imports_no_torch():
    code = (
        "import sys, limner.cli; limner.cli.main(['--help']); assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_a_picture_is_named_after_its_prompt_and_seed(at, capsys):
    assert main(["paint", "A red apple!", "--seed", "7", *at]) == 0
    assert pictures() == ["a-red-apple-7.png"]
    assert "a-red-apple-7.png  seed 7" in capsys.readouterr().out


def test_nothing_is_overwritten(at):
    for _ in range(2):
        assert main(["paint", "a cat", "-s", "1", *at]) == 0
    assert pictures() == ["a-cat-1-2.png", "a-cat-1.png"]


def test_picture_i_takes_seed_plus_i_and_repeats_alone(at, capsys):
    assert main(["paint", "a cat", "-s", "3", "--count", "3", "--json", *at]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["recipe"]["seed"] for row in rows] == [3, 4, 5]
    assert main(["paint", "--from", rows[2]["path"], "-o", "again.png"]) == 0
    one, two = (from_pil(open_picture(Path(name))) for name in (rows[2]["path"], "again.png"))
    assert (one - two).abs().mean() < 1 / 255  # random weights amplify bf16's last bit; the shipped ones do not


def test_flags_beside_from_change_the_recipe(at, capsys):
    main(["paint", "a cat", "-s", "3", *at])
    assert main(["paint", "--from", "a-cat-3.png", "--seed", "4", "--style", "flat", "--quiet"]) == 0
    recipe = read_receipt(open_picture(Path("a-cat-4.png")), "").recipe
    assert (recipe.prompt, recipe.seed, recipe.style, recipe.steps) == ("a cat", 4, "flat", 2)


def test_the_flags_people_type_from_habit(at, capsys):
    words = [
        "--num-inference-steps",
        "3",
        "--guidance-scale",
        "2",
        "--negative-prompt",
        "blue",
        "--sampling-method",
        "Euler a",
    ]
    assert main(["paint", "-p", "a cat", "-W", "64", "-H", "96", "-b", "2", "-s", "1", *at[:2], *words, "--json"]) == 0
    recipe = json.loads(capsys.readouterr().out.splitlines()[0])["recipe"]
    assert (recipe["steps"], recipe["cfg_scale"], recipe["negative"], recipe["sampler"]) == (
        3,
        2.0,
        "blue",
        "euler_ancestral",
    )
    assert (recipe["width"], recipe["height"]) == (64, 96)


def test_several_prompts_and_standard_input(at, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a dog\n\na sword\n"))
    assert main(["paint", "a cat", "-", "-s", "1", "-o", "out/", *at]) == 0
    assert pictures(Path("out")) == ["a-cat-1.png", "a-dog-1.png", "a-sword-1.png"]


def test_a_random_seed_is_told_and_works_again(at, capsys):
    assert main(["paint", "a cat", "--seed", "-1", "--json", *at]) == 0
    seed = json.loads(capsys.readouterr().out)["recipe"]["seed"]
    assert pictures() == [f"a-cat-{seed}.png"]


def test_no_metadata_leaves_the_mark(at):
    main(["paint", "a cat", "-s", "1", "--no-metadata", *at])
    image = open_picture(Path("a-cat-1.png"))
    assert is_marked(image) and "limner" not in image.info and "parameters" not in image.info


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler", "eulr"], "did you mean euler"),
        (["--style", "flatt"], "did you mean flat"),
        (["--scheduler", "karas"], "did you mean karras"),
        (["--size", "100x128"], "nearest is 96x128"),
        (["--size", "big"], "--size"),
        (["--steps", "0"], "steps"),
        (["--cfg-scale", "nan"], "cfg_scale"),
        (["--seed", "-3"], "-1 for any"),
        (["--count", "0"], "--count"),
        (["--device", "abacus"], "abacus"),
        (["-o", "a.gif"], ".gif"),
        (["--from", "nothing.png"], "does not exist"),
        (["--modell", "x"], "modell"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(at, capsys, words, said):
    assert main(["paint", "a cat", *at, *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and said in told
    assert not pictures()


def test_no_prompt_and_no_command(at, capsys):
    assert main(["paint", *at]) == 2
    assert main(["pant", "a cat"]) == 2
    assert "did you mean paint" in capsys.readouterr().err


def test_a_long_prompt_is_cut_with_a_warning(at, capsys):
    assert main(["paint", " ".join(["apple"] * 10_000), "-s", "1", *at]) == 0
    assert "warning: the prompt is cut after 62 word pieces" in capsys.readouterr().err


def test_a_disk_that_fills_loses_no_finished_picture(at, monkeypatch, capsys):
    import limner.files

    sync, calls = os.fsync, []

    def filling(file):
        calls.append(file)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(limner.files.os, "fsync", filling)
    assert main(["paint", "a cat", "-s", "1", "--count", "4", *at]) == 2
    shown = capsys.readouterr()
    assert pictures() == ["a-cat-1.png", "a-cat-2.png"] and "a-cat-2.png" in shown.out and "disk is full" in shown.err


def test_show_prints_what_a_picture_carries(at, capsys):
    main(["paint", "a cat", "-s", "1", "--quiet", *at])
    assert main(["show", "a-cat-1.png"]) == 0
    told = capsys.readouterr().out
    assert "a cat" in told and "marked as made by a trained model" in told
    Image.new("RGB", (8, 8)).save("plain.png")
    main(["show", "plain.png"])
    assert "no recipe" in capsys.readouterr().out


def test_describe_models_samplers_and_doctor_speak(at, capsys):
    main(["paint", "a cat", "-s", "1", "--quiet", *at])
    assert main(["describe", "a-cat-1.png", *at[:2], "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["names"]) == 5
    assert main(["samplers"]) == 0
    assert "dpmpp_2m" in capsys.readouterr().out
    assert main(["models", at[1]]) == 0
    assert "tiny" in capsys.readouterr().out
    main(["doctor", "--json"])
    assert "will use" in json.loads(capsys.readouterr().out)


RUN = [sys.executable, "-m", "limner", "paint", "a cat", "--seed", "1", "--size", "64"]


def test_a_pipe_gets_paths_and_no_bar(at):
    done = python(*RUN[1:], *at, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a-cat-1.png\n", "")


def test_ctrl_c_keeps_what_is_finished(at):
    work = subprocess.Popen(
        [*RUN, "--count", "3000", *at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = time.monotonic()
    while not pictures() and time.monotonic() - started < 60:
        time.sleep(0.05)
    work.send_signal(signal.SIGINT)
    _, told = work.communicate(timeout=60)
    assert work.returncode == 130 and "what was finished is kept" in told
    assert pictures() and not list(Path().glob(".*"))
    for name in pictures():
        open_picture(Path(name))


def test_ctrl_c_is_heard_where_python_drops_it(monkeypatch):
    """As when it comes inside a finaliser: the next look at it stops the work."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        check()
    assert signal.getsignal(signal.SIGINT) is before

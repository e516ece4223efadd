"""The commands that look: show, describe, models, samplers, doctor."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner import pipeline
from limner.cli.say import plain, size
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import SCHEDULES


def theirs(words: str) -> str:
    info = PngInfo()
    info.add_text("parameters", words)
    Image.new("RGB", (8, 8)).save("theirs.png", pnginfo=info)
    return "theirs.png"


def test_show_prints_a_recipe(paint, limner):
    paint("a red apple", "-n", "blue", "-s", 7, "--best-of", 2)
    said = limner("show", "a-red-apple-7.png")
    assert said.status == 0 and said.lines[0] == "a-red-apple-7.png: PNG, 64x64"
    facts = dict(line.strip().split("  ", 1) for line in said.lines[1:-1])
    assert facts["prompt"].strip() == "a red apple" and facts["negative"].strip() == "blue"
    assert facts["seed"].strip() == "7" and facts["best of"].strip() == "2" and "eye" in facts["weights"]


def test_show_as_json_holds_all(paint, limner):
    row = paint("a cat", "-s", 7, "--json").rows[0]
    found = limner("show", "a-cat-7.png", "--json").rows[0]
    assert found["receipt"]["recipe"] == row["recipe"]
    assert found["marked"] and found["size"] == [64, 64] and found["parameters"].startswith("a cat\nSteps: 2")


def test_show_prints_the_words_of_other_tools_and_none_of_their_control_characters(limner):
    said = limner("show", theirs("a cat\x1b[2J\nSteps: 20"))
    assert said.status == 0
    assert "the parameters of another tool:\na cat\\x1b[2J\nSteps: 20" in said.out
    assert "no mark that a trained model made it" in said.out
    assert limner("show", "theirs.png", "--json").rows[0]["receipt"] is None


def test_show_refuses_a_damaged_recipe_and_what_is_no_picture(limner):
    info = PngInfo()
    info.add_itxt("limner", "{")
    Image.new("RGB", (8, 8)).save("bad.png", pnginfo=info)
    said = limner("show", "bad.png")
    assert said.status == 2 and "bad.png carries a recipe that cannot be read" in said.err
    assert limner("show", "none.png").status == 2


def test_describe_speaks_of_each_picture(paint, limner, tiny_folder: Path):
    paint("a cat", "a dog", "-s", 1)
    said = limner("describe", "a-cat-1.png", "a-dog-1.png", "-m", tiny_folder)
    assert said.status == 0 and "a-cat-1.png: " in said.out and "a-dog-1.png: " in said.out
    assert all(word in said.out for word in ("names", "style", "clear"))
    rows = limner("describe", "a-cat-1.png", "a-dog-1.png", "-m", tiny_folder, "--json", "--top", 2).rows
    assert [row["path"] for row in rows] == ["a-cat-1.png", "a-dog-1.png"]
    assert all(len(row["names"]) == 2 for row in rows)


def test_describe_says_when_a_picture_is_empty_or_missing(limner, tiny_folder: Path):
    Image.new("RGBA", (30, 9)).save("clear.png")
    assert limner("describe", "clear.png", "-m", tiny_folder).lines[0] == "clear.png: an empty picture"
    assert "does not exist" in limner("describe", "none.png", "-m", tiny_folder).err
    assert "--top" in limner("describe", "clear.png", "-m", tiny_folder, "--top", 0).err


def test_models_are_counted_from_their_headers(limner, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "SHIPPED", ())
    (row,) = limner("models", tiny_folder, "--json").rows
    assert row["name"] == "tiny" and row["family"] == "mini" and row["path"] == str(tiny_folder)
    assert row["parameters"] == sum(row["networks"].values()) and len(row["networks"]) == 5
    assert row["bytes"] == sum(file.stat().st_size for file in tiny_folder.iterdir())
    said = limner("models", tiny_folder)
    assert said.lines[0].split() == ["name", "family", "parameters", "on", "disk", "where"]
    assert f"{row['parameters']:,}" in said.lines[1]
    assert limner("models", "nowhere/at/all").status == 2


def test_a_shipped_model_that_is_gone_hides_no_other(limner, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "SHIPPED", ("gone",))
    Path("gone").mkdir()
    said = limner("models", tiny_folder)
    assert said.status == 0 and "tiny" in said.out
    assert said.err.startswith("warning: the model gone that ships is not whole")


def test_samplers_and_schedules_are_all_listed(limner):
    said = limner("samplers")
    assert all(f"  {name} " in said.out for name in (*SAMPLERS, *SCHEDULES))
    found = limner("samplers", "--json").rows[0]
    assert [one["name"] for one in found["samplers"]] == list(SAMPLERS)
    assert [one["name"] for one in found["schedules"]] == list(SCHEDULES)
    assert all(one["what"] for kind in found.values() for one in kind)


def test_the_doctor_finds_a_whole_model_well(limner, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "SHIPPED", (str(tiny_folder),))
    monkeypatch.setattr(pipeline, "find_model", Path)
    said = limner("doctor")
    assert said.status == 0 and "WRONG" not in said.out
    assert all(word in said.out for word in ("python", "torch", "cores", "memory", "devices", "because", "apart by"))
    found = limner("doctor", "--json").rows[0]
    assert found["well"] and all(check["good"] for check in found["checks"].values())


def test_the_doctor_finds_what_is_damaged(limner, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ill = Path(shutil.copytree(tiny_folder, tmp_path / "ill"))
    (ill / "tokenizer.json").write_text("{}")
    (ill / "names.txt").unlink()
    monkeypatch.setattr(pipeline, "SHIPPED", (str(ill),))
    monkeypatch.setattr(pipeline, "find_model", Path)
    said = limner("doctor")
    assert said.status == 1
    assert "WRONG: names.txt, tokenizer.json in" in said.out
    (ill / "SHA256SUMS").unlink()
    assert "SHA256SUMS cannot be read" in limner("doctor").out


def test_bytes_and_strangers_words_are_plain():
    assert [size(count) for count in (0, 999, 1500, 2_500_000, 3e12)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.5 MB",
        "3000.0 GB",
    ]
    assert plain("tab\tbell\x07 né\n") == "tab\\tbell\\x07 né\n"

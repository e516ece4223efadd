import os
from pathlib import Path

import pytest
from PIL import Image

from limner.image import open_picture
from limner.tasks.find import NAME


@pytest.fixture
def folder() -> Path:
    Path("p/deep").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("blue.jpg", "blue"), ("deep/green.webp", "green")):
        Image.new("RGB", (20, 20), colour).save(Path("p", name))
        os.utime(Path("p", name), (1e9, 1e9))
    Path("p/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return Path("p")


def test_find_prints_the_best_and_keeps_an_index(limner, folder: Path, tiny_folder: Path):
    said = limner("find", folder, "a red apple", "-n", 2, "-m", tiny_folder)
    assert said.status == 0 and len(said.lines) == 2 and (folder / NAME).exists()
    assert said.err.startswith("skipped: p/torn.png cannot be read")
    before = (folder / NAME).stat()
    rows = limner("find", folder, "a red apple", "-m", tiny_folder, "--json").rows
    assert len(rows) == 3 and [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert {row["path"] for row in rows} == {"p/red.png", "p/blue.jpg", "p/deep/green.webp"}
    assert said.lines[0].split() == [f"{rows[0]['score']:.3f}", rows[0]["path"]]
    assert (folder / NAME).stat().st_ino == before.st_ino  # nothing was new, so it was not written


def test_find_by_a_picture_with_the_index_elsewhere(limner, folder: Path, tiny_folder: Path):
    rows = limner(
        "find", folder, "--like", "p/red.png", "--index", "here.safetensors", "-m", tiny_folder, "--json"
    ).rows
    assert rows[0]["path"] == "p/red.png" and rows[0]["score"] == pytest.approx(1, abs=2e-3)
    assert Path("here.safetensors").exists() and not (folder / NAME).exists()


def test_find_draws_a_sheet(limner, folder: Path, tiny_folder: Path):
    said = limner("find", folder, "a dog", "--sheet", "sheet.png", "-m", tiny_folder)
    assert said.status == 0 and "sheet: sheet.png" in said.err and open_picture(Path("sheet.png")).width > 100


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("p",), "one of the two"),
        (("p", "a cat", "--like", "p/red.png"), "one of the two"),
        (("p", "a cat", "-n", "0"), "--count"),
        (("none", "a cat"), "does not exist"),
        (("p/red.png", "a cat"), "no folder"),
        (("p", "a cat", "--index", "p/red.png"), "no index of Limner"),
    ],
)
def test_find_refuses_in_words(limner, folder: Path, tiny_folder: Path, words, says: str):
    said = limner("find", *words, "-m", tiny_folder)
    assert said.status == 2 and says in said.err


def test_a_folder_without_pictures_is_said_to_be_one(limner, tiny_folder: Path):
    Path("empty").mkdir()
    said = limner("find", "empty", "a cat", "-m", tiny_folder)
    assert said.status == 0 and said.out == "" and "there is no picture in empty" in said.err

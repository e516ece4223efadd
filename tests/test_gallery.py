"""The gallery: its commands are commands, its pictures are there, and together they stay small."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from limner.cli import COMMANDS, build

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "gallery.md").read_text(encoding="utf-8")
PICTURES = DOCS / "img" / "gallery"
MOST = 2_000_000  # bytes of all pictures
BUSY = ("paint", "edit", "inpaint", "outpaint", "upscale", "vary", "morph", "tile", "sheet", "grid", "campaign")
LOOKING = ("cutout", "match", "find", "describe", "show")
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]


@pytest.mark.parametrize("line", dict.fromkeys(LINES))
def test_every_command_of_the_gallery_is_one(line):
    program, command, *words = shlex.split(line)
    assert program == "limner" and command in COMMANDS
    call, bound, *_ = build(command).parse_args([command, *words], print_error=False, exit_on_error=False)
    assert call.__name__ == command and bound.arguments


def test_a_flag_that_is_none_would_be_seen():
    with pytest.raises(Exception, match="--strenght"):
        build("edit").parse_args(["edit", "a.png", "a cat", "--strenght", "1"], print_error=False, exit_on_error=False)


def test_the_gallery_shows_every_command_that_makes_or_looks_at_pictures():
    assert {line.split()[1] for line in LINES} == {*BUSY, *LOOKING}


def test_files_that_commands_start_from_are_made_further_up():
    made = set(re.findall(r'save\("([^"]+)"', PAGE)) | set(re.findall(r"^`([^`]+)`:$", PAGE, re.M))
    for line in itertools.takewhile(lambda line: " -m " not in line, LINES):  # a model of one's own: with its pictures
        words = shlex.split(line)
        for word in words[2:]:
            if Path(word).suffix in (".png", ".jpg", ".csv") and word not in _written(words):
                assert word in made or str(Path(word).parent) in made, f"{word} in {line}"
        made |= _written(words)


def _written(words: list[str]) -> set[str]:
    return {words[i + 1] for i, word in enumerate(words) if word in ("-o", "--sheet")}


def test_the_pictures_of_the_gallery_are_there_and_none_is_left_over():
    named = re.findall(r"!\[[^\]]+\]\(img/gallery/([^)]+)\)", PAGE)
    assert sorted(named) == sorted(path.name for path in PICTURES.iterdir())
    assert len(set(named)) == len(named)


def test_the_pictures_of_the_gallery_are_small_and_whole():
    files = sorted(PICTURES.iterdir())
    assert sum(path.stat().st_size for path in files) < MOST
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert max(image.size) <= 1200, path.name


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.png")), ids=lambda path: path.stem)
def test_the_pictures_of_the_gallery_are_marked_as_made_by_a_model(path):
    with Image.open(path) as image:
        assert "trainedAlgorithmicMedia" in str(image.info.get("XML:com.adobe.xmp", ""))


def test_what_was_chosen_is_said():
    assert "Seeds and prompts were chosen" in PAGE and "img/sheet.png" in PAGE

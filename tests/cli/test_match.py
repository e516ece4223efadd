from pathlib import Path

import pytest
from PIL import Image

from limner.errors import BadWeights


@pytest.fixture
def pictures() -> list[str]:
    for name in ("red", "blue"):
        Image.new("RGB", (20, 20), name).save(f"{name}.png")
    return ["red.png", "blue.png"]


def test_texts_of_one_picture_stand_in_rows(limner, pictures, tiny_folder: Path):
    said = limner("match", "red.png", "a red apple", "a dog", "-m", tiny_folder)
    assert said.status == 0 and len(said.lines) == 2
    (row,) = limner("match", "red.png", "a red apple", "a dog", "-m", tiny_folder, "--json").rows
    assert [one["text"] for one in row["texts"]] == ["a red apple", "a dog"]
    assert sum(one["share"] for one in row["texts"]) == pytest.approx(1)
    cosine, share, *text = said.lines[0].split()
    assert float(cosine) == pytest.approx(row["texts"][0]["cosine"], abs=1e-3) and text == ["a", "red", "apple"]
    assert share.endswith("%")


def test_several_pictures_make_a_table(limner, pictures, tiny_folder: Path):
    said = limner("match", "red.png", "a cat", "a dog", "-p", "blue.png", "-m", tiny_folder)
    assert said.lines[0].split("  ")[-1] == "a dog" and [line.split()[0] for line in said.lines[1:]] == pictures
    rows = limner("match", "red.png", "a cat", "-p", "blue.png", "-m", tiny_folder, "--json").rows
    assert [row["path"] for row in rows] == pictures and all(row["texts"][0]["share"] == 1 for row in rows)


def test_match_wants_a_picture_and_a_text(limner, pictures, tiny_folder: Path):
    assert limner("match", "red.png", "-m", tiny_folder).status == 2
    assert "does not exist" in limner("match", "none.png", "a cat", "-m", tiny_folder).err


def test_describe_chooses_from_labels(limner, pictures, tiny_folder: Path):
    Path("labels.txt").write_text("cat\n\ndog\ncat\nsword\n", encoding="utf-8")
    (row,) = limner("describe", "red.png", "--labels", "labels.txt", "-m", tiny_folder, "--json").rows
    assert sorted(label for label, _ in row["labels"]) == ["cat", "dog", "sword"] and row["template"] == "{}"
    assert sum(share for _, share in row["labels"]) == pytest.approx(1)
    said = limner("describe", *pictures, "--labels", "cat, dog", "--template", "a {}", "--top", 1, "-m", tiny_folder)
    assert said.status == 0 and len(said.lines) == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--labels", "cat"), "two or more"),
        (("--template", "a {}"), "no --labels"),
        (("--labels", "a,b", "--template", "a"), "no {}"),
    ],
)
def test_describe_refuses_labels_it_cannot_use(limner, pictures, tiny_folder: Path, words, says: str):
    said = limner("describe", "red.png", *words, "-m", tiny_folder)
    assert said.status == 2 and says in said.err


def test_a_clip_is_told_to_want_labels(limner, pictures, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise BadWeights("clip: no painter")

    monkeypatch.setattr("limner.pipeline.load", refuse)
    assert limner("describe", "red.png", "-m", "clip").err == "error: clip: no painter\n"
    monkeypatch.setattr("limner.pipeline.find_model", Path)
    monkeypatch.setattr("limner.looker.clip_looker", lambda *_: True)
    assert "clip is a CLIP" in limner("describe", "red.png", "-m", "clip").err

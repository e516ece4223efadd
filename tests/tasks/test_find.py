import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from limner.errors import BadInput
from limner.tasks import find
from limner.tasks.find import NAME, Index, Progress, open_index, pictures_below, query, refreshed
from limner.weights.io import write_tensors

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@dataclass
class Fake:
    """Sees a picture's mean colour; `seen` counts."""

    name: str = "fake"
    digest: str = "0"
    scale: float = 10.0
    seen: list[int] = field(default_factory=list)

    def see(self, pictures: Sequence[Tensor]) -> Tensor:
        self.seen.append(len(pictures))
        means = torch.stack([picture[:3].mean((1, 2)) for picture in pictures])
        return torch.nn.functional.normalize(means + 1e-6, dim=1)

    def read(self, texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.tensor([COLOURS[text] for text in texts]).float(), dim=1)


def draw(path: Path, colour: str, age: float = 10) -> Path:
    """A picture that was written so many seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), COLOURS[colour]).save(path)
    then = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(then, then))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("a.png", "red"), ("below/b.jpg", "green"), ("below/deep/c.webp", "blue")):
        draw(tmp_path / "pictures" / name, colour)
    return tmp_path / "pictures"


def refresh(folder: Path, looker: Fake, file: Path | None = None) -> tuple[Index, list[Progress]]:
    index = open_index(folder, looker, file)
    return index, list(refreshed(index, looker))


def found(index: Index, looker: Fake, words: str, count: int = 9) -> list[str]:
    return [path.relative_to(index.folder).as_posix() for path, _ in index.search(query(looker, words), count)]


def test_words_find_pictures_in_all_folders_and_each_is_seen_once(folder: Path):
    looker = Fake()
    index, events = refresh(folder, looker)
    assert [(event.done, event.total, event.unread) for event in events] == [(1, 3, ""), (2, 3, ""), (3, 3, "")]
    assert found(index, looker, "green", 1) == ["below/b.jpg"] and len(found(index, looker, "green")) == 3
    assert index.search(query(looker, "red"), 1)[0][1] == pytest.approx(1, abs=1e-3)
    before = index.file.read_bytes()
    again, events = refresh(folder, looker)
    assert looker.seen == [3] and events == []
    assert found(again, looker, "blue", 1) == ["below/deep/c.webp"] and again.file.read_bytes() == before


def test_a_picture_finds_its_like(folder: Path):
    looker = Fake()
    index, _ = refresh(folder, looker)
    assert index.search(query(looker, like=folder / "a.png"), 1)[0][0] == folder / "a.png"
    for words, like in (("", None), ("  ", None), ("red", folder / "a.png")):
        with pytest.raises(BadInput, match="one of the two"):
            query(looker, words, like)


def test_new_changed_and_deleted_pictures_are_noticed(folder: Path):
    looker = Fake()
    refresh(folder, looker)
    draw(folder / "new.png", "green")
    draw(folder / "a.png", "blue", age=5)
    (folder / "below/b.jpg").unlink()
    index, events = refresh(folder, looker)
    assert looker.seen == [3, 2] and len(events) == 2
    assert sorted(found(index, looker, "blue", 2)) == ["a.png", "below/deep/c.webp"]
    assert found(index, looker, "green", 1) == ["new.png"] and len(index.rows) == 3


def test_a_touched_picture_is_hashed_and_not_seen_again(folder: Path):
    looker = Fake()
    refresh(folder, looker)
    os.utime(folder / "a.png")
    index, events = refresh(folder, looker)
    assert looker.seen == [3] and events == []
    row = next(row for row in index.rows if row.path == "a.png")
    assert row.mtime_ns == (folder / "a.png").stat().st_mtime_ns


def test_a_picture_changed_within_the_grain_of_its_time_is_seen_again(folder: Path):
    def put(colour: str, ns: int) -> None:
        draw(folder / "a.png", colour)
        (folder / "a.png").write_bytes((folder / "a.png").read_bytes().ljust(100, b"\0"))  # of one size
        os.utime(folder / "a.png", ns=(ns, ns))

    looker, now = Fake(), time.time_ns()
    put("red", now)
    refresh(folder, looker)
    put("blue", now)
    index, _ = refresh(folder, looker)
    assert looker.seen == [3, 1] and found(index, looker, "red", 1) != ["a.png"]


def test_what_cannot_be_read_is_named_and_tried_again(folder: Path):
    (folder / "torn.png").write_bytes((folder / "a.png").read_bytes()[:40])
    (folder / "text.jpg").write_text("no picture")
    looker = Fake()
    for _ in range(2):
        index, events = refresh(folder, looker)
        unread = [event.unread for event in events if event.unread]
        assert len(unread) == 2 and all(name in "".join(unread) for name in ("torn.png", "text.jpg"))
        assert len(index.rows) == 3
    assert looker.seen == [3]


def test_links_out_of_the_folder_and_hidden_things_are_passed_over(folder: Path, tmp_path: Path):
    outside = draw(tmp_path / "outside" / "x.png", "red")
    (folder / "link.png").symlink_to(outside)
    (folder / "away").symlink_to(outside.parent)
    (folder / "round").symlink_to(folder)
    (folder / "within.png").symlink_to(folder / "a.png")
    draw(folder / ".hidden.png", "red")
    draw(folder / ".git" / "y.png", "red")
    assert list(pictures_below(folder)) == ["a.png", "within.png", "below/b.jpg", "below/deep/c.webp"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-7]),
        lambda file: file.write_bytes(b""),
        lambda file: write_tensors(file, {"vectors": torch.zeros(2, 3)}, {"limner-index": "1", "looker": "0"}),
        lambda file: write_tensors(file, {"x": torch.zeros(2)}, {"limner-index": "7"}),
    ],
)
def test_a_torn_index_is_made_anew_with_a_word(folder: Path, damage):
    looker = Fake()
    index, _ = refresh(folder, looker)
    damage(index.file)
    with pytest.warns(UserWarning, match="cannot be read and is made anew"):
        again, _ = refresh(folder, looker, index.file)
    assert looker.seen == [3, 3] and len(again.rows) == 3


def test_the_index_of_another_looker_is_made_anew(folder: Path):
    refresh(folder, Fake())
    with pytest.warns(UserWarning, match="another model's and is made anew for other"):
        refresh(folder, Fake("other", "1"))
    assert open_index(folder, Fake("other", "1")).rows


def test_a_file_that_is_no_index_is_not_written_over(folder: Path, tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    write_tensors(file, {"x": torch.zeros(2)})
    with pytest.raises(BadInput, match="no index of Limner"):
        open_index(folder, Fake(), file)
    for wrong in (tmp_path / "none", folder / "a.png"):
        with pytest.raises(BadInput, match=r"does not exist|no folder"):
            open_index(wrong, Fake())


def test_a_row_that_leads_out_of_the_folder_is_dropped(folder: Path, tmp_path: Path):
    looker = Fake()
    index, _ = refresh(folder, looker)
    index.rows[0] = find.replace(index.rows[0], path="../outside.png")
    index.save()
    again, _ = refresh(folder, looker)
    assert sorted(row.path for row in again.rows) == ["a.png", "below/b.jpg", "below/deep/c.webp"]


def test_who_stops_keeps_what_was_seen(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(find, "AT_ONCE", 1)
    looker = Fake()
    events = refreshed(open_index(folder, looker), looker)
    next(events), next(events)
    events.close()
    assert len(open_index(folder, looker).rows) == 2
    _, rest = refresh(folder, looker)
    assert len(rest) == 1


def test_an_index_that_cannot_be_kept_is_searched_all_the_same(folder: Path, tmp_path: Path):
    looker = Fake()
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the index is not kept"):
        index, _ = refresh(folder, looker, tmp_path / "file" / "index.safetensors")
    assert found(index, looker, "blue", 1) == ["below/deep/c.webp"]


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    index, _ = refresh(folder, Fake())
    assert index.file.parent == tmp_path / "cache" / "limner" / "index" and index.file.exists()
    assert not (folder / NAME).exists()


def test_an_empty_folder_has_nothing(tmp_path: Path):
    index, events = refresh(tmp_path, Fake())
    assert events == [] and index.search(query(Fake(), "red"), 3) == [] and not (tmp_path / NAME).exists()


def test_large_pictures_are_reduced_before_they_are_gathered(tmp_path: Path):
    assert find._small(Image.new("RGB", (1500, 1000))).shape == (4, 512, 768)

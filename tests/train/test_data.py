"""Pictures with words, from shards and folders: what cannot be read is skipped and said, or stops the packing."""

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limner.errors import BadData, BadInput
from limner.train.data import Example, Words, pack, read, sources, to_pixels


def encoded(size: tuple[int, int] = (8, 8), colour: tuple[int, ...] = (200, 100, 50, 255), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    mode = "RGBA" if len(colour) == 4 else "RGB"
    Image.new(mode, size, colour).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


def shard(path: Path, members: dict[str, Any]) -> Path:
    """A tar of bytes, and of JSON for whatever is not bytes."""
    with tarfile.open(path, "w") as tar:
        for name, value in members.items():
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def fruits(count: int = 4) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for i in range(count):
        members[f"{i:03}.png"] = encoded(colour=(10 * i, 0, 0, 255))
        members[f"{i:03}.json"] = {"name": f"apple {i}", "keywords": ["fruit", "red"], "style": "flat", "concept": "a"}
    return members


def reading(path: Path) -> tuple[list[Example], list[str]]:
    bad: list[str] = []
    return list(read(path, bad.append)), bad


def names(found: list[Example]) -> list[str]:
    return [example.words.name for example in found]


# Words


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"name": "cat"}, Words("k", "cat", concept="cat")),
        ({"text": "cat"}, Words("k", "cat", concept="cat")),
        ({"caption": "cat", "concept": "animal"}, Words("k", "cat", concept="animal")),
        ({"name": "cat", "keywords": "pet,soft"}, Words("k", "cat", ("pet", "soft"), concept="cat")),
        ({"name": "cat", "keywords": ["pet"], "style": "flat"}, Words("k", "cat", ("pet",), "flat", "cat")),
        ({"name": 7, "keywords": None}, Words("k", "7", concept="7")),
        ({}, Words("k", "")),
    ],
)
def test_words_come_from_the_fields_that_sets_use(fields, want):
    assert Words.of("k", fields, "train") == want


# Sources


def test_a_shard_is_read(tmp_path):
    found, bad = reading(shard(tmp_path / "train-0.tar", fruits()))
    assert names(found) == ["apple 0", "apple 1", "apple 2", "apple 3"]
    assert found[1].words == Words("001", "apple 1", ("fruit", "red"), "flat", "a", "train")
    assert found[1].picture == encoded(colour=(10, 0, 0, 255))
    assert bad == []


def test_words_may_stand_before_their_picture(tmp_path):
    found, bad = reading(
        shard(tmp_path / "a.tar", {"a.json": {"name": "x"}, "b.json": {"name": "y"}, "b.PNG": b"", "a.webp": b""})
    )
    assert (names(found), bad) == (["y", "x"], [])


def test_a_shard_called_val_says_so(tmp_path):
    found, _ = reading(shard(tmp_path / "val-000.tar", fruits(1)))
    assert found[0].words.split == "val"


def test_a_folder_of_shards_is_read_in_order(tmp_path):
    for name in ("b.tar", "a.tar", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    assert [source.name for source in sources(tmp_path)] == ["a.tar", "b.tar"]


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist; --data takes"):
        sources(tmp_path / "nowhere")


def test_a_folder_with_metadata_is_read(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("one.png", "deep/two.png"):
        (tmp_path / name).write_bytes(encoded())
    lines = [{"file_name": "one.png", "text": "one"}, {"file_name": "deep/two.png", "text": "two\u2028lines"}]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    found, bad = reading(tmp_path)
    assert names(found) == ["one", "two\u2028lines"]
    assert bad == []


def test_a_folder_with_captions_is_read(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.png").write_bytes(encoded())
        (tmp_path / f"{name}.txt").write_text(f" a {name} \n")
    (tmp_path / "c.png").write_bytes(encoded())
    found, bad = reading(tmp_path)
    assert names(found) == ["a a", "a b"]
    assert bad == ["c.png has no c.txt beside it"]


# What cannot be read


def test_a_shard_cut_anywhere_gives_what_came_before_and_a_sentence(tmp_path):
    data = shard(tmp_path / "whole.tar", fruits()).read_bytes()
    end = data.rstrip(b"\0").rfind(b"}") // 512 * 512 + 512  # the last member ends here, the zeros of the end follow
    path = tmp_path / "cut.tar"
    for length in {*range(0, end, 300), *range(0, end + 1, 512)}:
        path.write_bytes(data[:length])
        found, bad = reading(path)
        assert names(found) == [f"apple {i}" for i in range(len(found))]
        assert any("cut.tar is damaged or cut short" in sentence for sentence in bad), length


def test_a_damaged_header_in_the_middle_of_a_shard_is_told(tmp_path):
    path = shard(tmp_path / "torn.tar", fruits())
    data = bytearray(path.read_bytes())
    data[data.find(b"002.png") + 10] ^= 255
    path.write_bytes(data)
    found, bad = reading(path)
    assert names(found) == ["apple 0", "apple 1"]
    assert len(bad) == 1 and bad[0].startswith("torn.tar is damaged or cut short: no whole header at byte")


def test_what_is_no_shard_is_told(tmp_path):
    path = tmp_path / "text.tar"
    path.write_text("not a tar at all" * 100)
    found, bad = reading(path)
    assert found == [] and "text.tar is damaged" in bad[0]


def test_a_picture_without_words_and_words_without_a_picture_are_told(tmp_path):
    found, bad = reading(shard(tmp_path / "a.tar", {"x.png": b"1", "y.json": {}, **fruits(1)}))
    assert names(found) == ["apple 0"]
    assert bad == [
        "a.tar: x has .png but not both a picture and a .json",
        "a.tar: y has .json but not both a picture and a .json",
    ]


@pytest.mark.parametrize("words", [b"{", b"\xff\xfe", b"[]", b"3", b'{"name": "x", "keywords": 5}', b"[" * 100_000])
def test_words_that_are_no_object_are_told(tmp_path, words):
    found, bad = reading(shard(tmp_path / "a.tar", {"x.png": encoded(), "x.json": words, **fruits(1)}))
    assert names(found) == ["apple 0"]
    assert len(bad) == 1 and bad[0].startswith("a.tar: the words of x are not a JSON object")


BAD_LINES = {
    "no JSON": b"{",
    "no object": b"[1]",
    "no file name": b'{"text": "x"}',
    "a file name that is a number": b'{"file_name": 3}',
    "a file that is not there": b'{"file_name": "nowhere.png"}',
    "a folder": b'{"file_name": "."}',
    "a way out": b'{"file_name": "../secret.png"}',
    "a longer way out": b'{"file_name": "deep/../../secret.png"}',
    "an absolute way out": b'{"file_name": "/etc/hostname"}',
    "a link out": b'{"file_name": "link.png"}',
    "a zero byte": b'{"file_name": "a\\u0000.png"}',
    "bytes that are no text": b'{"file_name": "\xff"}',
    "keywords that are a number": b'{"file_name": "one.png", "keywords": 5}',
}


@pytest.mark.parametrize("kind", list(BAD_LINES))
def test_a_bad_line_of_metadata_is_told_with_its_number(tmp_path, kind):
    (tmp_path / "secret.png").write_bytes(encoded())
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "one.png").write_bytes(encoded())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "metadata.jsonl").write_bytes(BAD_LINES[kind] + b'\n{"file_name": "one.png", "text": "one"}\n')
    found, bad = reading(folder)
    assert names(found) == ["one"]
    assert len(bad) == 1 and bad[0].startswith("set/metadata.jsonl, line 1: ")


def test_a_caption_that_is_no_text_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfd")
    found, bad = reading(tmp_path)
    assert found == [] and bad[0].startswith("a.txt or a.png cannot be read")


# Pixels


def test_colour_is_premultiplied():
    pixels = to_pixels(encoded(colour=(200, 100, 50, 128)), 8)
    assert pixels.shape == (4, 8, 8)
    assert pixels[:, 3, 3].tolist() == [round(200 * 128 / 255), round(100 * 128 / 255), round(50 * 128 / 255), 128]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_opaque_pictures_are_opaque(kind):
    pixels = to_pixels(encoded(size=(20, 20), colour=(200, 100, 50), kind=kind), 16)
    assert (pixels[3] == 255).all()
    assert abs(pixels[:3].astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 2


@pytest.mark.parametrize(
    ("size", "inner"), [((20, 10), (16, 8)), ((10, 40), (4, 16)), ((4, 2), (16, 8)), ((500, 1), (16, 1))]
)
def test_a_picture_that_is_not_square_is_fitted_on_a_clear_ground(size, inner):
    alpha = to_pixels(encoded(size=size), 16)[3]
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    assert (len(columns), len(rows)) == inner
    assert abs(rows[0] + rows[-1] - 15) <= 1 and abs(columns[0] + columns[-1] - 15) <= 1  # in the middle


def test_no_colour_exceeds_its_alpha_after_resizing():
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (33, 21, 4), dtype=np.uint8)).save(out, "PNG")
    pixels = to_pixels(out.getvalue(), 16)
    assert (pixels[:3] <= pixels[3:]).all()


def test_the_colour_of_clear_pixels_does_not_bleed():
    picture = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (8, 8, 24, 24))
    out = io.BytesIO()
    picture.save(out, "PNG")
    assert to_pixels(out.getvalue(), 16)[0].max() == 0


@given(kind=st.sampled_from(["PNG", "WEBP", "JPEG"]), data=st.data())
def test_a_damaged_picture_is_read_or_refused_with_an_error_that_packing_knows(kind, data):
    good = encoded(size=(16, 12), colour=(200, 100, 50), kind=kind)
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        broken = good[:at]
    else:
        broken = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        assert to_pixels(broken, 8).shape == (4, 8, 8)


# Packing


def test_a_set_is_packed_once(tmp_path, monkeypatch):
    path, cache = shard(tmp_path / "a.tar", fruits()), tmp_path / "cache"
    first = pack(path, cache, size=8)
    monkeypatch.setattr("limner.train.data._pack", None)  # a second packing would fail
    again = pack(path, cache, size=8)
    assert len(again) == 4
    assert (again.words, again.digest, again.skipped) == (first.words, first.digest, ())
    assert again.words[2] == Words("002", "apple 2", ("fruit", "red"), "flat", "a", "train")
    assert np.array_equal(again.pixels, first.pixels)


def test_the_digest_is_of_keys_and_pixels_and_not_of_places(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    first = pack(shard(here / "a.tar", fruits()), tmp_path / "cache1", size=8)
    second = pack(shard(there / "b.tar", fruits()), tmp_path / "cache2", size=8)
    other = pack(shard(there / "c.tar", fruits(3)), tmp_path / "cache2", size=8)
    assert first.digest == second.digest != other.digest
    assert first.digest[:12] == "1ad24d9bf285"


def test_another_size_and_a_changed_file_are_packed_anew(tmp_path):
    path, cache = shard(tmp_path / "a.tar", fruits()), tmp_path / "cache"
    assert pack(path, cache, size=8).pixels.shape == (4, 4, 8, 8)
    assert pack(path, cache, size=4).pixels.shape == (4, 4, 4, 4)
    shard(path, fruits(6))
    assert len(pack(path, cache, size=8)) == 6


def test_a_changed_picture_in_a_folder_below_is_packed_anew(tmp_path):
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.png").write_bytes(encoded(colour=(0, 0, 0, 255)))
    (folder / "metadata.jsonl").write_text('{"file_name": "deep/one.png", "text": "one"}')
    before = pack(folder, tmp_path / "cache", size=8)
    (folder / "deep" / "one.png").write_bytes(encoded(size=(9, 9), colour=(255, 0, 0, 255)))
    assert pack(folder, tmp_path / "cache", size=8).digest != before.digest


def test_a_cache_inside_the_set_does_not_change_the_set(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "a.txt").write_text("a")
    for _ in range(2):
        pack(tmp_path, tmp_path, size=8)
    assert len(list(tmp_path.glob("pictures-*.u8"))) == 1


def test_what_is_bad_is_skipped_and_remembered(tmp_path):
    path = shard(tmp_path / "a.tar", {"x.png": b"no picture", "x.json": {"name": "x"}, "y.png": b"", **fruits()})
    for _ in range(2):
        pictures = pack(path, tmp_path / "cache", size=8)
        assert [words.key for words in pictures.words] == ["000", "001", "002", "003"]
        assert "a.tar: the picture of x cannot be read" in pictures.skipped[0]
        assert "y has .png but not both" in pictures.skipped[1]


def test_what_is_bad_stops_the_packing_where_that_is_asked_for(tmp_path):
    path = shard(tmp_path / "a.tar", {**fruits(), "x.png": b"no picture", "x.json": {"name": "x"}})
    with pytest.raises(BadData, match="the picture of x cannot be read"):
        pack(path, tmp_path / "cache", size=8, on_bad="stop")
    assert list((tmp_path / "cache").iterdir()) == []
    pack(path, tmp_path / "cache", size=8)
    with pytest.raises(BadData, match="the picture of x cannot be read"):  # packed before, and still not whole
        pack(path, tmp_path / "cache", size=8, on_bad="stop")


def test_a_set_without_pictures_is_refused(tmp_path):
    with pytest.raises(BadData, match="no picture with words was found"):
        pack(tmp_path, tmp_path / "cache", size=8)
    with pytest.raises(BadData, match=r"no picture with words was found in .*a.tar: a.tar: x has .json"):
        pack(shard(tmp_path / "a.tar", {"x.json": {}}), tmp_path / "cache", size=8)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_batch_is_in_the_unit_interval_in_the_order_asked_for(tmp_path):
    pictures = pack(shard(tmp_path / "a.tar", fruits()), tmp_path / "cache", size=8)
    batch = pictures.batch(torch.tensor([3, 0]))
    assert batch.shape == (2, 4, 8, 8) and batch.dtype == torch.float32
    assert batch[0, 0, 0, 0] == pytest.approx(30 / 255)
    assert (batch[1, 0] == 0).all() and (batch[:, 3] == 1).all()


def test_only_gives_the_rows_whose_words_pass(tmp_path):
    pictures = pack(shard(tmp_path / "a.tar", fruits()), tmp_path / "cache", size=8)
    assert pictures.only(lambda words: words.name != "apple 1").tolist() == [0, 2, 3]
    assert pictures.only(lambda words: words.name == "pear").dtype == torch.int64

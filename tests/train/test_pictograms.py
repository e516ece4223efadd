"""The pictograms from clones: tiny repositories with drawn pictures, and every ending that a picture can have."""

import hashlib
import io
import json
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.cli import main
from limner.errors import BadData, BadInput
from limner.train import pictograms
from limner.train.data import pack
from limner.train.drawn import decibels, draw, reduced
from limner.train.pictograms import Shards, find_clones, read_plan, rebuild

RED = '<rect x="2" y="2" width="4" height="4" fill="red"/>'
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{RED}</svg>'


def png(size: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 4), np.uint8)
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "PNG")
    return kept.getvalue()


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(
        ["git", "-C", folder, *words], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def commit(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "pictures")
    return git(folder, "rev-parse", "HEAD")


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, str]]:
    """Two clones whose checkouts have moved on, and a plan of seven pictures of them."""
    clones = tmp_path / "clones"
    tiles = {"a b.png": png(32), "other.png": png(32, 1), "broken.png": b"no picture"}
    first = commit(clones / "tiles", tiles)
    commit(clones / "tiles", {"a b.png": png(32, 9)})
    large = commit(clones / "owner" / "large", {"x/one.png": png(512, 2), "x/two.png": png(512, 3)})
    exact, one = draw("enlarged", tiles["a b.png"]), draw("reduced", png(512, 2))
    rows = [  # place, style, number, path, digest
        (4, "tile", 1, "a b.png", digest(exact)),
        (0, "tile", 2, "other.png", "0" * 64),
        (1, "tile", 3, "gone.png", "0" * 64),
        (2, "tile", 4, "broken.png", "0" * 64),
        (3, "large", 5, "x/one.png", digest(one)),
        (5, "large", 6, "x/two.png", "0" * 64),
    ]
    names = ("place", "style", "number", "path", "sha256")
    columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    columns |= {"name": ["thing é"] * 6, "keywords": [["a", "b"]] * 6, "emoji": [None] * 6, "concept": ["thing"] * 6}
    styles = {
        "tile": {"source": "who/tiles", "commit": first, "license": "CC0-1.0", "native_size": 32, "draw": "enlarged"},
        "large": {"source": "owner/large", "commit": large, "license": "MIT", "native_size": 512, "draw": "reduced"},
    }
    write_plan(tmp_path / "plan", {"shards": [["train-000", 4], ["val-000", 2]], "styles": styles, "pictures": columns})
    monkeypatch.setattr(pictograms, "PLAN", tmp_path / "plan" / "plan.json.xz")
    monkeypatch.setattr(pictograms.read_plan, "__defaults__", (pictograms.PLAN,))
    return clones, {"tiles": first, "large": large}


def write_plan(folder: Path, plan: dict[str, object]) -> None:
    folder.mkdir()
    content = lzma.compress(json.dumps(plan).encode())
    (folder / "plan.json.xz").write_bytes(content)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  plan.json.xz\n")


def ends(clones: Path, measure: Path | None = None) -> dict[str, str]:
    plan = read_plan()
    return {done.item.fields["key"]: done.end for done in rebuild(plan, find_clones(clones, plan.sources), measure)}


def test_every_ending(made):
    assert ends(made[0]) == {
        "tile-00001": "same",  # as it was at the commit, though another is checked out
        "tile-00002": "differs",  # enlarging rounds nothing
        "tile-00003": "missing",
        "tile-00004": "missing",
        "large-00005": "same",
        "large-00006": "anew",  # nothing to measure by
    }


def test_distances_are_measured_by_shards(made, tmp_path):
    """A shard with a nearly equal picture makes it near, one with another makes it differ."""
    plan = read_plan()
    last = next(item for item in plan.items if item.fields["key"] == "large-00006")
    for name, change, end in (("a", 1, "near"), ("b", 120, "differs")):
        pixels = draw("reduced", png(512, 3)).astype(int)
        pixels[..., :3] = np.where(pixels[..., :3] > 127, pixels[..., :3] - change, pixels[..., :3] + change)
        shards = Shards(plan, tmp_path / name)
        shards.add(pictograms.Rebuilt(last, "anew", pixels.astype(np.uint8)))
        shards.write()
        assert ends(made[0], tmp_path / name)["large-00006"] == end
    with pytest.raises(BadInput, match="holds no shards"):
        ends(made[0], tmp_path)


def test_the_command_tells_and_its_status_is_1(made, capsys):
    assert main(["data", "pictograms", "--sources", str(made[0])]) == 1
    told = capsys.readouterr().out
    assert "missing, 1: gone.png is not to be read at commit" in told and "differs: other.png" in told
    assert "drawn anew; not the same bytes" in told
    assert main(["data", "pictograms", "--sources", str(made[0]), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["counts"]["tile"] == {"same": 1, "differs": 1, "missing": 2}
    assert len(lines) == 7 and lines[0]["path"] and lines[0]["end"]


def test_shards_are_the_same_each_time_and_train_reads_them(made, tmp_path, capsys):
    for name in ("one", "two"):
        main(["data", "pictograms", "--sources", str(made[0]), "--out", str(tmp_path / name)])
    assert "these shards lack 2 of 6 pictures" in capsys.readouterr().out
    shards = sorted((tmp_path / "one").iterdir())
    assert [shard.name for shard in shards] == ["train-000.tar", "val-000.tar"]
    for shard in shards:
        assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()
    with tarfile.open(shards[1]) as tar:
        assert tar.getnames() == ["tile-00001.webp", "tile-00001.json", "large-00006.webp", "large-00006.json"]
        words = tar.extractfile("large-00006.json").read()
    fields = json.loads(words)
    assert fields["sha256"] == digest(draw("reduced", png(512, 3)))  # of what is there, not of what was
    assert words == json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
    packed = pack(tmp_path / "one", tmp_path / "cache")
    assert len(packed) == 4 and not packed.skipped and packed.words[0].split == "train"


def test_folders_that_cannot_serve(made, tmp_path):
    sources = read_plan().sources
    with pytest.raises(BadInput, match="is not a folder"):
        find_clones(tmp_path / "nowhere", sources)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no git repository; clone into it: who/tiles, owner/large"):
        find_clones(tmp_path / "empty", sources)
    commit(tmp_path / "wrong" / "tiles", {"new.png": png(32)})
    with pytest.raises(BadInput, match="tiles does not hold commit"):
        find_clones(tmp_path / "wrong", sources)


def test_one_clone_of_two_is_told_by_name(made, tmp_path):
    (made[0] / "owner").rename(tmp_path / "away")
    assert [end for key, end in ends(made[0]).items() if key.startswith("large")] == ["missing"] * 2
    found = find_clones(made[0], read_plan().sources)
    assert any(each == f"no clone of owner/large is in {made[0]}" for each in found.values())


def test_a_clone_is_known_by_its_commit_and_not_its_name(made):
    (made[0] / "tiles").rename(made[0] / "whatever")
    assert ends(made[0])["tile-00001"] == "same"


def test_without_git(made, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["data", "pictograms", "--sources", str(made[0])]) == 2
    assert "git is not installed" in capsys.readouterr().err


def test_a_changed_list_is_refused(made):
    pictograms.PLAN.write_bytes(pictograms.PLAN.read_bytes() + b"x")
    with pytest.raises(BadInput, match="is not the list"):
        read_plan()


def test_the_shipped_list():
    plan = read_plan(Path(pictograms.__file__).parents[1] / "data" / "pictograms" / "plan.json.xz")
    assert len(plan.items) == sum(count for _, count in plan.shards) == 21_429
    assert sorted(item.place for item in plan.items) == list(range(21_429))
    assert len(plan.sources) == 7 and len({item.fields["key"] for item in plan.items}) == 21_429
    assert {len(item.fields["sha256"]) for item in plan.items} == {64}


def test_a_library_that_is_not_there_is_named(made, monkeypatch):
    monkeypatch.setitem(pictograms.needs.__globals__["LIBRARIES"], "enlarged", ("no_such_library",))
    plan = read_plan()
    reasons = {done.reason for done in rebuild(plan, find_clones(made[0], plan.sources))}
    assert "no_such_library is not installed: pip install 'limner[data]'" in reasons


# ---- drawing


def test_pixels_stay_and_hidden_colour_is_black():
    picture = Image.new("RGBA", (128, 96), (9, 8, 7, 0))
    picture.putpixel((5, 0), (1, 2, 3, 4))
    kept = io.BytesIO()
    picture.save(kept, "PNG")
    found = draw("pixels", kept.getvalue())
    assert found.shape == (128, 128, 4) and found[16, 5].tolist() == [1, 2, 3, 4]
    assert found.sum() == 10


def test_enlarging_is_hard():
    found = draw("enlarged", png(32))
    assert (found == np.repeat(np.repeat(found[::4, ::4], 4, 0), 4, 1)).all()


def test_reducing_keeps_colour_at_soft_edges():
    """Half of a picture is red and half is clear red: colour does not darken towards the edge."""
    picture = Image.new("RGBA", (512, 512), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 254, 512))
    found = reduced(picture)
    soft = found[(found[..., 3] > 8) & (found[..., 3] < 250)]
    assert len(soft) and (soft[:, 0] == 255).all() and not soft[:, 1:3].any()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", png(300)])
def test_what_cannot_be_drawn(content):
    with pytest.raises(BadData, match="cannot be drawn"):
        draw("enlarged", content)


def test_distance():
    black, white = np.zeros((4, 4, 4), np.uint8), np.full((4, 4, 4), 255, np.uint8)
    black[..., 3] = 255
    assert decibels(black, black) == 100
    assert decibels(black, white) == 0


def test_vectors():
    pytest.importorskip("resvg_py")
    found = draw("vector", SVG.encode())
    assert found[64, 64].tolist() == [255, 0, 0, 255] and not found[10, 10].any()
    assert found[..., 3].sum() / 255 == pytest.approx(64 * 64, rel=0.01)
    with pytest.raises(BadData):
        draw("vector", b"<svg")
    latin = b'<?xml version="1.0" encoding="iso-8859-1"?>' + SVG.replace("<rect", "<!-- \xe9 --><rect").encode(
        "latin-1"
    )
    assert (draw("vector", latin) == found).all()


def test_silhouettes_lose_their_ground_and_are_black():
    pytest.importorskip("resvg_py")
    shape = '<path fill="#fff" d="M128 128h256v256H128z"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 512 512"><path d="M0 0h512v512H0z"/>{shape}</svg>'
    found = draw("silhouette", svg.encode())
    assert found[64, 64].tolist() == [0, 0, 0, 255] and not found[8, 8].any()


def test_glyphs():
    pytest.importorskip("resvg_py")
    builder = pytest.importorskip("fontTools.fontBuilder")
    pens = pytest.importorskip("fontTools.pens.ttGlyphPen")
    ttlib = pytest.importorskip("fontTools.ttLib")
    font = builder.FontBuilder(100)
    font.setupGlyphOrder([".notdef", "u1F34E"])
    font.setupCharacterMap({0x1F34E: "u1F34E"})
    font.setupGlyf({name: pens.TTGlyphPen(None).glyph() for name in (".notdef", "u1F34E")})
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "u1F34E"), (100, 0)))
    font.setupHorizontalHeader(ascent=80, descent=-20)
    font.setupPost()
    table = ttlib.newTable("SVG ")
    body = '<g id="glyph1"><rect x="10" y="-70" width="60" height="30" fill="#00f"/></g>'
    table.docList = [(f'<svg xmlns="http://www.w3.org/2000/svg">{body}</svg>', 1, 1)]
    font.font["SVG "] = table
    kept = io.BytesIO()
    font.save(kept)
    found = draw("glyph", kept.getvalue(), "u1F34E")
    rows, columns = np.nonzero(found[..., 3] > 127)
    edges = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
    assert edges == pytest.approx([4, 124, 34, 94], abs=1)  # 15/16 of the side, in the middle
    with pytest.raises(BadData, match="no glyph u2"):
        draw("glyph", kept.getvalue(), "u2")
    with pytest.raises(BadData):
        draw("glyph", b"no font", "u1F34E")

"""A sheet gives every picture back, bit for bit, through nothing but its atlas and its JSON."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limner.errors import BadInput
from limner.tasks.sheet import sheet, unique

RECT, SIZE = {"x": int, "y": int, "w": int, "h": int}, {"w": int, "h": int}
FRAME = {"frame": RECT, "rotated": bool, "trimmed": bool, "spriteSourceSize": RECT, "sourceSize": SIZE}
META = {"app": str, "version": str, "image": str, "format": str, "size": SIZE, "scale": str}


def checked(value, form) -> None:
    """The value has the keys of a form and no others, each of its type."""
    if isinstance(form, dict):
        assert isinstance(value, dict) and set(value) == set(form)
        for key, inner in form.items():
            checked(value[key], inner)
    else:
        assert type(value) is form


def rebuilt(told: dict, atlas: Image.Image) -> dict[str, Image.Image]:
    """The pictures of an atlas, cut out as the format says: the frame, placed in its source."""
    assert set(told) == {"frames", "meta"}
    checked(told["meta"], META)
    size = told["meta"]["size"]
    assert (size["w"], size["h"]) == atlas.size and told["meta"]["format"] == "RGBA8888"
    frames, found = told["frames"], {}
    if isinstance(frames, list):
        names = [frame.pop("filename") for frame in frames]
        assert len(set(names)) == len(names)
        frames = dict(zip(names, frames, strict=True))
    for name, frame in frames.items():
        checked(frame, FRAME)
        at, cut, source = frame["frame"], frame["spriteSourceSize"], frame["sourceSize"]
        assert not frame["rotated"] and (cut["w"], cut["h"]) == (at["w"], at["h"]) and at["w"] >= 1 <= at["h"]
        assert frame["trimmed"] == (cut != {"x": 0, "y": 0, **source})
        assert at["x"] + at["w"] <= size["w"] and at["y"] + at["h"] <= size["h"]
        whole = Image.new("RGBA", (source["w"], source["h"]))
        sprite = atlas.crop((at["x"], at["y"], at["x"] + at["w"], at["y"] + at["h"]))
        whole.paste(sprite, (cut["x"], cut["y"]))
        found[name] = whole
    return found


def spot(size: tuple[int, int], box: tuple[int, int, int, int], colour=(200, 30, 30, 128)) -> Image.Image:
    picture = Image.new("RGBA", size)
    picture.paste(colour, box)
    return picture


@st.composite
def sprites(draw) -> Image.Image:
    w, h = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    picture = Image.frombytes("RGBA", (w, h), draw(st.binary(min_size=4 * w * h, max_size=4 * w * h)))
    clear = draw(st.sampled_from(["nothing", "all", "left", "spots"]))
    if clear == "all":
        return Image.new("RGBA", (w, h))
    if clear == "left":
        picture.paste((0, 0, 0, 0), (0, 0, w // 2, h))
    if clear == "spots":
        picture.paste((0, 0, 0, 0), (w // 3, h // 3, w, h // 2))
    black = Image.new("RGBA", (w, h))  # as the pictures of models are where they are clear
    black.paste(picture, (0, 0), picture.getchannel("A").point(lambda a: 255 if a else 0))
    return black


@settings(max_examples=60, deadline=None)
@given(
    st.lists(sprites(), min_size=1, max_size=9), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2), st.booleans(),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_every_picture_comes_back(pictures, columns, padding, extrude, trim, power_of_two, array):
    made = sheet(pictures, [f"p{i}" for i in range(len(pictures))], columns, padding, trim, extrude, power_of_two)
    found = rebuilt(json.loads(json.dumps(made.fields(array=array))), made.atlas)
    assert list(found) == [f"p{i}" for i in range(len(pictures))]
    for picture, other in zip(pictures, found.values(), strict=True):
        assert picture.size == other.size and picture.tobytes() == other.tobytes()
    if power_of_two:
        assert all(side & (side - 1) == 0 for side in made.atlas.size)
    taken = Image.new("L", made.atlas.size)
    for frame in made.frames:  # with their borders they lie beside each other, `padding` apart and from the edge
        x, y, w, h = frame.at
        grown = (x - extrude, y - extrude, x + w + extrude, y + h + extrude)
        wide = (grown[0] - padding, grown[1] - padding, grown[2] + padding, grown[3] + padding)
        assert min(wide[:2]) >= 0 and wide[2] <= made.atlas.width and wide[3] <= made.atlas.height
        assert taken.crop(wide).getbbox() is None
        taken.paste(255, grown)


def test_columns_keep_the_order_and_a_sprite_is_trimmed():
    pictures = [spot((16, 16), (4, 6, 10, 9)), spot((16, 16), (0, 0, 16, 16)), spot((8, 8), (7, 7, 8, 8))]
    made = sheet(pictures, ["a", "b", "c"], columns=2, padding=2)
    assert [frame.at for frame in made.frames] == [(2, 2, 6, 3), (10, 2, 16, 16), (2, 20, 1, 1)]
    assert [frame.cut for frame in made.frames] == [(4, 6, 6, 3), (0, 0, 16, 16), (7, 7, 1, 1)]
    assert made.atlas.size == (28, 23)
    told = made.fields("icons.png")
    assert told["meta"]["image"] == "icons.png" and told["meta"]["app"] == "limner" and told["meta"]["scale"] == "1"
    assert [frame["trimmed"] for frame in told["frames"].values()] == [True, False, True]


def test_a_picture_that_is_all_clear_keeps_one_pixel():
    made = sheet([Image.new("RGBA", (30, 20))], ["nothing"])
    assert made.frames[0].at[2:] == (1, 1) and made.frames[0].size == (30, 20)
    assert made.atlas.size == (5, 5) and made.atlas.getbbox() is None


def test_extruded_borders_repeat_the_outermost_pixels():
    picture = Image.new("RGBA", (2, 1))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 255, 255))
    atlas = sheet([picture], ["a"], padding=0, extrude=2).atlas
    assert atlas.size == (6, 5)
    for y in range(5):
        assert [atlas.getpixel((x, y))[0] for x in range(6)] == [255, 255, 255, 0, 0, 0]


def test_shelves_waste_little():
    pictures = [spot((8 + i % 5, 8 + i % 7), (0, 0, 99, 99), (9, 9, 9, 255)) for i in range(100)]
    made = sheet(pictures, ["a"] * 100, padding=0)
    used = sum(picture.width * picture.height for picture in pictures)
    assert used / (made.atlas.width * made.atlas.height) > 0.85


def test_names_are_safe_and_unique():
    names = ["a cat!", "A Cat", "a/../b", "", "__proto__", "7", "7", "猫", "icon.png", "e\u0301", "\u00e9", "a" * 300]
    found = unique(names)
    assert found[:9] == ["a-cat", "A-Cat-2", "a-..-b", "frame", "proto", "frame-7", "frame-7-2", "猫", "icon.png"]
    assert found[9:11] == ["\u00e9", "\u00e9-2"] and len(found[11]) == 100


def test_a_pivot_is_told_to_both_engines():
    frame = sheet([spot((4, 4), (0, 0, 4, 4))], ["a"], pivot=(0.5, 1.0)).fields()["frames"]["a"]
    assert frame["pivot"] == frame["anchor"] == {"x": 0.5, "y": 1.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"names": ["a", "b"]}, "a name for each"), ({"columns": -1}, "columns should be 0 or more, not -1"),
     ({"padding": 9000}, "graphics cards take 16384"), ({"pivot": (0.5, 2.0)}, "pivot should be two shares"),
     ({"pictures": [], "names": []}, "needs pictures")],
)  # fmt: skip
def test_what_makes_no_sheet_is_refused(wrong, said):
    with pytest.raises(BadInput, match=said):
        sheet(**{"pictures": [Image.new("RGBA", (4, 4))], "names": ["a"]} | wrong)


@pytest.mark.parametrize("array", [False, True])
def test_a_saved_sheet_is_read_back_from_its_files(array, tmp_path: Path):
    picture = spot((9, 9), (2, 3, 5, 5))
    (tmp_path / "icons-2.json").write_text("somebody's")
    for name in ("icons.png", "icons-3.png"):
        path, told = sheet([picture], ["dot"]).save(tmp_path / "icons.png", array)
        assert path == tmp_path / name and told == path.with_suffix(".json")
        with Image.open(path) as atlas:
            fields = json.loads(told.read_text("utf-8"))
            assert fields["meta"]["image"] == name
            assert rebuilt(fields, atlas)["dot"].tobytes() == picture.tobytes()
    (tmp_path / "icons.json").unlink()
    assert sheet([picture], ["dot"]).save(tmp_path / "icons.png")[0].name == "icons-4.png"
    assert (tmp_path / "icons-2.json").read_text() == "somebody's" and not list(tmp_path.glob(".*"))
    with pytest.raises(BadInput, match="keeps clear ground"):
        sheet([picture], ["dot"]).save(tmp_path / "icons.jpg")

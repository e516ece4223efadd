"""What is laid on a board stands in its place, clear ground shows as checks, and words fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from limner.board import (
    CHECKS,
    PLACES,
    contact_sheet,
    face,
    labelled_grid,
    legible,
    overlay,
    shown,
    side_by_side,
    wrapped,
)
from limner.errors import BadInput, UnknownName


def square(colour: str, side: int = 64) -> Image.Image:
    return Image.new("RGBA", (side, side), colour)


def box_of(board: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """Where a colour is found."""
    mask = Image.new("L", board.size)
    mask.putdata([255 * (pixel == colour) for pixel in board.get_flattened_data()])
    return mask.getbbox()


RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def test_pictures_stand_in_rows_of_so_many_columns():
    sheet = contact_sheet([square("red"), square("blue"), square("lime")], ["a", "b", "c"], columns=2)
    red, blue, lime = box_of(sheet, RED), box_of(sheet, BLUE), box_of(sheet, LIME)
    assert red and blue and lime and [box[2] - box[0] for box in (red, blue, lime)] == [64] * 3
    assert red[1] == blue[1] < lime[1] and red[0] == lime[0] < blue[0]
    assert contact_sheet([square("red")] * 12).width > contact_sheet([square("red")] * 12, columns=3).width


def test_large_pictures_are_made_smaller_and_small_ones_are_not():
    assert box_of(contact_sheet([square("red", 300)], side=50), RED)[2:] != box_of(contact_sheet([square("red")]), RED)
    assert shown(square("red", 300), 50).size == (50, 50) and shown(square("red", 30), 50).size == (30, 30)
    assert shown(Image.new("L", (9, 4))).mode == "RGB"


def test_sixteen_bits_are_scaled_and_not_cut_off():
    assert shown(Image.new("I;16", (2, 2), 0x8000)).getpixel((0, 0)) == (128, 128, 128)


def test_checks_show_where_a_picture_is_clear():
    found = shown(Image.new("RGBA", (32, 32), (255, 0, 0, 0)))
    assert {pixel for _, pixel in found.getcolors()} == set(CHECKS)
    assert [found.getpixel(at) for at in ((0, 0), (8, 0), (0, 8), (8, 8))] == [
        CHECKS[0],
        CHECKS[1],
        CHECKS[1],
        CHECKS[0],
    ]
    half = shown(Image.new("RGBA", (32, 32), (0, 0, 0, 128)))
    assert half.getpixel((0, 0)) == (127, 127, 127)
    solid = Image.new("RGB", (32, 32), "red")
    assert shown(solid).getcolors() == [(1024, (255, 0, 0))]


def test_a_grid_has_labels_and_may_have_gaps():
    bare = labelled_grid([[square("red"), square("blue")], [None, square("lime")]], ["", ""], ["", ""])
    told = labelled_grid([[square("red"), square("blue")], [None, square("lime")]], ["one", "two"], ["a", "b"], "Title")
    assert told.width > bare.width and told.height > bare.height
    red, blue, lime = (box_of(told, colour) for colour in (RED, BLUE, LIME))
    assert red[1] == blue[1] and blue[0] == lime[0] and lime[1] > red[3]
    with pytest.raises(BadInput, match="a label for each row and column"):
        labelled_grid([[square("red")]], ["a"], ["b", "c"])


def test_a_board_that_no_file_holds_is_refused():
    tall = Image.new("RGB", (1, 40_000))
    with pytest.raises(BadInput, match="at most 65000"):
        labelled_grid([[tall], [tall]], ["", ""], [""])
    with pytest.raises(BadInput, match="at most 65000"):
        side_by_side([tall, tall], stacked=True)
    assert side_by_side([square("red"), square("blue", 20)]).size == (84, 64)
    assert side_by_side([square("red"), square("blue", 20)], stacked=True).size == (64, 84)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(30, 300), st.integers(1, 4))
def test_words_fit_their_width(text, width, lines):
    font = face(13)
    found = wrapped(text, font, width, lines)
    assert len(found) <= lines and all(found)
    assert all(font.getlength(line) <= width for line in found)
    whole = legible(text, font).replace(" ", "")
    said = "".join(found).replace(" ", "")
    assert said == whole or (said.endswith("…") and whole.startswith(said[:-1]))


def test_words_break_at_spaces_and_end_in_an_ellipsis():
    font = face(12)
    width = font.getlength("a red apple")
    assert wrapped("a red apple on a table", font, width, 3) == ["a red apple", "on a table"]
    assert wrapped("a red apple on a table", font, width, 1) == ["a red app…"]
    assert wrapped(" \n ", font, width) == []
    assert len(wrapped("x" * 40_000, font, width, 3)) == 3


def test_letters_that_the_font_lacks_lose_their_accents_or_stay():
    font = face(14)
    assert legible("niño — Zoë\n5 × 3", font) == "nino - Zoe 5 x 3"
    assert legible("猫\u200b\x1b[2J", font) == "猫[2J"


def test_a_font_of_the_users_own(tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(BadInput, match=r"bad.ttf cannot be read as a font"):
        face(12, tmp_path / "bad.ttf")
    with pytest.raises(BadInput, match=r"gone.ttf cannot be read as a font"):
        contact_sheet([square("red")], ["a"], font=tmp_path / "gone.ttf")
    (tmp_path / "own.ttf").write_bytes(ImageFont.load_default(12).font_bytes)
    assert abs(face(12, tmp_path / "own.ttf").getlength("abc") - face(12).getlength("abc")) < 2  # laid out otherwise
    contact_sheet([square("red")], ["a"], font=tmp_path / "own.ttf")


@pytest.mark.parametrize("at", PLACES)
def test_a_logo_stands_where_it_is_told(at):
    made = overlay(Image.new("RGBA", (300, 200), "white"), square("red", 40), at=at, margin=10, size=20)
    row, column = at.split()
    x = {"left": 10, "centre": 140, "right": 270}[column]
    y = {"top": 10, "middle": 90, "bottom": 170}[row]
    assert box_of(made.convert("RGB"), RED) == (x, y, x + 20, y + 20) and made.size == (300, 200)


@pytest.mark.parametrize(("ground", "ink", "rim"), [("white", 16, 255), ("black", 255, 16), ("#999999", 16, 255)])
def test_words_are_seen_on_any_ground(ground, ink, rim):
    made = overlay(Image.new("RGB", (300, 200), ground), None, "Sale", size=60)
    counts = {pixel[0]: count for count, pixel in made.getcolors(60_000)}
    assert counts[ink] > 100 and counts[rim] > 100


def test_words_have_the_colour_that_is_asked_for_and_stay_inside():
    made = overlay(
        Image.new("RGBA", (200, 60)), square("red", 30), "so many words that they do not fit " * 9, colour="#0000ff"
    )
    assert made.size == (200, 60)
    assert any(b > 150 > 90 > r and alpha == 255 for r, _, b, alpha in made.get_flattened_data())
    left, top, right, bottom = made.getchannel("A").getbbox()
    assert left >= 2 and top >= 2 and right <= 198 and bottom <= 58
    clear = overlay(square("red"), None, "")
    assert clear.tobytes() == square("red").tobytes()


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [({"at": "botom left"}, UnknownName, "did you mean bottom left"), ({"at": "top bottom"}, UnknownName, "no place"),
     ({"at": ""}, UnknownName, "no place"), ({"colour": "rde"}, BadInput, "'rde' is no colour"),
     ({"margin": 40}, BadInput, "leaves no room")],
)  # fmt: skip
def test_what_cannot_be_laid_over_is_refused(wrong, kind, said):
    with pytest.raises(kind, match=said):
        overlay(square("red"), None, "words", **wrong)


@pytest.mark.parametrize("at", ["Bottom-Right", "right bottom", "bottom_right"])
def test_places_have_several_spellings(at):
    plain = overlay(square("red"), square("blue"), at="bottom right")
    assert overlay(square("red"), square("blue"), at=at).tobytes() == plain.tobytes()
    assert overlay(square("red"), square("blue"), at="center").tobytes() != plain.tobytes()

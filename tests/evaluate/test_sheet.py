"""Sheets are white where pictures are clear, and each picture stands in its place."""

import torch

from limner.evaluate.sheet import GAP, LEFT, Strip, Tile, draw_sheet


def test_pictures_stand_in_rows_and_columns_on_white():
    red = torch.zeros(4, 32, 32)
    red[[0, 3]] = 1
    clear = torch.zeros(4, 32, 32)
    strips = [Strip("red first, and a prompt that takes two lines", [Tile(red), Tile(clear)]), Strip("", [Tile(clear)])]
    sheet = draw_sheet("A title", ["one", "two"], strips)
    assert sheet.size == (LEFT + 2 * (32 + GAP) + GAP, 64 + 2 * (32 + GAP) + GAP)
    assert sheet.getpixel((LEFT + 5, 64 + 5)) == (255, 0, 0)
    assert sheet.getpixel((LEFT + 32 + GAP + 5, 64 + 5)) == (255, 255, 255)


def test_words_under_a_picture_make_room():
    picture = torch.zeros(4, 32, 32)
    plain = draw_sheet("", [], [Strip("", [Tile(picture)])])
    told = draw_sheet("", [], [Strip("", [Tile(picture, ("a very long name of a picture", "second"))])])
    assert told.height == plain.height + 28

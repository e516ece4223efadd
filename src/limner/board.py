"""Pictures side by side on a white board, with words; and a logo or words laid over a picture."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from limner.errors import BadInput, UnknownName

PAPER, INK, FAINT, LINE = (255, 255, 255), (38, 38, 38), (115, 115, 115), (226, 226, 226)
CHECKS = ((255, 255, 255), (236, 236, 236))  # what is seen through clear pixels
CHECK = 8  # pixels, the side of a square of them
SMALLEST = 64  # pixels, the width of a column: a word of a label fits
LONGEST = 65_000  # pixels, the side of a board; a JPEG holds no more
SPELT = str.maketrans("–—−×‘“”„", '---x\'"""')  # signs of good typesetting that Pillow's font lacks
MISSING = "\U0010ffff"  # no font has it, so it shows what a font draws for letters that it lacks
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@functools.lru_cache(maxsize=64)
def face(size: int, file: Path | None = None) -> Font:
    """Letters of a size in pixels, from a font file or, without one, from the font that Pillow carries (Latin)."""
    if file is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(str(file), size)
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read as a font: {error}") from error


def legible(text: str, font: Font) -> str:
    """The text in what the font has: where it lacks an accent or a dash, without; any other letter shows as a box."""
    marks = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(_letter(mark, font) for mark in marks if unicodedata.category(mark) not in ("Cc", "Cf", "Cs"))


@functools.lru_cache(maxsize=4096)
def _letter(mark: str, font: Font) -> str:
    base = unicodedata.normalize("NFKD", mark)[0].translate(SPELT)
    return base if base != mark and _lacks(mark, font) and not _lacks(base, font) else mark


def _lacks(mark: str, font: Font) -> bool:
    seen, box = font.getmask(mark), font.getmask(MISSING)
    return seen.size == box.size and bytes(seen) == bytes(box)


def wrapped(text: str, font: Font, width: float, lines: int = 3) -> list[str]:
    """Lines that fit a width; what does not fit the last of them is cut, with an ellipsis."""
    left = legible(text, font)
    found: list[str] = []
    while left and len(found) < lines:
        end = _fitting(left, font, width)
        if end < len(left) and (space := left.rfind(" ", 1, end + 1)) > 0:
            end = space
        found.append(left[:end].rstrip())
        left = left[end:].lstrip()
    if left:
        last = f"{found[-1]} {left}"
        end = max(1, _fitting(last, font, width - font.getlength("…")))
        found[-1] = last[:end].rstrip() + "…"
    return found


def _fitting(text: str, font: Font, width: float) -> int:
    """How many letters fit, at least one; by halving, for a prompt may have thousands."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def shown(picture: Image.Image, side: int = 0) -> Image.Image:
    """The picture in RGB with checks behind what is clear; no side longer than `side`, where that is not 0."""
    if picture.mode.startswith("I;16"):  # Pillow would cut sixteen bits off at 255
        picture = picture.point(lambda value: value / 256).convert("L")
    image = picture.convert("RGBA")
    if side and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)  # Pillow premultiplies alpha for it
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(checks(*image.size), image).convert("RGB")


@functools.lru_cache(maxsize=4)
def checks(width: int, height: int) -> Image.Image:
    """The ground that says "clear", RGBA."""
    across, down = math.ceil(width / CHECK), math.ceil(height / CHECK)
    pattern = bytes((x + y) % 2 for y in range(down) for x in range(across))
    squares = Image.frombytes("L", (across, down), pattern).resize((across * CHECK, down * CHECK), Image.Resampling.BOX)
    light, dark = (Image.new("RGBA", (width, height), colour) for colour in CHECKS)
    return Image.composite(dark, light, squares.crop((0, 0, width, height)).point(lambda square: 255 * square))


def contact_sheet(
    pictures: Sequence[Image.Image],
    labels: Sequence[str] = (),
    columns: int = 0,
    title: str = "",
    side: int = 256,
    font: Path | None = None,
) -> Image.Image:
    """Pictures in rows, a label under each; without a number of columns, about as wide as high."""
    if not pictures:
        raise BadInput("a contact sheet needs a picture")
    if columns < 0 or side < 1:
        raise BadInput(f"a contact sheet has columns and a side of 1 or more, not {columns} and {side}")
    small = [shown(picture, side) for picture in pictures]
    across = min(len(small), columns or math.ceil(math.sqrt(len(small) * 1.2)))
    words = [*labels, *[""] * (len(small) - len(labels))]
    rows = [small[i : i + across] for i in range(0, len(small), across)]
    under = [words[i : i + across] for i in range(0, len(small), across)]
    return _board(rows, [""] * len(rows), [""] * across, under, title, font)


def labelled_grid(
    cells: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    side: int = 0,
    font: Path | None = None,
) -> Image.Image:
    """Rows of pictures with a label before each row and above each column; None leaves a cell empty.

    With a `side`, pictures are shown no larger than that.
    """
    if (
        not cells
        or not cells[0]
        or {len(row) for row in cells} != {len(column_labels)}
        or len(cells) != len(row_labels)
    ):
        raise BadInput("a grid needs a label for each row and column, and a picture or None in each cell")
    rows = [[None if cell is None else shown(cell, side) for cell in row] for row in cells]
    return _board(rows, row_labels, column_labels, [], title, font)


def _board(
    rows: Sequence[Sequence[Image.Image | None]],
    before: Sequence[str],
    above: Sequence[str],
    under: Sequence[Sequence[str]],
    title: str,
    file: Path | None,
) -> Image.Image:
    """The drawing itself: words before rows, above columns and under pictures, each where there are any."""
    across = len(above)
    widths = [max([SMALLEST, *(cell.width for row in rows for cell in row[i : i + 1] if cell)]) for i in range(across)]
    heights = [max([1, *(cell.height for cell in row if cell)]) for row in rows]
    size = min(40, max(12, round(max(*widths, *heights) / 18)))  # pixels: letters grow with the pictures
    font, large, step, gap = face(size, file), face(round(size * 1.4), file), round(size * 1.3), size
    head = [wrapped(text, font, width) for text, width in zip(above, widths, strict=True)]
    told = [[wrapped(text, font, width, 2) for text, width in zip(row, widths, strict=False)] for row in under]
    side = min(14 * size, max((font.getlength(legible(text, font)) for text in before), default=0))
    left = [wrapped(text, font, side, 6) for text in before]
    below = [step * max(map(len, row)) + gap // 2 for row in told] or [0] * len(rows)
    heights = [max(height, step * len(words)) for height, words in zip(heights, left, strict=True)]
    start = gap + (math.ceil(side) + gap if any(left) else 0)
    wide = start + sum(widths) + gap * across
    name = wrapped(title, large, wide - 2 * gap, 2)
    top = gap + (round(step * 1.4) * len(name) + gap // 2 if name else 0)
    first = top + (step * max(map(len, head)) + gap // 2 if any(head) else 0)
    high = first + sum(heights) + sum(below) + gap * len(rows)
    if max(wide, high) > LONGEST:
        raise BadInput(f"the board would have {wide} x {high} pixels; at most {LONGEST} a side are drawn")

    board = Image.new("RGB", (wide, high), PAPER)
    pen = ImageDraw.Draw(board)
    _lines(pen, name, gap, gap, round(step * 1.4), large, INK, "la")
    columns = [start + sum(widths[:i]) + gap * i for i in range(across)]
    for x, width, words in zip(columns, widths, head, strict=True):
        _lines(pen, words, x + width / 2, first - gap // 2 - step * len(words), step, font, INK, "ma")
    y = first
    for i, row in enumerate(rows):
        _lines(pen, left[i], start - gap, y + (heights[i] - step * len(left[i])) / 2, step, font, INK, "ra")
        for j, (x, width, cell) in enumerate(zip(columns, widths, row, strict=False)):
            if cell:
                at = (x + (width - cell.width) // 2, y + (heights[i] - cell.height) // 2)
                pen.rectangle((at[0] - 1, at[1] - 1, at[0] + cell.width, at[1] + cell.height), outline=LINE)
                board.paste(cell, at)
            if told:
                _lines(pen, told[i][j], x + width / 2, y + heights[i] + gap // 3, step, font, FAINT, "ma")
        y += heights[i] + below[i] + gap
    return board


def _lines(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], x: float, y: float, step: int, font: Font,
    ink: tuple[int, int, int], anchor: str,
) -> None:  # fmt: skip
    for i, line in enumerate(lines):
        pen.text((round(x), round(y) + i * step), line, ink, font, anchor=anchor)


def side_by_side(boards: Sequence[Image.Image], stacked: bool = False) -> Image.Image:
    """Boards in one row, or one below another."""
    if not boards:
        raise BadInput("there is no board to lay beside another")
    wide, high = [board.width for board in boards], [board.height for board in boards]
    size = (max(wide), sum(high)) if stacked else (sum(wide), max(high))
    if max(size) > LONGEST:
        raise BadInput(f"the board would have {size[0]} x {size[1]} pixels; at most {LONGEST} a side are drawn")
    whole = Image.new("RGB", size, PAPER)
    for i, board in enumerate(boards):
        whole.paste(board, (0, sum(high[:i])) if stacked else (sum(wide[:i]), 0))
    return whole


def overlay(
    image: Image.Image,
    logo: Image.Image | None = None,
    text: str = "",
    at: str = "bottom right",
    margin: int = -1,
    size: int = 0,
    colour: str = "",
    font: Path | None = None,
) -> Image.Image:
    """The picture, RGBA, with a logo and words after it laid over.

    `size` is the height of the logo and `margin` the way to the border, in pixels; 0 and -1: an eighth and a
    twenty-fifth of the shorter side. Words are half as high as the logo. Without a colour they are white on dark and
    black on light ground; a thin line of the other around them keeps them legible on both.
    """
    row, column = place(at)
    picture = image.convert("RGBA")
    short = min(picture.size)
    margin = round(short / 25) if margin < 0 else margin
    size = size or max(24 if text else 8, round(short / 8))  # words of 12 pixels can be read
    room = (picture.width - 2 * margin, picture.height - 2 * margin)
    if min(room) < 1:
        raise BadInput(f"a margin of {margin} pixels leaves no room in {picture.width} x {picture.height}")
    mark = _scaled(logo.convert("RGBA"), size) if logo else Image.new("RGBA", (0, 0))
    gap = size // 4 if logo and text else 0
    lines, letters, line = _fit_words(text, size, room[0] - mark.width - gap, font)
    edge = max(1, line // 16) if lines else 0
    words = (math.ceil(max(map(letters.getlength, lines), default=0)) + 2 * edge, line * len(lines) + 2 * edge)
    block = Image.new("RGBA", (mark.width + gap + words[0], max(mark.height, words[1])))
    scale = min(1.0, room[0] / max(1, block.width), room[1] / max(1, block.height))
    wide, high = max(1, round(block.width * scale)), max(1, round(block.height * scale))
    x = (margin, (picture.width - wide) // 2, picture.width - margin - wide)[column]
    y = (margin, (picture.height - high) // 2, picture.height - margin - high)[row]
    block.paste(mark, (0, (block.height - mark.height) // 2))
    ink, rim = _inks(colour, picture.crop((x, y, x + wide, y + high)))
    pen = ImageDraw.Draw(block)
    for i, words_ in enumerate(lines):
        spot = (mark.width + gap + edge, (block.height - words[1]) // 2 + edge + i * line)
        pen.text(spot, words_, ink, letters, stroke_width=edge, stroke_fill=rim)
    if scale < 1:
        block = block.resize((wide, high), Image.Resampling.LANCZOS)
    over = Image.new("RGBA", picture.size)
    over.paste(block, (x, y))
    return Image.alpha_composite(picture, over)


def place(at: str) -> tuple[int, int]:
    """Which third of the height and of the width a name means: "bottom right", "Top-Left", "center"."""
    words = at.lower().replace("-", " ").replace("_", " ").replace("center", "centre").split()
    row = [i for i, name in enumerate(ROWS) if name in words]
    column = [i for i, name in enumerate(COLUMNS) if name in words]
    known = all(word in ROWS + COLUMNS for word in words)
    if not words or not known or len(row) > 1 or len(column) > 1 or len(words) > 2:
        raise UnknownName("place", at, PLACES)
    return (row or [1])[0], (column or [1])[0]


def _scaled(image: Image.Image, high: int) -> Image.Image:
    return image.resize((max(1, round(image.width * high / image.height)), high), Image.Resampling.LANCZOS)


def _fit_words(text: str, size: int, width: float, file: Path | None) -> tuple[list[str], Font, int]:
    """Lines of words half as high as a size, the letters for them and the pixels from line to line."""
    high = max(8, size // 2)
    letters = face(high, file)
    return wrapped(text, letters, max(high, width - high // 3), 4), letters, round(high * 1.25)


def _inks(colour: str, ground: Image.Image) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The colour of words and of the line around them."""
    black, white = (16, 16, 16), (255, 255, 255)
    if colour:
        try:
            ink = ImageColor.getcolor(colour, "RGB")
        except ValueError as error:
            raise BadInput(f"{colour!r} is no colour; white, #ffcc00 and rgb(255, 204, 0) are") from error
        assert isinstance(ink, tuple)
        return (ink[0], ink[1], ink[2]), black if _light(ink) > 0.5 else white
    seen = Image.alpha_composite(Image.new("RGBA", ground.size, "white"), ground).convert("RGB")
    mean = seen.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(mean, tuple)
    return (black, white) if _light(mean) > 0.5 else (white, black)


def _light(colour: tuple[int, ...]) -> float:
    """Luma of Rec. 601, 0 to 1."""
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255

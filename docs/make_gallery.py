"""Write docs/gallery.md and its pictures: `python docs/make_gallery.py`, or `--only NAME ...` for some of its sections.

Each command goes through the command line's own main(), in a temporary folder that all of them share. With --only,
sections whose files a named one starts from are run too; all others stay as they are on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PAGE = Path(__file__).with_name("gallery.md")
PICTURES = Path(__file__).with_name("img") / "gallery"
SIDE = 256  # pixels of a picture's longer side on the page
COLOURS = 256  # of a board: a palette keeps the whole gallery small, and flat pictures do not show it
GREYS = 64  # of these: words, squares and maps stay without a tint
HEAD = """# Gallery

Made by `python docs/make_gallery.py`: every command below was run as it stands, in the order of the page, with the
small model that ships, and each starts from files that earlier ones made. **Seeds and prompts were chosen** because
they show what a command does; [a sheet where nothing was chosen](img/sheet.png) shows what the model paints otherwise.
It is small, and was trained for hours, not days, on pictograms of 128 x 128 pixels: faces, hearts and cats come out,
much else does not.

Squares behind a picture mean that it is clear there. Seconds are left out of what was printed.
"""
TAIL = """## With published networks

ControlNets, T2I-Adapters, IP-Adapters and networks of the ESRGAN family belong to checkpoints that are not shipped, so
there is no picture of them here; this is what one types:

```sh
limner paint "a castle" -m sd15.safetensors --control canny.safetensors=canny:photo.jpg:0.8:0-0.6
limner paint "a castle" -m sd15.safetensors --control t2i-sketch.safetensors=sketch.png
limner paint "a castle" -m sdxl.safetensors --look ip-adapter.safetensors,eyes.safetensors=photo.jpg:0.6
limner upscale photo.jpg "a castle" -m sd15.safetensors --upscaler realesrgan.safetensors --scale 4
```

[pictures.md](pictures.md) says how they work.
"""
MASK = """from PIL import Image, ImageDraw

mask = Image.new("L", (128, 128))  # black: stays as it is
ImageDraw.Draw(mask).ellipse((34, 70, 94, 108), fill="white")
mask.save("mask.png")
"""
TEAL = """from PIL import Image

import limner

model = limner.load("mini")
cat = limner.to_pil(limner.paint(model, limner.begin(model, prompt="cat face", seed=0))[0])
ground = Image.new("RGBA", cat.size, "teal")
ground.alpha_composite(cat)
ground.convert("RGB").save("on-teal.jpg", quality=90)
"""
CARDS = """name,feeling,thing,seed,text
grin,smiling,face,0,Hello!
laugh,,face with tears of joy,3,Ha ha ha
cat,,cat face,0,Meow
blue,blue,cat face,2,Feeling blue
heart,red,heart,13,With love
night,,full moon,2,Good night
"""

Draw = Callable[[], Image.Image]


@dataclass(frozen=True)
class Section:
    name: str  # of its picture, and for --only
    title: str
    says: str
    lines: Sequence[str]  # as they are typed
    draw: Draw | None = None  # the board of what was made, in the folder where it was
    film: str = ""  # a file that is shown as it is
    told: bool = False  # whether what was printed is shown
    code: str = ""  # Python that makes a file first
    table: tuple[str, str] = ("", "")  # a file that lies there first: its name and text
    frame: str = ""  # a sprite sheet's JSON, of which the first frame is shown
    needs: Sequence[str] = ()  # sections whose files it starts from


def opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def row(*named: tuple[str, str], columns: int = 0, side: int = SIDE) -> Draw:
    """A board of files with their labels."""
    from limner.board import contact_sheet

    def draw() -> Image.Image:
        files, labels = zip(*named, strict=True)
        return contact_sheet([opened(file) for file in files], labels, columns or len(named), side=side)

    return draw


def folder(*rows: tuple[str, str], above: Sequence[str] = ()) -> Draw:
    """A grid: a pattern of files and a label for each row."""
    from limner.board import labelled_grid

    def draw() -> Image.Image:
        found = [[opened(file) for file in sorted(Path().glob(pattern))] for pattern, _ in rows]
        return labelled_grid(found, [label for _, label in rows], above or [""] * len(found[0]))

    return draw


def as_made(file: str) -> Draw:
    return lambda: opened(file)


SECTIONS = (
    Section(
        "paint",
        "Paint",
        "Pictures from words; each prompt begins at the seed that is given, and what is not there is clear.",
        (
            'limner paint "smiling face with a hat" "red heart" "a house at night" "cat face" --count 4 '
            "--seed 0 -o painted",
            'limner paint "smiling face" --seed 0 -o face.png',
        ),
        folder(
            ("painted/smiling-*.png", "smiling face with a hat"),
            ("painted/red-*.png", "red heart"),
            ("painted/a-house-*.png", "a house at night"),
            ("painted/cat-*.png", "cat face"),
            above=("seed 0", "seed 1", "seed 2", "seed 3"),
        ),
    ),
    Section(
        "show",
        "Show what a picture carries",
        "Every picture carries the recipe that repeats it, and the mark that a trained model made it.",
        ("limner show face.png",),
        told=True,
        needs=("paint",),
    ),
    Section(
        "regions",
        "Words for parts of a picture",
        "Each region has words of its own; a fifth of the whole picture's words stays in them.",
        (
            'limner paint "heart" --region "left:0-0.5 red heart" --region "right:0-0.5 blue heart" --seed 1 '
            "-o two-hearts.png",
            'limner paint "" --region "top:0-0.45 black top hat" --region "bottom:0-0.6 blue cat face" --seed 2 '
            "-o hat-cat.png",
        ),
        row(("two-hearts.png", "left red, right blue"), ("hat-cat.png", "hat above, cat below")),
    ),
    Section(
        "hires",
        "Paint in two passes",
        "The picture is painted at the size that the model knows, enlarged, and painted over at the larger one.",
        ('limner paint "smiling face" --seed 0 --hires 2 -o face-hires.png',),
        row(("face.png", "without"), ("face-hires.png", "--hires 2")),
        needs=("paint",),
    ),
    Section(
        "edit",
        "Edit",
        "A picture changed by words; strength 0 gives it back, 1 starts from noise.",
        (
            'limner edit face.png "blue cat face" --strength 0.4 --seed 0 -o edit-4.png',
            'limner edit face.png "blue cat face" --strength 0.8 --seed 0 -o edit-8.png',
            'limner edit face.png "blue cat face" --strength 0.95 --seed 0 -o edit-95.png',
        ),
        row(
            ("face.png", "before"),
            ("edit-4.png", "strength 0.4"),
            ("edit-8.png", "strength 0.8"),
            ("edit-95.png", "strength 0.95"),
        ),
        needs=("paint",),
    ),
    Section(
        "inpaint",
        "Inpaint a rectangle",
        "A part painted anew: x, y, width and height in pixels; every byte outside of it and its feathered border "
        "stays.",
        ('limner inpaint face.png "smiling face with a hat" --mask 16,0,96,48 --seed 2 -o top-hat.png',),
        row(("face.png", "before"), ("top-hat.png", "after")),
        needs=("paint",),
    ),
    Section(
        "mask",
        "Inpaint by a mask",
        "A mask is a picture of the same size, white where to paint; this one is drawn in Python, any program does.",
        ('limner inpaint face.png "smiling face with open mouth" --mask mask.png --seed 1 -o open-mouth.png',),
        row(("face.png", "before"), ("mask.png", "mask"), ("open-mouth.png", "after")),
        code=MASK,
        needs=("paint",),
    ),
    Section(
        "outpaint",
        "Outpaint",
        "A larger canvas, painted on beyond the borders; the picture itself stays as it is, bit for bit, the clear "
        "rim of the house too. A small model does not always find what joins.",
        (
            'limner outpaint face.png "smiling face with a hat" --up 48 --seed 0 -o taller.png',
            'limner outpaint painted/a-house-at-night-1.png "a house at night" --left 64 --right 64 --seed 0 '
            "-o wider.png",
        ),
        row(
            ("face.png", "before"),
            ("taller.png", "--up 48"),
            ("painted/a-house-at-night-1.png", "before"),
            ("wider.png", "--left 64 --right 64"),
        ),
        needs=("paint",),
    ),
    Section(
        "upscale",
        "Upscale",
        "Enlarged by Lanczos, then painted over in tiles that share one field of noise; strength 0 only enlarges.",
        (
            'limner upscale face.png "smiling face" --scale 2 --strength 0 --seed 0 -o large-0.png',
            'limner upscale face.png "smiling face" --scale 2 --seed 0 -o large-3.png',
        ),
        row(("face.png", "before"), ("large-0.png", "strength 0"), ("large-3.png", "strength 0.3, as by default")),
        needs=("paint",),
    ),
    Section(
        "vary",
        "Vary",
        "Variations around a picture that carries a recipe: its noise leans, by the amount, to that of other seeds.",
        tuple(
            f"limner vary face.png --count 4 --amount {amount} --seed 20 -o vary-{amount}"
            for amount in ("0", "0.1", "0.3", "0.6", "1")
        ),
        folder(
            *((f"vary-{amount}/*.png", f"amount {amount}") for amount in ("0", "0.1", "0.3", "0.6", "1")),
            above=("to seed 20", "to seed 21", "to seed 22", "to seed 23"),
        ),
        needs=("paint",),
    ),
    Section(
        "morph",
        "Morph",
        "The way from one prompt to another, as a film or numbered pictures; an even way has the flicker 0.",
        ('limner morph "smiling face" "blue cat face" --frames 16 --rate 10 --seed 0 -o face-to-cat.gif',),
        film="face-to-cat.gif",
        told=True,
    ),
    Section(
        "tile",
        "Tile",
        "A texture whose borders join, with maps that are derived from its light by rule, and laid two by two to look "
        "at; a seam score of 1.00 is no seam.",
        ('limner tile "cityscape at dusk" --seed 3 --maps --preview -o dusk.png',),
        row(
            ("dusk.png", "texture"),
            ("dusk-normal.png", "normals"),
            ("dusk-height.png", "height"),
            ("dusk-roughness.png", "roughness"),
            ("dusk-ambient.png", "ambient occlusion"),
            ("dusk-2x2.png", "two by two"),
        ),
        told=True,
    ),
    Section(
        "sheet",
        "Sheet",
        "Sprites of one style and seed on a transparent sheet, trimmed, with the JSON that game engines read.",
        (
            'limner sheet "smiling face" "cat face" "red heart" "full moon" "red circle" "blue cat face" '
            "--columns 3 --seed 2 -o sprites.png",
        ),
        row(("sprites.png", ""), side=512),
        frame="sprites.json",
        told=True,
    ),
    Section(
        "only-masked",
        "Inpaint at full resolution",
        "With `--only-masked` what is around the mask is painted alone, at the size that the model knows: here one "
        "sprite is replaced by another.",
        (
            'limner inpaint sprites.png "red heart" --mask 126,118,123,122 --seed 10 -o whole.png',
            'limner inpaint sprites.png "red heart" --mask 126,118,123,122 --only-masked --padding 0 --feather 0 '
            "--seed 10 -o one-new.png",
        ),
        row(
            ("sprites.png", "before"),
            ("whole.png", "the whole sheet is looked at"),
            ("one-new.png", "--only-masked"),
            side=320,
        ),
        needs=("sheet",),
    ),
    Section(
        "grid",
        "Grid",
        "Settings laid against one another, all with the same seed; the recipes lie beside the plot as JSON.",
        ('limner grid "cat face" --x cfg=1,3,5,9 --y steps=6,12,24 --seed 0 -o grid.png',),
        as_made("grid.png"),
        told=True,
    ),
    Section(
        "campaign",
        "Campaign",
        "A table's rows, each once, however often the run is broken off; the template takes words from the columns, "
        "and the column `text` is laid over.",
        (
            'limner campaign cards.csv --template "{feeling} {thing}" --at "bottom centre" --text-size 16 -o cards',
            'limner campaign cards.csv --template "{feeling} {thing}" --at "bottom centre" --text-size 16 -o cards',
        ),
        as_made("cards/contact-001.jpg"),
        told=True,
        table=("cards.csv", CARDS),
    ),
    Section(
        "cutout",
        "Cut out",
        "A plain ground is told from the border and taken away; no network looks at the picture, and a busy ground is "
        "refused.",
        ("limner cutout on-teal.jpg -o cut.png",),
        row(("on-teal.jpg", "before"), ("cut.png", "after")),
        told=True,
        code=TEAL,
    ),
    Section(
        "match",
        "Match",
        "How alike pictures and texts are to the model's eye: the cosine, and each text's share among those given.",
        ('limner match face.png "smiling face" "cat face" "red heart" --picture painted/cat-face-0.png',),
        told=True,
        needs=("paint",),
    ),
    Section(
        "find",
        "Find",
        "A folder searched by words; what was seen is kept in an index, so that the next search is quick.",
        ('limner find painted "a heart" --count 5 --sheet found.png',),
        as_made("found.png"),
        told=True,
        needs=("paint",),
    ),
    Section(
        "describe",
        "Describe",
        "What the model's eye sees, with scores; it is a small eye and says so where it is not sure. With labels it "
        "chooses among yours.",
        (
            "limner describe face.png painted/cat-face-0.png",
            'limner describe face.png painted/cat-face-0.png --labels "cat,dog,face,heart"',
        ),
        row(("face.png", "face.png"), ("painted/cat-face-0.png", "painted/cat-face-0.png")),
        told=True,
        needs=("paint",),
    ),
)


def page(only: Sequence[str] = ()) -> str:
    """Run the sections that are asked for, draw their pictures, and give the page back."""
    old = sections_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    chosen = [each for each in SECTIONS if not only or each.name in only or each.title not in old]
    needed = {name for each in chosen for name in each.needs}
    parts = []
    with tempfile.TemporaryDirectory() as place, inside(Path(place)):
        for each in SECTIONS:
            if each in chosen:
                parts.append(made(each))
            else:
                if each.name in needed:
                    run(each)
                parts.append(old[each.title])
    return "\n".join([HEAD, *parts, TAIL])


def sections_of(text: str) -> dict[str, str]:
    """The sections of a page by their titles, each ending with an empty line."""
    return {
        each[3:].split("\n", 1)[0]: each.rstrip() + "\n"
        for each in re.findall(r"^## .*?(?=^## |\Z)", text, re.M | re.S)
    }


def made(section: Section) -> str:
    """Run a section, draw its picture, write its text."""
    printed = run(section)
    parts = [f"## {section.title}", textwrap.fill(section.says, 120)]
    if section.code:
        parts.append(fenced("python", section.code))
    if section.table[0]:
        parts += [f"`{section.table[0]}`:", fenced("csv", section.table[1])]
    parts.append(fenced("sh", "\n".join(section.lines)))
    if section.told:
        parts.append(fenced("text", printed))
    if section.frame:
        parts += [f"`{section.frame}` begins:", fenced("text", first_frame(Path(section.frame).read_text()))]
    if section.draw:
        parts.append(shown(section, keep(section.draw(), PICTURES / f"{section.name}.png")))
    if section.film:
        file = PICTURES / f"{section.name}{Path(section.film).suffix}"
        file.write_bytes(Path(section.film).read_bytes())
        parts.append(shown(section, file))
    return "\n\n".join(parts) + "\n"


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def shown(section: Section, file: Path) -> str:
    return f"![{section.title}](img/gallery/{file.name})"


def run(section: Section) -> str:
    """What its commands print, without the seconds; any failure ends the script."""
    from limner.cli import main

    if section.code:
        exec(compile(section.code, section.name, "exec"), {})
    if section.table[0]:
        Path(section.table[0]).write_text(section.table[1], encoding="utf-8")
    told = []
    for line in section.lines:
        print("$", line, flush=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = main(shlex.split(line)[1:])
        if status:
            raise SystemExit(f"{line} ended with the status {status}")
        if len(section.lines) > 1:
            told.append(f"$ {line}")
        told += [re.sub(r" {2}\d+\.\d s$", "", each.rstrip()) for each in out.getvalue().splitlines()]
    return "\n".join(told)


def first_frame(text: str) -> str:
    """The JSON of a sheet down to the end of its first frame."""
    found = re.match(r".*?^  },?$", text, re.M | re.S)
    assert found, "the sheet's JSON is not indented by one"
    return f"{found[0]}\n  ..."


def keep(board: Image.Image, file: Path) -> Path:
    """Write a board with the mark that a trained model made it."""
    from limner.provenance.metadata import chunks

    pixels = np.asarray(board.convert("RGB"))
    small = board.convert("RGB").quantize(COLOURS - GREYS)
    ramp = [round(255 * i / (GREYS - 1)) for i in range(GREYS)]
    colours = (small.getpalette() or [])[: 3 * (COLOURS - GREYS)]
    colours += [0] * (3 * (COLOURS - GREYS) - len(colours))
    shade = COLOURS - GREYS + np.rint(pixels[..., 0] / 255 * (GREYS - 1)).astype(np.uint8)
    small = Image.fromarray(np.where(np.ptp(pixels, axis=2) == 0, shade, np.asarray(small)).astype(np.uint8), "P")
    small.putpalette([*colours, *(value for value in ramp for _ in "rgb")])
    small.save(file, optimize=True, pnginfo=chunks(None).png)
    return file


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], choices=[each.name for each in SECTIONS], metavar="NAME")
    asked = parser.parse_args().only
    PICTURES.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(asked), encoding="utf-8")

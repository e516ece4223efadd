"""A shard of coloured shapes that looks like real data."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

STYLES = ("noto", "flat", "pixel art")
COLOURS = ("red", "orange", "green", "blue", "purple", "black")


def shape(concept: int, style: int) -> bytes:
    """A disc or a box whose colour and place say what it is; flat ones are smaller, sprites have hard pixels."""
    image = Image.new("RGBA", (128, 128))
    at, size = 8 + concept * 7 % 50, 30 + concept * 13 % 30 - style * 5
    pen = ImageDraw.Draw(image)
    draw = pen.ellipse if concept % 2 else pen.rectangle
    draw((at, 60 - size // 2, at + size, 60 + size), fill=COLOURS[concept % len(COLOURS)])
    if style == 2:
        image = image.resize((32, 32), Image.Resampling.NEAREST).resize((128, 128), Image.Resampling.NEAREST)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_shard(path: Path, concepts: range) -> None:
    with tarfile.open(path, "w") as tar:
        for concept in concepts:
            for number, style in enumerate(STYLES):
                key = f"{style}-{concept:03d}".replace(" ", "_")
                words = {"name": f"word{concept} thing", "style": style, "concept": f"c{concept}"}
                for suffix, content in (("json", json.dumps(words).encode()), ("png", shape(concept, number))):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "train-000.tar", range(140))
    write_shard(folder / "val-000.tar", range(140, 148))
    return folder

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageDraw

STYLES, THINGS = ("noto", "flat", "blob"), ("apple", "cat", "sun", "tree", "car", "fish", "ball", "moon")


def drawn(style: int, thing: int) -> Image.Image:
    """A figure that depends on both numbers, on a clear ground."""
    image = Image.new("RGBA", (128, 128))
    pen, rng = ImageDraw.Draw(image), np.random.default_rng(100 * style + thing)
    colour = (*(int(c) for c in rng.integers(40, 255, 3)), 255)
    corners = [(int(x), int(y)) for x, y in rng.integers(10, 118, (3 + thing % 4, 2))]
    pen.polygon(corners, fill=colour) if style else pen.ellipse((20, 20, 70 + 5 * thing, 100), fill=colour)
    return image


@pytest.fixture(scope="session")
def shard(tmp_path_factory):
    """A WebDataset shard of 24 small pictures in three styles."""
    path = tmp_path_factory.mktemp("shards") / "train-000.tar"
    with tarfile.open(path, "w") as tar:
        for s, style in enumerate(STYLES):
            for t, thing in enumerate(THINGS):
                picture = io.BytesIO()
                drawn(s, t).save(picture, "PNG")
                words = {"name": thing, "keywords": ["thing"], "style": style, "concept": thing}
                for suffix, data in ((".png", picture.getvalue()), (".json", json.dumps(words).encode())):
                    info = tarfile.TarInfo(f"{style}-{t}{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return path

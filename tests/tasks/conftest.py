"""Pictures that tests start from, drawn here, and models to change them with."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.pipeline import Model, load
from limner.place import find_place

CPU = find_place("cpu", torch.float32)


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> Model:
    return load(str(tiny_folder), CPU)


@pytest.fixture(scope="session")
def painter(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    """A tiny model of any published family."""

    @cache
    def make(name: str) -> Model:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*holds T5 but no tokenizer")
            return load(str(tiny_checkpoint(name)), CPU)

    return make


def drawn(width: int, height: int, mode: str = "RGBA", seed: int = 0) -> Image.Image:
    """Soft colours, a disc of another colour, and in RGBA a clear border with colour under it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(x - width / 2, y - height / 2) / min(width, height)
    pixels = np.asarray(small).copy()
    pixels[radius < 0.2] = (220, 40, 30)
    alpha = (255 * np.clip((0.48 - radius) * 30, 0, 1)).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, alpha]), "RGBA").convert(mode)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """`picture(70, 50, "RGB")`: a file."""

    def make(width: int = 64, height: int = 64, mode: str = "RGBA", name: str = "picture.png", **more: object) -> Path:
        path = tmp_path / name
        drawn(width, height, mode).save(path, **more)
        return path

    return make

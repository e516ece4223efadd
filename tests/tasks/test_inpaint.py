from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import tiny_net, tiny_nets, write_single
from tests.tasks.conftest import CPU, drawn

from limner.errors import BadInput
from limner.image import read_original
from limner.pipeline import Model, load
from limner.tasks.canvas import spread
from limner.tasks.masks import fill_of
from limner.tasks.run import begin, painting

Make = Callable[..., Path]


def made(model: Model, path: Path, task: str = "inpaint", **wishes: object) -> np.ndarray:
    recipe = begin(model, **{"task": task, "image": str(path), "prompt": "a cat", "steps": 3, "seed": 3} | wishes)
    return np.asarray(next(event[0] for event in painting(model, recipe) if isinstance(event, list)).image)


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A checkpoint of nine channels, made to inpaint."""
    nets = tiny_nets("sd15") | {"denoiser": tiny_net("sd15", "denoiser", channels=9)}
    return load(str(write_single(tmp_path_factory.mktemp("filler") / "it.safetensors", "sd15", nets)), CPU)


@pytest.mark.parametrize("which", ["mini", "sd15", "nine channels", "sd3"])
@pytest.mark.parametrize("more", [{}, {"only_masked": True, "padding": 8}, {"strength": 0.5}])
def test_outside_of_the_feathered_mask_every_byte_is_the_originals(which, more, model, painter, filler, picture):
    painter = model if which == "mini" else filler if which == "nine channels" else painter(which)
    painter = replace(
        painter, likes=replace(painter.defaults, size=(128, 128))
    )  # what it would paint only the masked in
    path = picture(86, 70)
    new, old = made(painter, path, mask="30,20,24,16", feather=4, **more), np.asarray(Image.open(path))
    x, y = np.meshgrid(np.arange(86), np.arange(70))
    near = (x >= 26) & (x < 58) & (y >= 16) & (y < 40)
    inside = (x >= 30) & (x < 54) & (y >= 20) & (y < 36)
    assert np.array_equal(new[~near], old[~near])
    assert np.abs(new[inside, :3].astype(int) - old[inside, :3]).mean() > 1


def test_a_mask_is_a_file_a_rectangle_or_what_is_clear(model: Model, picture: Make, tmp_path: Path):
    path = picture(64, 64)
    light = np.zeros((64, 64), np.uint8)
    light[10:30, 20:50] = 255
    Image.fromarray(light).save(tmp_path / "mask.png")
    assert np.array_equal(made(model, path, mask=str(tmp_path / "mask.png")), made(model, path, mask="20,10,30,20"))
    new, old = made(model, path, mask="alpha", feather=0), np.asarray(Image.open(path))
    assert np.array_equal(new[old[..., 3] == 255], old[old[..., 3] == 255])


def test_a_feather_falls_evenly():
    mask = torch.zeros(40, 40)
    mask[15:25, 15:25] = 1
    wide = spread(mask, 5)
    assert (wide[15:25, 15:25] == 1).all()
    row = wide[20, 8:16]
    assert torch.allclose(row, torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]) / 6, atol=1e-6)
    assert torch.equal(wide, wide.T) and torch.equal(spread(mask, 0), mask)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("", "no mask was given"),
        ("none.png", "none.png does not exist"),
        ("70,0,10,10", "lies outside of the picture, which is 64x64"),
        ("alpha", "the picture has none"),
        ("small.png", "is 32x32 and the picture 64x64"),
        ("black.png", "is empty"),
    ],
)
def test_a_mask_that_is_none_is_refused(model: Model, picture: Make, tmp_path, monkeypatch, mask: str, said: str):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (32, 32), 255).save("small.png")
    Image.new("L", (64, 64), 0).save("black.png")
    with pytest.raises(BadInput, match=said):
        made(model, picture(64, 64, "RGB"), mask=mask)


@pytest.mark.parametrize("which", ["mini", "sd15", "nine channels"])
def test_a_picture_goes_on_and_stays_what_it_was(which, model, painter, filler, picture):
    painter = model if which == "mini" else filler if which == "nine channels" else painter(which)
    path = picture(64, 50)
    new = made(painter, path, "outpaint", extend=(20, 10, 0, 6))
    assert new.shape == (56, 94, 4)
    assert np.array_equal(new[:50, 20:84], np.asarray(Image.open(path)))


def test_to_extend_nowhere_is_refused(model: Model, picture: Make):
    with pytest.raises(BadInput, match="extended nowhere"):
        made(model, picture(64, 64), "outpaint")


def test_what_is_painted_takes_the_tone_of_what_is_around_it():
    from limner.tasks.canvas import toned

    old = torch.full((4, 40, 40), 0.5)
    old[3] = 1
    new = old.clone()
    new[:3] -= 0.1  # as from an autoencoder that darkens
    mask = torch.zeros(40, 40)
    mask[:, 20:] = 1
    out = toned(new, old, mask, 4)
    assert abs(float(out[0, 20, 20]) - 0.5) < 0.02  # level at the border
    assert abs(float(out[0, 20, 39]) - 0.4) < 0.01  # and itself far away


def test_only_masked_works_at_the_models_own_size(model: Model, picture: Make, tmp_path: Path):
    drawn(300, 200, "RGB").save(tmp_path / "large.png")
    wishes = {
        "task": "inpaint",
        "image": str(tmp_path / "large.png"),
        "prompt": "a cat",
        "steps": 1,
        "mask": "9,9,20,20",
    }
    events = list(painting(model, begin(model, **wishes, only_masked=True, padding=10)))
    one = events[-1][0]
    assert max(one.picture.shape[1:]) == max(model.defaults.size)
    assert one.image.size == (300, 200)


def test_what_an_opaque_family_paints_where_it_was_clear_is_seen(painter, picture: Make):
    """Elsewhere such a family keeps the picture's own alpha."""
    path = picture(64, 64)
    old = np.asarray(Image.open(path))
    clear = old[..., 3] == 0
    assert (made(painter("sd15"), path, mask="alpha", feather=0)[clear, 3] == 255).all()
    corner = made(painter("sd15"), path, mask="0,0,6,6", feather=0)
    assert (corner[:6, :6, 3] == 255).all() and np.array_equal(corner[6:], old[6:])
    kept = made(painter("sd15"), path, mask="0,0,64,64", feather=0)
    assert np.array_equal(kept[..., 3], old[..., 3])
    wider = made(painter("sd15"), path, task="outpaint", extend=(24, 0, 0, 0))
    assert (wider[:, :8, 3] == 255).all() and np.array_equal(wider[:, 24:], old)  # it fades in from a clear border


def test_at_strength_0_the_border_is_drawn_out(model: Model, picture: Make):
    path = picture(64, 64, "RGB")
    new, old = made(model, path, task="outpaint", extend=(16, 0, 0, 8), strength=0), np.asarray(Image.open(path))
    assert np.array_equal(new, np.pad(old, ((0, 8), (16, 0), (0, 0)), mode="edge"))


def test_what_a_jpeg_leaves_around_a_mask_is_no_mask(picture: Make, tmp_path: Path):
    light = np.zeros((64, 64), np.uint8)
    light[16:40, 24:48] = 255
    Image.fromarray(light).save(tmp_path / "mask.jpg", quality=80)
    found = fill_of(str(tmp_path / "mask.jpg"), read_original(picture(64, 64)))
    assert np.array_equal(found.numpy() > 0, light > 0) and float(found[16:40, 24:48].min()) > 0.9


def test_what_memory_would_not_hold_is_refused(model: Model, picture: Make):
    path = str(picture(64, 64))
    for wishes in (
        {"task": "outpaint", "image": path, "extend": (60_000, 0, 60_000, 0)},
        {"task": "tile", "width": 2**14, "height": 2**14},
        {"task": "paint", "width": 2**12, "height": 2**12, "hires": 8},
    ):
        with pytest.raises(BadInput, match="at most 67,108,864 pixels are made"):
            begin(model, **wishes)

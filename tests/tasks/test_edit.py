from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from tests.tasks.conftest import drawn

from limner.errors import BadInput
from limner.pipeline import Model, load
from limner.recipe import Recipe
from limner.tasks.run import begin, paint, painting
from limner.tasks.task import Painted, fetch
from limner.types import Step

Make = Callable[..., Path]


def edited(model: Model, path: Path, **wishes: object) -> Painted:
    recipe = begin(model, **{"task": "edit", "image": str(path), "prompt": "a cat", "steps": 4, "seed": 3} | wishes)
    return next(event[0] for event in painting(model, recipe) if isinstance(event, list))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
@pytest.mark.parametrize("family", ["mini", "sd15"])
def test_strength_0_gives_the_picture_back(family: str, mode: str, model: Model, painter, picture: Make):
    path = picture(70, 51, mode)
    one = edited(model if family == "mini" else painter(family), path, strength=0)
    before = Image.open(path)
    assert one.image.mode == ("RGBA" if before.has_transparency_data else "RGB")
    assert np.array_equal(np.asarray(one.image), np.asarray(before.convert(one.image.mode)))


def test_a_profile_is_kept_and_so_are_its_bytes_at_strength_0(model: Model, picture: Make):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = picture(64, 64, "RGB", icc_profile=icc)
    for strength in (0, 0.5):
        assert edited(model, path, strength=strength).image.info["icc_profile"] == icc


def test_strength_1_is_what_paint_paints(model: Model, picture: Make):
    one = edited(model, picture(64, 64), strength=1)
    painted = paint(model, begin(model, prompt="a cat", steps=4, seed=3, width=64, height=64))[0]
    assert torch.equal(one.picture, painted)


@pytest.mark.parametrize(("strength", "steps"), [(0, 0), (0.01, 1), (0.25, 2), (0.6, 5), (1, 8)])
def test_strength_is_the_share_of_the_walk(model: Model, picture: Make, strength: float, steps: int):
    recipe = begin(model, task="edit", image=str(picture(64, 64)), prompt="a cat", steps=8, strength=strength)
    assert recipe.length == len([e for e in painting(model, recipe) if isinstance(e, Step)]) == steps


@pytest.mark.parametrize("size", [(64, 64), (70, 50), (37, 90), (30, 20), (16, 130)])
@pytest.mark.parametrize("family", ["mini", "sd15", "sd3"])
def test_any_size_is_kept(family: str, size: tuple[int, int], model: Model, painter, picture: Make):
    if family != "mini" and size != (37, 90):
        pytest.skip("one odd size shows it")
    one = edited(model if family == "mini" else painter(family), picture(*size), steps=2)
    assert one.image.size == size
    assert (one.recipe.width, one.recipe.height) == size


def test_the_alpha_of_a_picture_is_kept_by_a_family_that_knows_none(painter, picture: Make):
    path = picture(64, 64, "RGBA")
    one = edited(painter("sd15"), path, steps=2, strength=0.8)
    assert one.image.mode == "RGBA"
    assert np.array_equal(np.asarray(one.image)[..., 3], np.asarray(Image.open(path))[..., 3])


def test_orientation_is_applied_first(model: Model, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    drawn(80, 64, "RGB").save(tmp_path / "turned.jpg", exif=exif)
    assert edited(model, tmp_path / "turned.jpg", steps=1).image.size == (64, 80)


def test_a_picture_larger_than_the_family_paints_goes_in_tiles(model: Model, picture: Make):
    one = edited(model, picture(640, 80), steps=1, strength=0.5)
    assert one.image.size == (640, 80)


def test_the_recipe_names_the_picture_by_its_digest(model: Model, picture: Make):
    path = picture(64, 64)
    one = edited(model, path)
    again = next(iter(painting(model, Recipe.from_json(one.recipe.canonical()))))
    assert again is not None
    drawn(64, 64, seed=5).save(path)
    with pytest.raises(BadInput, match="is not the picture of the recipe"):
        list(painting(model, one.recipe))


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"image": ""}, "no picture was given to edit"),
        ({"image": "none.png"}, "none.png does not exist"),
        ({"width": 128}, "the size of edit follows from its picture: 64x64; 128x64 was asked for"),
        ({"strength": 1.5}, "strength should be"),
        ({"window": 100}, "tiles of 100 pixels"),
    ],
)
def test_what_cannot_be_edited_is_refused(model: Model, picture: Make, wishes: dict, said: str):
    with pytest.raises(BadInput, match=said):
        edited(model, picture(64, 64), **wishes)


@pytest.mark.parametrize("kind", ["edit", "depth"])
def test_a_checkpoint_that_starts_from_a_picture_wants_one(kind: str, tmp_path: Path):
    from tests.conftest import tiny_net, tiny_nets, write_single

    family, channels = ("sd15", 8) if kind == "edit" else ("sd2", 5)
    nets = tiny_nets(family) | {"denoiser": tiny_net(family, "denoiser", channels=channels)}
    model = load(str(write_single(tmp_path / "it.safetensors", family, nets)))
    assert model.variant == kind
    with pytest.raises(BadInput, match="starts from"):
        paint(model, begin(model, prompt="a cat", width=64, height=64, steps=1))
    drawn(64, 64, "RGB").save(tmp_path / "it.png")
    if kind == "depth":
        controls = [{"net": "depth", "image": str(tmp_path / "it.png")}]
        paint(model, begin(model, prompt="a cat", width=64, height=64, steps=1, controls=controls))
    one = edited(model, tmp_path / "it.png", steps=1, **({"controls": controls} if kind == "depth" else {}))
    assert one.image.size == (64, 64)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (700, 3)])
def test_a_strip_is_not_enlarged_beyond_reason(model: Model, picture: Make, width: int, height: int):
    path = picture(8, 8, "RGB")
    drawn(64, 64, "RGB").resize((width, height)).save(path)
    one = edited(model, path, steps=1)
    assert one.image.size == (width, height)
    assert max(one.picture.shape[1:]) <= max(128, width + 16, height + 16)


@pytest.mark.parametrize("task", ["edit", "inpaint", "outpaint", "upscale"])
def test_no_task_that_starts_from_a_picture_takes_another_size(model: Model, picture: Make, task: str):
    wishes = {"task": task, "image": str(picture(64, 48)), "mask": "0,0,9,9", "extend": (8, 0, 0, 0)}
    recipe = begin(model, **wishes)
    assert begin(model, **recipe.model_dump()) == recipe
    with pytest.raises(BadInput, match=f"the size of {task} follows from its picture"):
        begin(model, **wishes | {"width": 16})


def test_pictures_of_a_sequence_share_the_networks_beside_them(model: Model, picture: Make):
    """Of two recipes that differ in the picture alone, only that is read again."""
    first, second = (
        begin(model, task="edit", image=str(picture(64, 64, name=name)), steps=1) for name in ("a.png", "b.png")
    )
    here = replace(fetch(first, model), upscaler="any network")
    again = fetch(second, model, (first, here))
    assert again.upscaler == "any network" and again.original is not here.original
    assert fetch(first, model, (first, here)) is here

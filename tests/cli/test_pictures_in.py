"""The commands that start from pictures or make many, called as a person calls them, with the tiny model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tasks.conftest import drawn

from limner.image import open_picture
from limner.provenance.metadata import PARTLY, is_marked, read_receipt


@pytest.fixture
def call(limner, tiny_folder: Path, tmp_path: Path):
    """A command with the tiny model and few steps, beside picture.png of 64 x 48."""
    drawn(64, 48).save(tmp_path / "picture.png")
    return lambda name, *argv: limner(name, *argv, "-m", tiny_folder, "--steps", 2, "-s", 3, "--device", "cpu")


def opened(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(opened(path))


def test_an_edit_is_named_after_its_picture_and_repeats(call, limner):
    said = call("edit", "picture.png", "a blue cat", "--strength", 0.6)
    assert said.status == 0 and said.out.startswith("picture-a-blue-cat-3.png  seed 3")
    image = open_picture(Path("picture-a-blue-cat-3.png"))
    recipe = read_receipt(image, "it").recipe
    assert (recipe.task, recipe.image, recipe.strength, image.size) == ("edit", "picture.png", 0.6, (64, 48))
    assert is_marked(image) and PARTLY in str(image.info.get("xmp") or image.info["XML:com.adobe.xmp"])
    again = limner("paint", "--from", "picture-a-blue-cat-3.png", "-q").out.strip()
    assert again == "picture-a-blue-cat-3-2.png"
    assert np.array_equal(pixels(again), pixels("picture-a-blue-cat-3.png"))
    drawn(64, 48, seed=4).save("picture.png")
    said = limner("paint", "--from", "picture-a-blue-cat-3.png")
    assert said.status == 2 and "picture.png is not the picture of the recipe" in said.err


def test_strength_0_gives_the_pixels_back_and_keeps_the_mark(call):
    assert call("edit", "picture.png", "a cat", "--strength", 0, "-o", "same.png").status == 0
    assert np.array_equal(pixels("same.png"), pixels("picture.png"))
    assert is_marked(open_picture(Path("same.png")))


def test_inpaint_and_outpaint_leave_the_rest_alone(call):
    assert call("inpaint", "picture.png", "a cat", "--mask", "20,10,20,20", "--feather", 2, "-o", "in.png").status == 0
    new, old = pixels("in.png"), pixels("picture.png")
    outside = np.ones(new.shape[:2], bool)
    outside[8:32, 18:42] = False
    assert np.array_equal(new[outside], old[outside]) and not np.array_equal(new, old)
    assert call("outpaint", "picture.png", "a cat", "--left", 16, "--down", 8, "-o", "out.png").status == 0
    assert np.array_equal(pixels("out.png")[:48, 16:], old)


def test_upscale_and_hires(call):
    assert call("upscale", "picture.png", "--scale", 2, "--window", 64, "-o", "up.png").status == 0
    assert opened("up.png").size == (128, 96)
    assert call("paint", "a cat", "--size", 64, "--hires", 1.5, "-o", "hi.png").status == 0
    assert opened("hi.png").size == (96, 96)


def test_a_texture_brings_its_maps_and_a_preview(call):
    said = call("tile", "green leaves", "--size", 64, "--maps", "--preview", "-o", "leaf.png")
    assert said.status == 0 and "seam score" in said.out
    for name, mode in {"normal": "RGB", "height": "I;16", "roughness": "L", "ambient": "L"}.items():
        assert opened(f"leaf-{name}.png").mode == mode
    assert opened("leaf-2x2.png").size == (128, 128)


def test_a_sheet_is_an_atlas_with_its_frames(call):
    said = call("sheet", "a cat", "a dog", "a red house", "--columns", 2, "--size", 64, "-o", "all.png")
    assert said.status == 0
    told = json.loads(Path("all.json").read_text())
    assert list(told["frames"]) == ["a-cat", "a-dog", "a-red-house"]
    assert told["meta"]["image"] == "all.png" and is_marked(open_picture(Path("all.png")))


def test_variations_of_a_recipe_and_of_mere_pixels(call, limner):
    call("paint", "a cat", "--size", 64, "-o", "cat.png")
    said = call("vary", "cat.png", "-n", 2, "--amount", 0, "-o", "v.png")
    assert said.status == 0 and len(said.lines) == 2
    assert np.abs(pixels(said.lines[0].split("  ")[0]).astype(int) - pixels("cat.png")).max() <= 1
    said = call("vary", "picture.png", "a cat", "-n", 2, "--amount", 0.5, "-o", "w.png", "-q")
    assert said.lines == ["w-3.png", "w-4.png"]


def test_a_morph_is_a_film_or_numbered_pictures(call):
    assert call("morph", "a cat", "a dog", "--frames", 4, "--size", 64, "-o", "m.gif").status == 0
    with Image.open("m.gif") as film:
        assert film.n_frames == 4
    said = call("morph", "a cat", "--to-seed", 9, "--frames", 3, "--size", 64, "-o", "m-%03d.png")
    assert said.status == 0 and "3 frames, seed 3, flicker" in said.out
    assert sorted(path.name for path in Path().glob("m-*.png")) == ["m-001.png", "m-002.png", "m-003.png"]
    assert all(is_marked(open_picture(path)) for path in Path().glob("m-*.png"))


def test_a_sequence_is_edited_frame_by_frame(call):
    Path("frames").mkdir()
    for i in range(3):
        drawn(64, 48, "RGB", seed=i).save(f"frames/{i}.png")
    said = call("edit", "frames", "a cat", "--image-sequence", "--strength", 0, "-o", "new-%02d.png")
    assert said.status == 0, said.err
    assert [np.array_equal(pixels(f"new-0{i + 1}.png")[..., :3], pixels(f"frames/{i}.png")) for i in range(3)] == [
        True
    ] * 3


def test_a_grid_draws_settings_and_keeps_their_recipes(call):
    said = call("grid", "a cat", "--x", "cfg=1,5", "--y", "s/cat/dog,house/", "--size", 64, "--keep", "-o", "g.png")
    assert said.status == 0, said.err
    cells = json.loads(Path("g.json").read_text())["cells"]
    assert {(cell["recipe"]["cfg_scale"], cell["recipe"]["prompt"]) for cell in cells} == {
        (1.0, "a dog"), (5.0, "a dog"), (1.0, "a house"), (5.0, "a house"),
    }  # fmt: skip
    assert all(Path(cell["file"]).exists() for cell in cells) and is_marked(open_picture(Path("g.png")))


def test_a_campaign_paints_each_row_once(call):
    Path("rows.csv").write_text("thing,seed\ncat,1\ndog,2\nhouse,3\n")
    first = call("campaign", "rows.csv", "--template", "a {thing}", "--size", 64, "--text", "{thing}", "-o", "shop")
    assert first.status == 0 and "3 painted, 0 were done" in first.out, first.err
    again = call("campaign", "rows.csv", "--template", "a {thing}", "--size", 64, "--text", "{thing}", "-o", "shop")
    assert "0 painted, 3 were done" in again.out
    image = open_picture(Path("shop/0002-a-dog.png"))
    assert read_receipt(image, "it").recipe.prompt == "a dog" and is_marked(image)
    assert len(Path("shop/manifest.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["edit", "none.png", "a cat"], "none.png does not exist"),
        (["edit", "picture.png", "a cat", "--max-pixels", "100"], "64 x 48 pixels; at most 100 are read"),
        (["inpaint", "picture.png", "a cat", "--mask", "99,0,5,5"], "lies outside of the picture"),
        (["outpaint", "picture.png", "a cat"], "extended nowhere"),
        (["upscale", "picture.png", "--scale", "9"], "scale should be less than or equal to 8"),
        (["tile", "a cat", "--axis", "z"], "--axis should be xy, x or y"),
        (["vary", "picture.png", "--amount", "2"], "--amount should be from 0 to 1"),
        (["morph", "a cat", "a dog", "--frames", "1"], "2 frames or more"),
        (["morph", "a cat", "a dog", "-o", "film.avi"], "film.avi"),
        (["sheet", "a cat", "-o", "sheet.jpg"], "a sheet keeps clear ground"),
        (["grid", "a cat", "--x", "cgf=1,2"], "cfg"),
        (["campaign", "none.csv"], "none.csv cannot be read"),
        (["paint", "a cat", "--region", "lft:0-0.5 a dog"], "did you mean left"),
        (["paint", "a cat", "--control", "it"], "--control should look like"),
        (["paint", "a cat", "--look", "it"], "--look should look like"),
        (["paint", "a cat", "--control", "none.safetensors=picture.png", "--size", "64"], "none.safetensors"),
    ],
)
def test_what_cannot_be_is_one_sentence(call, argv: list[str], said: str):
    found = call(*argv)
    assert found.status == 2 and said in found.err and found.err.count("\n") == 1, found.err


def test_a_seed_for_pixels_counts_though_the_picture_carries_a_recipe(call):
    assert call("paint", "a cat", "--size", 64, "-o", "cat.png").status == 0
    assert call("vary", "cat.png", "a dog", "-n", 1).out.startswith("cat-a-dog-3.png  seed 3")


def test_a_variation_starts_from_the_picture_that_was_kept(call, limner, tiny_folder: Path):
    said = call("paint", "a cat", "--size", 64, "--best-of", 4, "-o", "best.png", "--json")
    assert call("vary", "best.png", "-n", 1, "--amount", 0, "-o", "same.png").status == 0
    assert read_receipt(open_picture(Path("same.png")), "it").recipe.seed == said.rows[0]["seed"]
    assert np.abs(pixels("same.png").astype(int) - pixels("best.png")).max() <= 1
    call("vary", "best.png", "-n", 1, "--amount", 0.5, "-o", "far.png")
    assert call("vary", "far.png", "-n", 1, "--amount", 0, "-o", "still.png").status == 0
    assert np.array_equal(pixels("still.png"), pixels("far.png"))


def test_each_numbered_picture_carries_its_own_recipe(call, limner):
    assert call("morph", "a cat", "a dog", "--frames", 3, "--size", 64, "-o", "way").status == 0
    assert call("edit", "way", "a bird", "--image-sequence", "-o", "birds").status == 0
    for folder in ("way", "birds"):
        for name in ("0002.png", "0003.png"):
            assert limner("paint", "--from", f"{folder}/{name}", "-o", f"{folder}/again.png").status == 0
            again, first = (pixels(f"{folder}/{each}").astype(float) for each in ("again.png", name))
            alpha = np.abs(again[..., 3:] - first[..., 3:])
            colour = np.abs(again[..., :3] * again[..., 3:] - first[..., :3] * first[..., 3:]) / 255
            assert alpha.max() <= 1 and colour.max() <= 1.01  # they were painted together, and are painted alone now
            Path(f"{folder}/again.png").unlink()


def test_a_sequence_says_as_little_as_was_asked_for(call):
    Path("frames").mkdir()
    drawn(64, 64).save("frames/1.png")
    assert call("edit", "frames", "a secret", "--image-sequence", "--no-metadata", "-o", "out").status == 0
    image = open_picture(Path("out/0001.png"))
    assert is_marked(image) and "secret" not in str(image.info)
    drawn(64, 48).save("frames/2.png")
    said = call("edit", "frames", "a cat", "--image-sequence", "-o", "out2")
    assert said.status == 2 and "frames/2.png is 64x48 and frames/1.png 64x64" in said.err
    assert not Path("out2").exists()


def test_a_film_shows_its_recipe(call, limner):
    call("morph", "a cat", "--to-seed", 9, "--frames", 2, "--size", 64, "-o", "way.webp")
    said = limner("show", "way.webp")
    assert said.status == 0 and "prompt" in said.out and "marked as made" in said.out


def test_each_cell_of_a_grid_is_painted_by_its_own_model(call, limner, tiny_folder: Path, tmp_path: Path):
    """The base's model may come second."""
    shutil.copytree(tiny_folder, tmp_path / "other")
    axis = f"model=other,{tiny_folder}"
    assert call("grid", "a cat", "--x", axis, "--size", 64, "-o", "g.png", "--keep").status == 0
    loaded = []
    for i in (1, 2):
        loaded.append(read_receipt(open_picture(Path(f"g-{i}-a-cat.png")), "it").recipe.model)
    assert loaded == ["other", str(tiny_folder)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--side", -4), "--side should be 0 or more"),
        (("--font", "none.ttf"), "cannot be read as a font"),
    ],
)
def test_what_a_grid_cannot_draw_is_told_before_it_is_painted(call, monkeypatch, more: tuple, said: str):
    monkeypatch.setattr("limner.tasks.run.painting", lambda *_: pytest.fail("it was painted"))
    told = call("grid", "a cat", "--x", "cfg=1,2", "--size", 64, "-o", "g.png", *more)
    assert told.status == 2 and said in told.err


def test_a_long_name_is_cut(call):
    name = "é" * 110 + ".png"
    drawn(64, 64).save(name)
    said = call("edit", name, "a long prompt of many words that goes on and on")
    assert said.status == 0 and Path(said.out.partition("  seed")[0]).exists()

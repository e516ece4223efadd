from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from limner.image import open_picture
from limner.provenance.metadata import is_marked, own_text, parameters_of


def drawn(name: str, mode: str = "RGB", ground: str = "white", **saved: object) -> str:
    image = Image.new(mode, (40, 30), ground)
    ImageDraw.Draw(image).ellipse((10, 5, 30, 25), fill="red")
    image.save(name, **saved)
    return name


def test_it_writes_beside_the_picture_and_says_how(limner):
    said = limner("cutout", drawn("a.png"))
    assert said.status == 0 and said.lines[0].startswith("a-cutout.png: an even ground was told from the border")
    image = open_picture(Path("a-cutout.png"))
    assert (
        image.mode == "RGBA" and image.getpixel((0, 0)) == (0, 0, 0, 0) and image.getpixel((20, 15)) == (255, 0, 0, 255)
    )
    row = limner("cutout", "a.png", "-o", "b.webp", "--json").rows[0]
    assert row["path"] == "b.webp" and row["method"] == "ground" and 0.6 < row["clear"] < 0.8
    assert open_picture(Path("b.webp")).getpixel((0, 0))[3] == 0


def test_a_mask_and_the_alpha_that_is_there(limner):
    mask = Image.new("L", (40, 30))
    mask.paste(255, (20, 0, 40, 30))
    mask.save("mask.png")
    assert limner("cutout", drawn("a.png"), "--mask", "mask.png", "--json").rows[0]["method"] == "mask"
    alpha = open_picture(Path("a-cutout.png")).getchannel("A")
    assert alpha.tobytes() == mask.tobytes()
    drawn("clear.png", "RGBA", "#01020300")
    assert limner("cutout", "clear.png", "--json").rows[0]["method"] == "alpha"
    assert open_picture(Path("clear-cutout.png")).tobytes() == open_picture(Path("clear.png")).tobytes()


def test_what_cannot_be_done_is_said(limner):
    drawn("a.png")
    assert "knows no transparency" in limner("cutout", "a.png", "-o", "a.jpg").err
    assert "does not exist" in limner("cutout", "none.png").err
    Image.effect_noise((40, 30), 200).convert("RGB").save("noise.png")
    said = limner("cutout", "noise.png")
    assert said.status == 2 and "% of the border differs" in said.err and not Path("noise-cutout.png").exists()


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_the_recipe_and_the_mark_are_kept(paint, limner, name: str):
    paint("a cat", "-s", 7)
    Image.new("L", (64, 64), 255).save("mask.png")
    assert limner("cutout", "a-cat-7.png", "--mask", "mask.png", "-o", name).status == 0
    image = open_picture(Path(name))
    assert own_text(image) and is_marked(image)
    told = [limner("show", file, "--json").rows[0]["receipt"] for file in ("a-cat-7.png", name)]
    assert told[0] == told[1]


@pytest.mark.parametrize("out", ["b.png", "b.webp"])
@pytest.mark.parametrize("kind", ["a.png", "a.jpg"])
def test_the_words_of_other_tools_and_the_profile_are_kept(limner, kind: str, out: str):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if kind == "a.png":
        info = PngInfo()
        info.add_text("parameters", "a cat\nSteps: 20")
        drawn(kind, pnginfo=info, icc_profile=profile)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 20".encode("utf-16-be")
        drawn(kind, exif=exif.tobytes(), icc_profile=profile, quality=95)
    assert limner("cutout", kind, "-o", out).status == 0
    image = open_picture(Path(out))
    assert parameters_of(image) == "a cat\nSteps: 20" and image.info["icc_profile"] == profile
    assert not is_marked(image)

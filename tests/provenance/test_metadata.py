import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.errors import BadInput
from limner.files import save_picture
from limner.image import open_picture
from limner.pipeline import load
from limner.provenance.metadata import (
    MADE,
    Receipt,
    chunks,
    is_marked,
    own_text,
    parameters,
    parameters_of,
    read_receipt,
    xmp,
)  # fmt: skip
from limner.recipe import Recipe

RECIPE = Recipe(prompt="a red apple, très rouge 日本", negative='blue: "no"', style="pixel art", seed=7)
RECEIPT = Receipt(RECIPE, {"denoiser.safetensors": "ab" * 32}, "bfloat16")
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def saved(path: Path, receipt: Receipt = RECEIPT, words: bool = True) -> Image.Image:
    parts = chunks(receipt, words)
    return open_picture(save_picture(Image.new("RGBA", (8, 8), "red"), path, parts.png, parts.exif, parts.xmp))


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_picture_carries_its_receipt_its_words_and_its_mark(tmp_path: Path, suffix: str):
    image = saved(tmp_path / f"one.{suffix}")
    assert read_receipt(image, "one") == RECEIPT
    assert parameters_of(image) == parameters(RECEIPT)
    assert is_marked(image)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_without_words_the_mark_stays(tmp_path: Path, suffix: str):
    image = saved(tmp_path / f"one.{suffix}", words=False)
    assert is_marked(image)
    assert own_text(image) is None and parameters_of(image) is None
    assert b"apple" not in (tmp_path / f"one.{suffix}").read_bytes()
    with pytest.raises(BadInput, match=r"carries no recipe of Limner's$"):
        read_receipt(image, "one")


@given(prompt=WORDS, negative=WORDS)
def test_any_words_come_back_from_a_picture(tmp_path_factory: pytest.TempPathFactory, prompt: str, negative: str):
    receipt = Receipt(Recipe(prompt=prompt, negative=negative), {}, "float32")
    folder = tmp_path_factory.mktemp("words")
    for suffix in ("png", "webp", "jpg"):
        assert read_receipt(saved(folder / f"one.{suffix}", receipt), "one") == receipt


@given(prompt=WORDS)
def test_the_packet_is_xml_and_holds_the_source_type(prompt: str):
    packet = xmp(Receipt(Recipe(prompt=prompt), {}, "float32"))
    tree = ElementTree.fromstring(packet[packet.index(b"<x:xmpmeta") : packet.index(b"<?xpacket end")])
    found = [node.text for node in tree.iter() if node.tag.endswith("}DigitalSourceType")]
    assert found == [MADE]


def test_a_very_long_prompt_fits_the_packet_of_a_jpeg():
    assert len(xmp(Receipt(Recipe(prompt="word " * 10_000), {}, "float32"))) < 10_000


def test_the_parameters_are_those_that_other_tools_read():
    lines = parameters(RECEIPT).splitlines()
    assert lines[0] == RECIPE.prompt
    assert lines[1] == 'Negative prompt: blue: "no"'
    assert lines[2].startswith(
        "Steps: 24, Sampler: euler_ancestral, Schedule type: uniform, CFG scale: 5, Seed: 7, Size: 128x128"
    )
    assert "Negative" not in parameters(Receipt(Recipe(prompt="x"), {}, "float32"))
    assert 'Model: "a, b"' in parameters(Receipt(Recipe(model="a, b"), {}, "float32"))


def test_the_receipt_names_the_networks_that_took_part(tiny_folder: Path):
    model = load(str(tiny_folder))
    alone = Receipt.of(Recipe(), model)
    assert sorted(alone.weights) == ["autoencoder.safetensors", "denoiser.safetensors", "text.safetensors"]
    assert "eye.safetensors" in Receipt.of(Recipe(best_of=2), model).weights
    assert alone.dtype in ("bfloat16", "float32")


def test_the_words_of_another_tool_are_found(tmp_path: Path):
    words = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a"
    info = PngInfo()
    info.add_text("parameters", words)
    Image.new("RGB", (4, 4)).save(tmp_path / "theirs.png", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + words.encode("utf-16-be")
    Image.new("RGB", (4, 4)).save(tmp_path / "theirs.jpg", exif=exif)
    for name in ("theirs.png", "theirs.jpg"):
        image = open_picture(tmp_path / name)
        assert parameters_of(image) == words
        assert not is_marked(image)
        with pytest.raises(BadInput, match="it has the parameters of another tool"):
            read_receipt(image, name)


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", '{"recipe": 3}', '{"recipe": {"steps": 0}, "weights": {}, "dtype": "x", "limner": "1"}',
        json.dumps(RECEIPT.fields() | {"weights": 7}), json.dumps(RECEIPT.fields() | {"recipe": {"version": 99}}),
    ],
)  # fmt: skip
def test_a_damaged_receipt_is_refused_in_words(text: str):
    image = Image.new("RGB", (4, 4))
    image.info["limner"] = text
    with pytest.raises(BadInput):
        read_receipt(image, "bad.png")

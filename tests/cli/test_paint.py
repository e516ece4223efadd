"""What `limner paint` says and where it puts things, beyond the ways of every day."""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from limner.cli.making import Wishes
from limner.image import from_pil, open_picture
from limner.place import computes_int8, engines
from limner.provenance.metadata import Receipt, chunks, read_receipt
from limner.recipe import Recipe
from limner.weights.io import read_header, read_tensors, write_tensors


def recipe_of(path: str) -> Recipe:
    return read_receipt(open_picture(Path(path)), path).recipe


def test_every_field_of_the_recipe_has_its_flag():
    called = {"region": "regions", "control": "controls", "look": "picture_prompts"}
    flags = {called.get(field.name, field.name) for field in fields(Wishes)}
    others = {"version", "task", "prompt", "image", "image_sha256", "mask_sha256"}
    of_one_command = {"image_cfg", "mask", "strength", "feather", "only_masked", "padding", "extend", "scale"}
    of_one_command |= {"upscaler", "hires", "hires_strength", "seamless"}
    assert flags - {"effort"} == set(Recipe.model_fields) - others - of_one_command


def test_several_pictures_in_a_file_of_one_name_get_their_seeds_beside_it(paint):
    assert paint("a cat", "--count", 2, "-s", 3, "-o", "out.webp", "-q").lines == ["out-3.webp", "out-4.webp"]
    assert paint("a cat", "-s", 3, "-o", "one.jpg", "-q").lines == ["one.jpg"]


@pytest.mark.parametrize("folder", ["new/", "v1.5", "deep/er"])
def test_what_is_no_picture_name_is_a_folder(paint, folder: str):
    assert paint("a cat", "-s", 3, "-o", folder, "-q").lines == [str(Path(folder) / "a-cat-3.png")]


def test_every_prompt_begins_at_the_seed_that_is_given(paint):
    rows = paint("a cat", "a dog", "--count", 2, "-s", 3, "--json").rows
    assert [(row["recipe"]["prompt"], row["seed"]) for row in rows] == [
        ("a cat", 3), ("a cat", 4), ("a dog", 3), ("a dog", 4),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and Path(row["path"]).exists() for row in rows)


def test_without_a_seed_each_prompt_has_its_own(paint):
    first, second = paint("a cat", "a dog", "--json").rows
    assert first["seed"] != second["seed"]


def test_best_of_tells_which_seed_was_kept_and_repeats(paint):
    said = paint("a cat", "-s", 5, "--best-of", 3)
    assert said.out.startswith("a-cat-5.png  seed 5, the best of 3 is ")
    assert recipe_of("a-cat-5.png").best_of == 3
    again = paint("--from", "a-cat-5.png", "-q").out.strip()
    assert open_picture(Path(again)).tobytes() == open_picture(Path("a-cat-5.png")).tobytes()


def test_from_repeats_the_pixels(paint, limner):
    paint("a red apple", "-n", "blue", "--style", "pixel art", "-s", 9, "--sampler", "euler a", "--cfg-rescale", 0.5)
    name = limner("paint", "--from", "a-red-apple-9.png", "-q").out.strip()
    assert name == "a-red-apple-9-2.png"
    assert open_picture(Path(name)).tobytes() == open_picture(Path("a-red-apple-9.png")).tobytes()
    assert recipe_of(name) == recipe_of("a-red-apple-9.png")


@pytest.mark.skipif(not computes_int8(), reason="oneDNN has no products of 8 bits here")
def test_a_picture_of_8_bits_says_so_and_repeats(paint, limner):
    paint("a cat", "-s", 9)
    paint("a cat", "-s", 9, "--precision", "int8", "-o", "small.png")
    assert read_receipt(open_picture(Path("small.png")), "").dtype.startswith("int8 with ")
    assert open_picture(Path("small.png")).tobytes() != open_picture(Path("a-cat-9.png")).tobytes()
    again = limner("paint", "--from", "small.png", "-q")
    assert again.err == ""
    assert open_picture(Path(again.out.strip())).tobytes() == open_picture(Path("small.png")).tobytes()


def test_a_precision_that_the_machine_lacks_is_refused_with_those_it_has(paint):
    said = paint("a cat", "--precision", "fp16")
    assert said.status == 2
    assert said.err.startswith("error: cpu cannot compute in fp16 here; it can in ")
    assert (
        "precision should be '', 'fp32', 'bf16', 'fp16', 'int8' or 'fp8', not 'fp4'"
        in paint("a cat", "--precision", "fp4").err
    )


@pytest.mark.skipif("openvino" not in engines("cpu"), reason="needs the extra openvino")
def test_another_engine_paints_the_same_picture_and_says_so(paint, limner):
    exact = ("-s", 9, "--precision", "fp32")  # in bf16 the engine rounds between layers, too
    paint("a cat", *exact)
    paint("a cat", *exact, "--engine", "openvino", "-o", "driven.png")
    assert recipe_of("driven.png").engine == "openvino"
    first, second = (from_pil(open_picture(Path(name))) for name in ("a-cat-9.png", "driven.png"))
    assert float((first - second).abs().max()) <= 1 / 255
    again = limner("paint", "--from", "driven.png", "-q")
    assert open_picture(Path(again.out.strip())).tobytes() == open_picture(Path("driven.png")).tobytes()


def test_an_engine_that_nobody_knows_is_refused(paint):
    assert (
        "engine should be '', 'torch', 'recorded', 'compiled' or 'openvino', not 'onnx'"
        in paint("a cat", "--engine", "onnx").err
    )


def test_from_with_a_flag_takes_a_field_back(paint, limner):
    paint("a cat", "--style", "flat", "-n", "blue", "-s", 9)
    row = limner("paint", "--from", "a-cat-9.png", "a dog", "--style", "any", "-n", "", "-s", -1, "--json").rows[0]
    assert (row["recipe"]["prompt"], row["recipe"]["style"], row["recipe"]["negative"]) == ("a dog", None, "")
    assert row["recipe"]["steps"] == 2


def test_from_warns_where_other_weights_or_another_type_will_paint(paint, limner, tiny_folder: Path, tmp_path: Path):
    paint("a cat", "-s", 9)
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    (other / "SHA256SUMS").unlink()
    path = other / "denoiser.safetensors"
    header = read_header(path)
    tensors = {name: value.clone() for name, value in read_tensors(path, header).items()}
    tensors["head.bias"] += 0.5
    write_tensors(path, tensors, header.metadata)
    said = limner("paint", "--from", "a-cat-9.png", "-m", other)
    assert said.status == 0
    assert said.err == "warning: the picture was painted with another denoiser.safetensors: it will differ\n"
    receipt = read_receipt(open_picture(Path("a-cat-9.png")), "")
    parts = chunks(Receipt(receipt.recipe, receipt.weights, "float64"))
    open_picture(Path("a-cat-9.png")).save("rare.png", pnginfo=parts.png)
    assert "painted in float64, here it is" in limner("paint", "--from", "rare.png").err


def test_prompts_come_from_a_file(paint):
    Path("prompts.txt").write_text("\ufeffa cat\n\n  a dog \r\n", encoding="utf-8")
    assert paint("--prompt-file", "prompts.txt", "-s", 1, "-q").lines == ["a-cat-1.png", "a-dog-1.png"]


def test_files_of_prompts_that_cannot_be_used_are_refused(paint):
    Path("empty.txt").write_text("\n")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    for name, said in {
        "empty.txt": "holds no prompt",
        "latin.txt": "not text in UTF-8",
        "none.txt": "cannot be read",
    }.items():
        answer = paint("--prompt-file", name)
        assert answer.status == 2 and said in answer.err
    assert "UTF-8" in paint("caf\udce9").err


def test_an_empty_prompt_paints_and_is_named_picture(paint):
    assert paint("", "-s", 1, "-q").lines == ["picture-1.png"]


def test_sizes_are_said_in_several_ways(paint, limner, tiny_folder: Path):
    for words in (["--size", "64x96"], ["--size", "64X96"], ["-W", 64, "-H", 96], ["--size", 96, "--width", 64]):
        row = limner("paint", "a cat", "-m", tiny_folder, "--steps", 1, "--json", *words).rows[0]
        assert (row["recipe"]["width"], row["recipe"]["height"]) == (64, 96)


def test_seeds_that_run_out_are_refused_before_anything_is_painted(paint, tmp_path: Path):
    said = paint("a cat", "-s", 2**63 - 2, "--count", 3)
    assert said.status == 2 and "seed should be less than" in said.err
    assert list(tmp_path.iterdir()) == []


def test_wrong_values_are_refused_before_a_model_is_looked_for(limner):
    assert "steps should be" in limner("paint", "a cat", "-m", "nowhere/at/all", "--steps", 0).err


def test_a_folder_that_cannot_be_written_is_said(paint):
    Path("file").write_text("")
    said = paint("a cat", "-o", "file/below/")
    assert said.status == 2 and "its folder is a file" in said.err and said.err.count("\n") == 1


def test_quiet_and_json_say_nothing_else(paint):
    for flag in ("--quiet", "--json"):
        said = paint("a cat", "-s", 1, flag)
        assert len(said.lines) == 1 and said.err == ""

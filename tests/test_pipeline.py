import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.errors import BadInput, BadWeights, LimnerError, UnknownName
from limner.families.recognise import weight_files
from limner.pipeline import Model, find_model, load
from limner.place import find_place
from limner.types import Cond
from limner.weights.io import read_header, read_tensors, write_tensors

CPU = find_place("cpu", torch.float32)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return load(str(tiny_folder), CPU)


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """The model's folder, free to be broken; without its sums, so that other checks are reached."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    (folder / "SHA256SUMS").unlink()
    return folder


def test_the_four_verbs_agree_in_shape(model: Model):
    cond = model.encode(["a red apple", "a cat"], ["flat", None])
    assert isinstance(cond, Cond) and cond.tokens.shape[0] == len(cond) == 2
    x = torch.randn(2, *model.latent_shape(64, 96))
    assert model.denoiser(cond)(x, 0.5).shape == x.shape == (2, 8, 8, 12)
    picture = model.to_image(x)
    assert picture.shape == (2, 4, 64, 96) and picture.min() >= 0 and picture.max() <= 1
    assert (picture[:, :3] <= picture[:, 3:]).all()  # premultiplied
    assert model.to_latent(picture).shape == x.shape


def test_one_condition_serves_every_row(model: Model):
    x = torch.randn(3, *model.latent_shape(64, 64))
    denoise = model.denoiser(model.encode(["a cat"]))
    assert torch.allclose(denoise(x, 0.7)[1:2], denoise(x[1:2], 0.7), atol=1e-5)


def test_a_padded_prompt_is_the_same_prompt(model: Model):
    x = torch.randn(1, *model.latent_shape(64, 64))
    both = model.encode(["a cat", "a red apple in a blue house"])
    padded = Cond(both.tokens[:1], both.pooled[:1], both.mask[:1], both.style[:1])  # type: ignore[index]
    assert torch.allclose(model.denoiser(padded)(x, 0.7), model.denoiser(model.encode(["a cat"]))(x, 0.7), atol=1e-4)


def test_styles_have_numbers_and_unknown_ones_the_nearest_name(model: Model):
    assert model.style_number(None) == 0
    assert model.style_number("noto") == 1
    with pytest.raises(UnknownName, match="no style is called 'pixelart': did you mean pixel art"):
        model.style_number("pixelart")


@pytest.mark.parametrize(
    ("width", "height", "nearest"), [(130, 128, "128x128"), (1, 5000, "64x512"), (129, 100, "128x96")]
)
def test_a_size_that_cannot_be_painted_is_told_the_nearest(model: Model, width: int, height: int, nearest: str):
    with pytest.raises(BadInput, match=f"cannot paint {width}x{height}.*the nearest is {nearest}"):
        model.latent_shape(height, width)


def test_a_long_prompt_is_cut_with_a_warning_that_says_where(model: Model):
    with pytest.warns(UserWarning, match="cut after 62 word pieces, before 'cat cat"):
        cond = model.encode(["cat " * 10_000])
    assert cond.tokens.shape[1] == 64
    with pytest.warns(UserWarning, match="cut after 62"):
        same = model.encode(["cat " * 63])
    assert torch.equal(cond.tokens, same.tokens)


def test_the_eye_compares_pictures_and_texts(model: Model):
    scores = model.likeness(torch.rand(3, 4, 64, 64), ["a cat", "a dog"])
    assert scores.shape == (3, 2) and scores.abs().max() <= 1.001


def test_a_model_without_an_eye_paints_and_says_so_when_asked_to_look(copy: Path):
    for name in ("eye", "judge"):
        (copy / f"{name}.safetensors").unlink()
    blind = load(str(copy), CPU)
    assert blind.denoiser(blind.encode(["a cat"]))(torch.randn(1, 8, 8, 8), 0.5).shape == (1, 8, 8, 8)
    with pytest.raises(BadInput, match="no eye"):
        blind.likeness(torch.rand(1, 4, 64, 64), ["a cat"])


def test_a_single_file_is_the_same_model(model: Model, tiny_folder: Path, tmp_path: Path):
    tensors, metadata = {}, {}
    for file in weight_files(tiny_folder):
        header = read_header(file)
        tensors |= {f"{file.stem}.{name}": value for name, value in read_tensors(file, header).items()}
        metadata[f"limner.{file.stem}.config"] = header.metadata["limner.config"]
    write_tensors(tmp_path / "one.safetensors", tensors, metadata)
    shutil.copy(tiny_folder / "tokenizer.json", tmp_path)
    single = load(str(tmp_path / "one.safetensors"), CPU)
    x = torch.randn(1, *model.latent_shape(64, 64))
    assert torch.equal(single.denoiser(single.encode(["cat"]))(x, 0.5), model.denoiser(model.encode(["cat"]))(x, 0.5))
    assert list(single.digests) == ["one.safetensors"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    header = read_header(path)
    tensors = {name: value.clone() for name, value in read_tensors(path, header).items()}
    edit(tensors)
    write_tensors(path, tensors, header.metadata)


def test_a_flipped_byte_is_refused_by_the_folders_sums(tiny_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    flip(folder / "text.safetensors")
    with pytest.raises(BadWeights, match=r"text\.safetensors is damaged: its SHA-256"):
        load(str(folder), CPU)


def test_a_cut_tail_is_refused(copy: Path):
    cut(copy / "denoiser.safetensors")
    with pytest.raises(BadWeights, match=r"denoiser\.safetensors: the header speaks of"):
        load(str(copy), CPU)


def test_a_missing_a_strange_and_a_misshapen_tensor_are_named(copy: Path):
    path = copy / "denoiser.safetensors"
    whole = path.read_bytes()
    for edit, said in (
        (lambda t: t.pop("head.bias"), r"1 weights are missing, the first is 'head\.bias'"),
        (
            lambda t: t.update({"head.bais": t["head.bias"]}),
            r"'head\.bais'; the nearest that is wanted is 'head\.bias'",
        ),
        (lambda t: t.update({"head.bias": torch.zeros(3)}), r"'head\.bias' has shape \[3\] and the config wants"),
    ):
        path.write_bytes(whole)
        change(path, edit)
        with pytest.raises(BadWeights, match=said):
            load(str(copy), CPU)


def test_a_config_with_a_strange_key_is_refused(copy: Path):
    path = copy / "denoiser.safetensors"
    header = read_header(path)
    metadata = header.metadata | {"limner.config": '{"widht": 64}'}
    write_tensors(path, {name: value.clone() for name, value in read_tensors(path, header).items()}, metadata)
    with pytest.raises(BadWeights, match="did you mean width"):
        load(str(copy), CPU)


@pytest.mark.parametrize("lost", ["text.safetensors", "tokenizer.json"])
def test_what_a_folder_lacks_is_named(copy: Path, lost: str):
    (copy / lost).unlink()
    with pytest.raises(BadWeights, match=f"lacks (the )?{lost.split('.')[0]}"):
        load(str(copy), CPU)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nimi", "no model is called 'nimi': did you mean mini"),
        ("./nowhere", r"\./nowhere does not exist; a model is a name"),
        ("x.safetensors", "does not exist"),
    ],
)
def test_an_unknown_model_is_told_the_nearest(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LimnerError, match=said):
        find_model(name)


def test_an_empty_folder_is_no_model(tmp_path: Path):
    with pytest.raises(BadWeights, match=r"holds no \.safetensors or \.gguf file"):
        load(str(tmp_path), CPU)


def test_bf16_stays_near_fp32(tiny_folder: Path, model: Model):
    rough = replace(model, place=replace(CPU, dtype=torch.bfloat16))
    x = torch.randn(1, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    fine, coarse = (each.denoiser(each.encode(["cat"]))(x, 0.5) for each in (model, rough))
    assert (fine - coarse).norm() / fine.norm() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_is_laid_out_as_one_picture_is(tiny_folder: Path, dtype: torch.dtype):
    """In bf16 another layout of memory is another product: a batch would differ from its pictures alone."""
    model = load(str(tiny_folder), find_place("cpu", dtype))
    denoise = model.denoiser(model.encode(["a cat"]))
    x = torch.randn(3, *model.latent_shape(128, 128), generator=torch.Generator().manual_seed(0))
    together, alone = denoise(x.to(memory_format=torch.channels_last), 0.7), denoise(x[:1], 0.7)
    assert together.is_contiguous() and alone.is_contiguous()
    assert torch.allclose(together[:1], alone, atol=1e-4)

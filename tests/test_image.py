import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner import image as images
from limner.errors import BadInput, NotSaved
from limner.image import fitted, from_pil, kind_of, open_picture, save_picture, slug, to_pil


def some_picture(side: int = 16) -> torch.Tensor:
    """Premultiplied, with clear, half and opaque pixels."""
    random = torch.Generator().manual_seed(0)
    alpha = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (1, side, side), generator=random)]
    return torch.cat([torch.rand(3, side, side, generator=random) * alpha, alpha])


def save(path: Path, **more: object) -> Path:
    return save_picture(to_pil(some_picture()), path, None, b"", b"", **more)


def left_behind(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if "partial" in file.name)


def test_to_pillow_and_back_loses_a_rounding_at_most():
    picture = some_picture()
    assert (from_pil(to_pil(picture)) - picture).abs().max() < 1.01 / 255


def test_clear_pixels_are_black_and_colours_straight():
    picture = torch.zeros(4, 1, 2)
    picture[:, 0, 1] = torch.tensor([0.5, 0.25, 0.0, 0.5])
    assert np.asarray(to_pil(picture)).tolist() == [[[0, 0, 0, 0], [255, 128, 0, 128]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "1", "RGBA"])
def test_every_kind_of_picture_becomes_four_channels(mode: str):
    picture = from_pil(Image.new(mode, (3, 2)))
    assert picture.shape == (4, 2, 3)
    assert picture.min() >= 0 and picture.max() <= 1


@pytest.mark.parametrize("size", [(10, 40), (300, 20), (64, 64), (1, 900)])
def test_fitted_keeps_the_shape_inside_a_clear_square(size: tuple[int, int]):
    picture = fitted(Image.new("RGB", size, "red"), 64)
    assert picture.shape == (4, 64, 64)
    rows, columns = (picture[3] > 0.5).nonzero().T
    assert abs((len(rows.unique()) / len(columns.unique())) / (size[1] / size[0]) - 1) < 0.5 or min(size) < 10


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red apple!", "a-red-apple"),
        ("", "picture"),
        ("日本", "picture"),
        ("crème brûlée", "creme-brulee"),
        ("../../etc/passwd", "etc-passwd"),
        ("a" * 300, "a" * 48),
        ("x\x00y\n", "x-y"),
    ],
)
def test_names_of_files_are_plain(prompt: str, name: str):
    assert slug(prompt) == name


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".jpeg", ".PNG"])
def test_what_is_written_can_be_read(tmp_path: Path, suffix: str):
    path = save(tmp_path / "deep" / f"one{suffix}")
    assert open_picture(path).size == (16, 16)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_lossless_files_hold_the_same_bytes(tmp_path: Path, suffix: str):
    path = save(tmp_path / f"one{suffix}")
    assert np.array_equal(np.asarray(open_picture(path).convert("RGBA")), np.asarray(to_pil(some_picture())))


def test_jpeg_lays_the_picture_on_white(tmp_path: Path):
    path = save_picture(to_pil(torch.zeros(4, 16, 16)), tmp_path / "clear.jpg", None, b"", b"")
    assert open_picture(path).getpixel((3, 3)) == (255, 255, 255)


def test_nothing_is_overwritten(tmp_path: Path):
    names = [save(tmp_path / "one.png").name for _ in range(3)]
    assert names == ["one.png", "one-2.png", "one-3.png"]
    assert save(tmp_path / "one.png", keep=False).name == "one.png"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_overwrites_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def no_links(*_: object) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "one.png").write_text("mine")
    assert save(tmp_path / "one.png").name == "one-2.png"
    assert (tmp_path / "one.png").read_text() == "mine"
    assert open_picture(tmp_path / "one-2.png").size == (16, 16)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error")])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str):
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotSaved, match=said):
        save(tmp_path / "one.png")
    assert list(tmp_path.iterdir()) == []


def test_a_stop_in_the_middle_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "one.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_folder_that_is_a_file_is_named_as_one(tmp_path: Path, below: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotSaved, match="its folder is a file"):
        save(tmp_path / below / "one.png")


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NotSaved, match="no permission"):
        save(tmp_path / "one.png")


def test_a_name_of_the_longest_kind_is_written(tmp_path: Path):
    path = tmp_path / f"{'n' * 251}.png"
    assert save(path) == path
    with pytest.raises(NotSaved, match="name too long"):
        save(path)  # its neighbour's name would be longer still
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("name", "said"), [("x.gif", "a .gif file"), ("x", "without a suffix")])
def test_other_formats_are_refused_with_the_choices(name: str, said: str):
    with pytest.raises(BadInput, match=rf"{said}; pictures are written as \.png, \.webp"):
        kind_of(Path(name))


def test_words_too_long_for_a_jpeg_are_left_out_with_a_warning(tmp_path: Path):
    with pytest.warns(UserWarning, match="cannot hold so long a recipe"):
        save_picture(to_pil(some_picture()), tmp_path / "one.jpg", None, b"x" * 70_000, b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_picture(to_pil(some_picture()), tmp_path / "one.webp", None, b"x" * 70_000, b"")


def test_what_is_no_picture_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="does not exist"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(BadInput, match="cannot be read"):
        open_picture(tmp_path)
    whole = save(tmp_path / "whole.png").read_bytes()
    for name, content in {"words.png": b"words", "cut.png": whole[:90], "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{name} cannot be read as PNG, JPEG, WEBP"):
            open_picture(tmp_path / name)


def test_a_picture_of_another_format_is_refused(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.bmp")
    with pytest.raises(BadInput, match="cannot be read as"):
        open_picture(tmp_path / "one.bmp")


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(BadInput, match="16 x 16 pixels; at most 100"):
        open_picture(save(tmp_path / "one.png"))

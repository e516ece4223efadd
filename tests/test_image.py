import errno
import os

import pytest
import torch
from PIL import Image

from limner import image as border
from limner.errors import BadInput, NotSaved
from limner.image import fitted, from_pil, open_picture, save_picture, slug, to_pil


def picture(side: int = 16) -> torch.Tensor:
    torch.manual_seed(0)
    alpha = torch.rand(1, side, side).round()
    return torch.cat([torch.rand(3, side, side) * alpha, alpha])


def test_to_pillow_and_back():
    one = picture().mul(255).round() / 255
    assert (from_pil(to_pil(one)) - one).abs().max() <= 1 / 255


def test_clear_pixels_are_black():
    assert to_pil(torch.zeros(4, 8, 8)).getpixel((3, 3)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("A red apple!", "a-red-apple"), ("", "picture"), ("../../etc", "etc"), ("日本", "picture"), ("é" * 99, "e" * 48)],
)
def test_names_of_files(prompt, name):
    assert slug(prompt) == name


def test_nothing_is_overwritten(tmp_path):
    paths = [save_picture(to_pil(picture()), tmp_path / "a.png", None, b"", b"") for _ in range(3)]
    assert [path.name for path in paths] == ["a.png", "a-2.png", "a-3.png"]
    assert sorted(os.listdir(tmp_path)) == ["a-2.png", "a-3.png", "a.png"]


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_what_is_written_can_be_read(tmp_path, suffix):
    path = save_picture(to_pil(picture()), tmp_path / f"a.{suffix}", None, b"", b"")
    assert open_picture(path).size == (16, 16)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"\.gif"):
        save_picture(to_pil(picture()), tmp_path / "a.gif", None, b"", b"")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(border.os, "fsync", full)
    with pytest.raises(NotSaved, match="the disk is full"):
        save_picture(to_pil(picture()), tmp_path / "a.png", None, b"", b"")
    assert not os.listdir(tmp_path)


def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(NotSaved, match="could not be written"):
        save_picture(to_pil(picture()), tmp_path / "x" / "a.png", None, b"", b"")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"not a picture" * 50])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read"):
        open_picture(tmp_path / "a.png")


def test_a_cut_picture_is_refused(tmp_path):
    path = save_picture(to_pil(picture(64)), tmp_path / "a.png", None, b"", b"")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(BadInput, match="cannot be read"):
        open_picture(path)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (5000, 4000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(BadInput, match="at most 16,000,000"):
        open_picture(tmp_path / "a.png")


def test_a_missing_picture_is_told(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        open_picture(tmp_path / "no.png")


@pytest.mark.parametrize("size", [(10, 40), (300, 20), (128, 128)])
def test_any_shape_is_fitted_into_a_square(size):
    inside = fitted(Image.new("RGBA", size, "red"), 128)
    assert inside.shape == (4, 128, 128)
    share = min(size) / max(size)
    assert inside[3].mean() == pytest.approx(share, abs=0.02)

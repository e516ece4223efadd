import errno
import hashlib
import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import OpenEXR
import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from limner.errors import BadInput, NotSaved
from limner.files import kind_of, save_picture, slug
from limner.image import (
    fitted,
    from_linear,
    from_pil,
    open_picture,
    read_original,
    read_picture,
    save_deep,
    to_linear,
    to_pil,
)


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


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".jpeg", ".PNG", ".tif", ".tiff"])
def test_what_is_written_can_be_read(tmp_path: Path, suffix: str):
    path = save(tmp_path / "deep" / f"one{suffix}")
    assert open_picture(path).size == (16, 16)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
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


# Reading: what people have


def icc(
    space: str = "RGB ", tags: dict[bytes, bytes] | None = None, kind: bytes = b"mntr", pcs: bytes = b"XYZ "
) -> bytes:
    """An ICC profile (ICC.1:2001-04) put together by hand; as it stands, RGB of a wide gamut and a gamma of 2.2."""
    if tags is None:
        tags = {name: xyz(*column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), WIDE.T, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), GAMMA)
    tags = {b"wtpt": xyz(*WHITE)} | tags
    at, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, at + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"", 0x02100000, kind, space.encode(), pcs)
    head += struct.pack(">6H4s28x", 2024, 1, 1, 0, 0, 0, b"acsp") + xyz(*WHITE)[8:]
    return head.ljust(128, b"\0") + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


WHITE = (0.9642, 1.0, 0.8249)  # D50
WIDE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
NARROW = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # sRGB's
GAMMA = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))


def lut(channels: int, corner: Callable[[int], tuple[int, int, int]]) -> bytes:
    """Lab of 8 bits at the corners of a cube, between them straight lines."""
    straight = bytes(range(256))
    corners = b"".join(bytes(corner(i)) for i in range(2**channels))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0]) + matrix + straight * channels + corners + straight * 3


INKS = icc("CMYK", {b"A2B0": lut(4, lambda i: (255 - 17 * i, 128, 128))}, b"prtr", b"Lab ")
SCANNER = icc("RGB ", {b"A2B0": lut(3, lambda i: (36 * i, 128, 128))}, b"scnr", b"Lab ")  # has no way back
DARK = icc("GRAY", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 4 * 256)})  # a gamma of 4


def wide_in_srgb(*rgb: int) -> list[float]:
    """By the formulas, in 0..255."""
    light = np.linalg.inv(NARROW) @ WIDE @ (np.array(rgb) / 255) ** 2.2
    return from_linear(torch.tensor(light)).clamp(0, 1).mul(255).tolist()


def png(header: tuple[int, ...], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """width, height, bits and colour type, and rows with their filter bytes."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def png16(kind: int, *values: int) -> bytes:
    """4 x 3 pixels of one colour with 16 bits a channel."""
    return png((4, 3, 16, kind), (b"\0" + struct.pack(f">{len(values)}H", *values) * 4) * 3)


def packed(image: Image.Image, kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def plain(mode: str, colour: Any, kind: str = "PNG", **more: Any) -> bytes:
    return packed(Image.new(mode, (4, 3), colour), kind, **more)


def palette(kind: str, **more: Any) -> bytes:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 250, 100, 50])
    return packed(image, kind, **more)


def exr(channels: dict[str, np.ndarray], **header: Any) -> bytes:
    path = Path("one.exr").absolute()  # in the test's own folder
    OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | header, channels).write(
        str(path)
    )
    return path.read_bytes()


def half(value: float) -> np.ndarray:
    return np.full((3, 4), value, np.float16)


def exif(**tags: Any) -> Image.Exif:
    out = Image.Exif()
    for name, value in tags.items():
        out[int(name[1:], 16)] = value
    return out


UP = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\3\0\0\0up\0\0\0\0\0\0"  # the tag 0x0112 as text


def many(kind: str) -> bytes:
    return plain("RGB", "red", kind, save_all=True, append_images=[Image.new("RGB", (4, 3), "blue")])


RED, CLEAR = [255, 0, 0, 255], [0, 0, 0, 0]
GOOD: dict[str, tuple[Callable[[], bytes], list[float]]] = {  # a file and the sRGB of its pixels, premultiplied, 0..255
    "1 bit": (lambda: plain("1", 1), [255] * 4),
    "grey": (lambda: plain("L", 90), [90, 90, 90, 255]),
    "grey and alpha": (lambda: plain("LA", (200, 51)), [40, 40, 40, 51]),
    "grey with a clear shade": (lambda: plain("L", 90, transparency=90), CLEAR),
    "grey of another shade": (lambda: plain("L", 91, transparency=90), [91, 91, 91, 255]),
    "palette": (lambda: palette("PNG"), [250, 100, 50, 255]),
    "palette with a clear colour": (lambda: palette("PNG", transparency=1), CLEAR),
    "palette with alphas": (lambda: palette("PNG", transparency=bytes([0, 51])), [50, 20, 10, 51]),
    "palette in a TIFF": (lambda: palette("TIFF"), [250, 100, 50, 255]),
    "RGB": (lambda: plain("RGB", (10, 20, 30)), [10, 20, 30, 255]),
    "RGB with a clear colour": (lambda: plain("RGB", (10, 20, 30), transparency=(10, 20, 30)), CLEAR),
    "RGBA": (lambda: plain("RGBA", (100, 50, 25, 51)), [20, 10, 5, 51]),
    "RGBA in a TIFF": (lambda: plain("RGBA", (100, 50, 25, 51), "TIFF"), [20, 10, 5, 51]),
    "a packed TIFF": (lambda: plain("RGB", (10, 20, 30), "TIFF", compression="tiff_lzw"), [10, 20, 30, 255]),
    "RGBA in a WebP": (lambda: plain("RGBA", (100, 50, 25, 51), "WEBP", lossless=True), [20, 10, 5, 51]),
    "a WebP": (lambda: plain("RGB", (10, 20, 30), "WEBP", lossless=True), [10, 20, 30, 255]),
    "a JPEG": (lambda: plain("RGB", (90, 90, 90), "JPEG"), [90, 90, 90, 255]),
    "a grey JPEG": (lambda: plain("L", 90, "JPEG"), [90, 90, 90, 255]),
    "a progressive JPEG": (lambda: plain("L", 90, "JPEG", progressive=True), [90, 90, 90, 255]),
    "a JPEG with a second behind it": (lambda: many("MPO"), [254, 0, 0, 255]),
    "CMYK": (lambda: plain("CMYK", (0, 255, 255, 0), "TIFF"), RED),
    "a CMYK JPEG": (lambda: plain("CMYK", (0, 255, 255, 0), "JPEG", quality=100), RED),
    "CMYK with a profile": (lambda: plain("CMYK", (255, 255, 0, 0), "TIFF", icc_profile=INKS), [48] * 3 + [255]),
    "YCbCr": (lambda: plain("YCbCr", (90, 128, 128), "TIFF"), [90, 90, 90, 255]),
    "LAB": (lambda: plain("LAB", (51, 128, 128), "TIFF"), [48, 48, 48, 255]),
    "16 bits of grey": (lambda: png16(0, 25700 + 128), [100 + 128 / 257] * 3 + [255]),
    "16 bits of grey in a TIFF": (lambda: plain("I;16", 25700, "TIFF"), [100, 100, 100, 255]),
    "floats": (lambda: plain("F", 0.25, "TIFF"), [63.75] * 3 + [255]),
    "floats beyond white": (lambda: plain("F", 7.0, "TIFF"), [255] * 4),
    "a wide gamut": (lambda: plain("RGB", (150, 120, 90), icc_profile=icc()), [*wide_in_srgb(150, 120, 90), 255]),
    "a wide gamut in a palette": (lambda: palette("PNG", icc_profile=icc()), [*wide_in_srgb(250, 100, 50), 255]),
    "a wide gamut of greys": (lambda: plain("L", 128, icc_profile=icc()), [*wide_in_srgb(128, 128, 128), 255]),
    "a profile of greys": (lambda: plain("L", 186, icc_profile=DARK), [145] * 3 + [255]),
    "a profile of greys and alpha": (lambda: plain("LA", (186, 51), icc_profile=DARK), [29] * 3 + [51]),
    "a scanner's profile": (lambda: plain("RGB", (0, 0, 0), icc_profile=SCANNER), [0, 0, 0, 255]),
    "odd EXIF": (lambda: plain("RGB", "red", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), RED),
    "EXIF that is none": (lambda: plain("RGB", "red", "WEBP", lossless=True, exif=b"words"), RED),
    "an orientation of 99": (lambda: plain("RGB", "red", exif=exif(x112=99)), RED),
    "an orientation in words": (lambda: plain("RGB", "red", exif=UP), RED),
    "EXR": (lambda: exr({"RGB": np.full((3, 4, 3), 0.25, np.float16)}), [136.96] * 3 + [255]),
    "EXR with alpha": (lambda: exr({"RGBA": np.full((3, 4, 4), 0.2, np.float32)}), [51] * 4),
    "EXR of greys": (lambda: exr({"Y": half(0.25)}), [136.96] * 3 + [255]),
    "EXR with more channels": (lambda: exr({name: half(1) for name in ("R", "G", "B", "Z", "id")}), [255] * 4),
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", GOOD)
def test_what_people_have_is_read(here: Path, name: str):
    make, colour = GOOD[name]
    (here / "one").write_bytes(make())
    deep = name.startswith(("16 bits", "floats", "EXR"))
    for picture in (from_pil(open_picture(here / "one")), read_picture(here / "one")):
        assert picture.shape == (4, 3, 4)
        found = picture[:, 1, 1].mul(255).tolist()
        assert found == pytest.approx(colour, abs=1.01), name
    assert found == pytest.approx(colour, abs=0.05 if deep else 1.01)


WARNED = {
    "16 bits of RGB": (lambda: png16(2, 25700, 5140, 0), "holds 16 bits a channel, of which 8 are read"),
    "16 bits of RGBA": (lambda: png16(6, 25700, 5140, 0, 65535), "holds 16 bits a channel"),
    "16 bits of grey and alpha": (lambda: png16(4, 25700, 65535), "holds 16 bits a channel"),
    "light beyond white": (lambda: exr({"RGB": np.full((3, 4, 3), 7, np.float32)}), "light brighter than white"),
    "a damaged profile": (lambda: plain("RGB", "red", icc_profile=b"words"), r"profile \(damaged\) does not fit"),
    "a profile of inks": (lambda: plain("RGB", "red", icc_profile=INKS), r"profile \(CMYK\) does not fit"),
    "a profile of greys": (lambda: plain("RGB", "red", icc_profile=DARK), r"profile \(GRAY\) does not fit"),
    "inks with a profile of light": (lambda: plain("CMYK", (0, 255, 255, 0), "TIFF", icc_profile=icc()), r"\(RGB\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_what_is_read_in_part_is_said(here: Path, name: str):
    make, said = WARNED[name]
    (here / "one").write_bytes(make())
    with pytest.warns(UserWarning, match=said) as warned:
        read_picture(here / "one")
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = read_original(here / "one")
    assert original.icc is None and original.image.mode in ("RGB", "RGBA")


@pytest.mark.parametrize("name", ["16 bits of grey", "16 bits of grey in a TIFF", "floats", "EXR", "EXR with alpha"])
def test_deep_originals_are_read_at_8_bits_with_one_warning(here: Path, name: str):
    make, colour = GOOD[name]
    (here / "one").write_bytes(make())
    with pytest.warns(UserWarning, match="deeper than 8 bits a channel; it is read and given back at 8") as warned:
        original = read_original(here / "one")
    assert len(warned) == 1
    assert original.picture[:, 1, 1].mul(255).tolist() == pytest.approx(colour, abs=1.01)
    assert (original.picture * 255 - (original.picture * 255).round()).abs().max() < 1e-3 or original.has_alpha


def cut(content: bytes, share: float = 0.6) -> bytes:
    return content[: int(len(content) * share)]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
WORDS = b"a\0\0" + zlib.compress(bytes(1_000_000))
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it is empty"),
    "words": (lambda: b"words", "it is none of them"),
    "a PDF": (lambda: b"%PDF-1.7\n", "it is a PDF"),
    "a GIF": (lambda: plain("P", 0, "GIF"), "it is a GIF"),
    "a BMP": (lambda: plain("RGB", 0, "BMP"), "it is a BMP"),
    "an SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG or other XML"),
    "an AVIF": (lambda: plain("RGB", 0, "AVIF"), "an AVIF, a HEIC"),
    "a ZIP": (lambda: b"PK\3\4" + bytes(40), "a ZIP archive"),
    "a PSD": (lambda: b"8BPS" + bytes(40), "a PSD"),
    "a PNG cut short": (lambda: cut(packed(NOISE, "PNG")), "cannot be read as PNG"),
    "a PNG's first bytes": (lambda: packed(NOISE, "PNG")[:20], "Truncated"),
    "words that begin as a PNG": (lambda: b"\x89PNG words", "it is a damaged or an unusual PNG"),
    "a JPEG cut short": (lambda: cut(packed(NOISE, "JPEG")), "truncated"),
    "a WebP cut short": (lambda: cut(packed(NOISE, "WEBP", lossless=True)), "cannot be read as"),
    "a TIFF cut short": (lambda: cut(packed(NOISE, "TIFF")), "cannot be read as"),
    "a packed TIFF cut short": (lambda: cut(packed(NOISE, "TIFF", compression="tiff_lzw")), "cannot be read as"),
    "an EXR cut short": (lambda: cut(exr({"RGB": np.asarray(NOISE).astype(np.float32)}), 0.9), "an unusual EXR"),
    "an EXR's first bytes": (lambda: exr({"Y": half(0)})[:40], "a damaged or an unusual EXR"),
    "an EXR of depths": (lambda: exr({"Z": half(0)}), "1 part with the channels Z; one part with R, G, B"),
    "a wrong checksum": (lambda: packed(NOISE, "PNG").replace(b"IDAT", b"IDAU"), "cannot be read as"),
    "frames in a PNG": (lambda: many("PNG"), "holds 2 frames; a picture of one"),
    "frames in a WebP": (lambda: many("WEBP"), "holds 2 frames"),
    "pages of a TIFF": (lambda: many("TIFF"), "holds 2 pages"),
    "32 bits": (lambda: plain("I", 7, "TIFF"), "whole numbers of 32 bits"),
    "a bomb": (lambda: png((60_000, 60_000, 8, 2), b""), "cannot be read as .* exceeds limit"),
    "a large picture": (lambda: png((4097, 4096, 8, 2), b""), "4097 x 4096 pixels; at most 16,777,216 are read"),
    "a large JPEG": (lambda: packed(Image.new("L", (9000, 2000)), "JPEG"), "9000 x 2000 pixels; at most"),
    "a large EXR": (lambda: exr({"Y": half(0)}, displayWindow=(np.zeros(2, "i4"), np.array([9999, 9999], "i4"))),
                    "10000 x 10000 pixels; at most"),
    "a bomb of words": (lambda: png((4, 3, 8, 0), bytes(15), *[(b"zTXt", WORDS)] * 70), "cannot be read as .* text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [open_picture, read_picture, read_original])
def test_what_is_no_picture_is_refused(here: Path, name: str, read: Callable[[Path], Any]):
    make, said = BAD[name]
    (here / "it.png").write_bytes(make())
    with pytest.raises(BadInput, match=f"^{here}/it.png .*{said}") as caught:
        read(here / "it.png")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    cases = {"none.png": "does not exist", ".": "it is a folder", "pipe": "it is a pipe", "loop": "cannot be read as"}
    for name, said in (cases | {"nowhere": "does not exist", "a\0b": "null", "n" * 300: "too long"}).items():
        with pytest.raises(BadInput, match=said):
            open_picture(tmp_path / name)
    with pytest.raises(BadInput, match="it is a pipe or a device"):
        open_picture(Path("/dev/zero"))
    path = save(tmp_path / "one.png")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match="no permission"):
        open_picture(path)


def test_the_most_pixels_can_be_chosen(tmp_path: Path):
    path = save(tmp_path / "one.png")
    assert open_picture(path, 256).size == (16, 16)
    with pytest.raises(BadInput, match="16 x 16 pixels; at most 255 are read"):
        open_picture(path, 255)


def test_an_exr_without_the_extra_says_how_to_get_it(here: Path, monkeypatch: pytest.MonkeyPatch):
    exr({"Y": half(0)})
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(BadInput, match=r'the package OpenEXR: pip install "limner\[film\]"'):
        open_picture(here / "one.exr")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_damage_anywhere_is_a_picture_or_a_sentence(tmp_path: Path, kind: str):
    rng = np.random.default_rng(0)
    whole = packed(NOISE.resize((8, 8)), kind, exif=exif(x112=6, x10e="words"), icc_profile=icc())
    for _ in range(60):
        broken = np.frombuffer(whole, np.uint8).copy()
        broken[rng.integers(0, min(len(broken), 400), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "one").write_bytes(broken.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_picture(tmp_path / "one")[3].isfinite().all()
            except BadInput as error:
                assert "one " in str(error)


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_pictures_stand_upright(tmp_path: Path, turn: int, kind: str):
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    more = {"lossless": True} if kind == "WEBP" else {}
    (tmp_path / "one").write_bytes(packed(Image.fromarray(pixels), kind, exif=exif(x112=turn, x10e="words"), **more))
    image = open_picture(tmp_path / "one")
    assert np.array_equal(np.asarray(image), TURNED[turn](pixels))
    assert image.getexif().get(0x112, 1) == 1  # it is not turned twice
    assert image.getexif()[0x10E] == "words"
    assert np.array_equal(np.asarray(read_original(tmp_path / "one").image), TURNED[turn](pixels))


def test_what_of_an_exr_is_shown_is_read(here: Path):
    light = np.ones((4, 5, 3), np.float16)
    corner = {"dataWindow": (-1, -2, 3, 1), "displayWindow": (0, 0, 5, 5)}
    windows = {name: (np.array(at[:2], "i4"), np.array(at[2:], "i4")) for name, at in corner.items()}
    exr({"RGB": light}, **windows)
    picture = read_picture(here / "one.exr")
    assert picture.shape == (4, 6, 6)
    assert (picture[3, :2, :4] == 1).all() and picture[3].sum() == 8


# A picture that is changed and given back


def ragged(mode: str = "RGBA", **more: Any) -> bytes:
    """Noise in each channel; colour under clear pixels too."""
    channels = {"RGBA": 4, "RGB": 3, "L": 1, "LA": 2}[mode]
    noise = np.random.default_rng(1).integers(0, 256, (300, 7, channels), dtype=np.uint8)  # more rows than a band has
    noise[::3, :, -1] = 0
    return packed(Image.fromarray(noise.squeeze()), "PNG", **more)


@pytest.mark.parametrize("profile", [None, icc()], ids=["sRGB", "wide"])
@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_outside_the_mask_every_byte_is_the_originals(tmp_path: Path, profile: bytes | None, mode: str, suffix: str):
    (tmp_path / "one.png").write_bytes(ragged(mode, **({"icc_profile": profile} if profile else {})))
    original = read_original(tmp_path / "one.png")
    assert original.sha256 == hashlib.sha256((tmp_path / "one.png").read_bytes()).hexdigest()
    assert (original.icc, original.has_alpha) == (profile, mode == "RGBA")
    mask = torch.zeros(300, 7)
    mask[100:290, 2:5] = 1
    new = torch.full((4, 300, 7), 0.5)
    path = save_picture(original.restored(new, mask), tmp_path / f"new{suffix}", None, b"", b"", icc=original.icc)
    back = Image.open(path)
    assert (back.mode, back.info.get("icc_profile")) == (mode, profile)
    old, got, inside = np.asarray(Image.open(tmp_path / "one.png")), np.asarray(back), mask.bool().numpy()
    assert np.array_equal(got[~inside], old[~inside])
    assert len(np.unique(got[inside], axis=0)) == 1
    again = read_original(path).picture[:, inside].mul(255)
    want = 127.5 if mode == "RGBA" else 255.0  # white at half strength laid on white
    assert (again - torch.tensor([127.5] * 4 if mode == "RGBA" else [want] * 4)[:, None]).abs().max() < 2


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L", "LA"])
def test_what_was_not_changed_comes_back(tmp_path: Path, mode: str):
    (tmp_path / "one.png").write_bytes(ragged(mode))
    original = read_original(tmp_path / "one.png")
    image = original.restored(original.picture)
    assert image.mode == original.image.mode == ("RGBA" if "A" in mode else "RGB")
    old, new = np.asarray(original.image), np.asarray(image)
    seen = old[..., 3] > 0 if "A" in mode else np.ones(old.shape[:2], bool)
    assert np.array_equal(old[seen], new[seen])
    assert np.array_equal(np.asarray(original.restored(original.picture, torch.zeros(300, 7))), old)


def test_a_wide_gamut_comes_back_within_its_roundings(tmp_path: Path):
    colours = np.random.default_rng(0).integers(110, 150, (16, 16, 3), dtype=np.uint8)  # of them sRGB has all
    Image.fromarray(colours).save(tmp_path / "one.png", icc_profile=icc())
    original = read_original(tmp_path / "one.png")
    assert (original.picture[:3].mul(255) - torch.from_numpy(colours).permute(2, 0, 1)).abs().max() > 5
    back = np.asarray(original.restored(original.picture)).astype(int)
    assert np.abs(back - colours).max() <= 2


def test_a_profile_of_srgb_changes_nothing(tmp_path: Path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "one.png").write_bytes(ragged("RGB", icc_profile=profile))
    original = read_original(tmp_path / "one.png")
    assert original.icc == profile
    assert np.array_equal(np.asarray(original.restored(original.picture)), np.asarray(original.image))


@pytest.mark.parametrize("name", ["CMYK with a profile", "a scanner's profile", "a profile of greys", "CMYK", "LAB"])
def test_what_cannot_be_given_back_becomes_srgb(here: Path, name: str):
    make, colour = GOOD[name]
    (here / "one").write_bytes(make())
    original = read_original(here / "one")
    assert (original.icc, original.image.mode, original.image.info) == (None, "RGB", {})
    assert list(original.image.getpixel((1, 1))) == pytest.approx(colour[:3], abs=1.01)


def test_a_soft_mask_blends(tmp_path: Path):
    Image.new("RGBA", (3, 1), (0, 0, 200, 255)).save(tmp_path / "one.png")
    original = read_original(tmp_path / "one.png")
    red = torch.tensor([1.0, 0, 0, 1])[:, None, None].expand(4, 1, 3)
    image = original.restored(red, torch.tensor([[0, 0.25, 1]]))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 200, 255), (64, 0, 150, 255), (255, 0, 0, 255)]
    clear = original.restored(torch.zeros(4, 1, 3), torch.tensor([[0, 0.25, 1]]))
    assert clear.getpixel((1, 0)) == (0, 0, 200, 191)  # clear black darkens nothing


def test_a_family_that_knows_no_alpha_takes_the_originals(tmp_path: Path):
    (tmp_path / "one.png").write_bytes(ragged())
    original = read_original(tmp_path / "one.png")
    image = original.restored(torch.tensor([1.0, 0.5, 0, 1])[:, None, None].expand(4, 300, 7), keep_alpha=True)
    assert np.array_equal(np.asarray(image)[..., 3], np.asarray(original.image)[..., 3])
    assert (np.asarray(image)[..., :3] == (255, 128, 0)).all()


def test_another_size_is_refused(tmp_path: Path):
    original = read_original(save(tmp_path / "one.png"))
    with pytest.raises(BadInput, match=r"\(4, 16, 15\) cannot take the place of an original of \(4, 16, 16\)"):
        original.restored(torch.zeros(4, 16, 15))
    with pytest.raises(BadInput, match=r"\(15, 16\) cannot take the place of an original of \(16, 16\)"):
        original.restored(torch.zeros(4, 16, 16), torch.zeros(15, 16))


# Writing more than eight bits, profiles, words


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_profiles_and_words_are_written(tmp_path: Path, suffix: str, mode: str):
    told, info = exif(x10e="words"), PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x/>")
    image = Image.new(mode, (4, 3))
    open_ = open_picture(save_picture(image, tmp_path / f"one{suffix}", info, told.tobytes(), b"<x/>", icc=icc()))
    assert open_.info["icc_profile"] == icc()
    assert open_.info.get("xmp", open_.info.get("XML:com.adobe.xmp")) in (b"<x/>", "<x/>")
    assert suffix == ".png" or open_.getexif()[0x10E] == "words"
    assert "icc_profile" not in open_picture(save_picture(image, tmp_path / f"two{suffix}", info, b"", b"")).info


def test_a_tiff_carries_a_comment_where_other_pictures_do(tmp_path: Path):
    told = Image.Exif()
    told.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "wörter 日本".encode("utf-16-be")
    image = open_picture(save_picture(Image.new("RGB", (4, 3)), tmp_path / "one.tif", None, told.tobytes(), b""))
    assert image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be") == "wörter 日本"


def fine() -> torch.Tensor:
    """More shades than bytes have, with alphas."""
    alpha = torch.linspace(0, 1, 40)[:, None].expand(40, 300)
    return torch.cat([torch.linspace(0.4, 0.6, 300).expand(3, 40, 300) * alpha, alpha[None]])


def test_a_deep_png_has_16_bits(tmp_path: Path):
    info = PngInfo()
    info.add_itxt("words", "crème")
    path = save_deep(fine(), tmp_path / "one.png", info)
    with av.open(path) as file:
        frame = next(file.decode(video=0))
    assert frame.format.name.startswith("rgba64")
    got = torch.from_numpy(frame.to_ndarray(format="rgba64le").astype(np.float64) / 65535).permute(2, 0, 1)
    assert (torch.cat([got[:3] * got[3:], got[3:]]) - fine()).abs().max() < 1.01 / 65535
    with Image.open(path) as image:
        assert image.info["words"] == "crème" and image.info["srgb"] == 0
        assert np.array_equal(np.asarray(image)[..., 3], (got[3] * 65535).numpy().round().astype(np.uint16) >> 8)
    assert left_behind(tmp_path) == []


def test_an_exr_is_linear_and_premultiplied(tmp_path: Path):
    path = save_deep(fine(), tmp_path / "one.exr", comment="words")
    file = OpenEXR.File(str(path))
    light, alpha = torch.from_numpy(file.channels()["RGBA"].pixels.astype(np.float32)).permute(2, 0, 1).split([3, 1])
    assert file.header()["comments"] == "words"
    assert (alpha - fine()[3:]).abs().max() < 5e-4
    assert (light[:, -1] - to_linear(fine()[:3, -1])).abs().max() < 3e-4
    assert (light[:, 20] - to_linear(fine()[:3, -1]) * fine()[3, 20, 0]).abs().max() < 3e-4
    assert (read_picture(path) - fine()).abs().max() < 5e-4
    assert left_behind(tmp_path) == []


def test_linear_light_and_back():
    colour = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (from_linear(to_linear(colour)) - colour).abs().max() < 1e-7
    assert float(to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)


def test_deep_pictures_keep_the_promises_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = [save_deep(fine(), tmp_path / "one.exr").name for _ in range(2)]
    assert names == ["one.exr", "one-2.exr"]
    with pytest.raises(BadInput, match=r"a \.jpg file; 16 bits a channel are written as \.png or \.exr"):
        save_deep(fine(), tmp_path / "one.jpg")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    for suffix in (".png", ".exr"):
        with pytest.raises(NotSaved, match="the disk is full"):
            save_deep(fine(), tmp_path / f"two{suffix}")
    assert len(list(tmp_path.iterdir())) == 2

"""Each format is read back by another library than the one that put it together, as far as there is one."""

import os
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from limner import film
from limner.errors import BadInput, NotSaved
from limner.film import Flicker, flicker, read_sequence, sequence_kind, write_sequence
from limner.image import straight, to_pil

WORDS = "made by a trained model, Limner"


def frames(count: int = 5, height: int = 16, width: int = 24, clear: bool = True) -> Iterator[Tensor]:
    """A red square that walks over a blue or clear ground; the last two frames are the same."""
    for k in range(count):
        picture = torch.zeros(4, height, width)
        if not clear:
            picture[2:] = 1.0
        at = 3 * min(k, count - 2)
        picture[:, 4:10, at : at + 6] = torch.tensor([1.0, 0.25, 0.0, 1.0])[:, None, None]
        yield picture


def pillow(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Frames as RGBA and how long each is shown, in milliseconds."""
    with Image.open(path) as image:
        arrays, waits = [], []
        for k in range(image.n_frames):
            image.seek(k)
            image.load()
            arrays.append(np.asarray(image.convert("RGBA")))
            waits.append(image.info["duration"])
        return arrays, waits


@pytest.mark.parametrize("suffix", [".png", ".apng", ".webp"])
@pytest.mark.parametrize("rate", [0.5, 8, 24, 30000 / 1001])
def test_lossless_animations_come_back_whole(tmp_path: Path, suffix: str, rate: float):
    (path,) = write_sequence(frames(), tmp_path / f"walk{suffix}", rate)
    arrays, waits = pillow(path)
    assert len(arrays) == 5  # the frame that is like the one before it is there too
    assert all(np.array_equal(array, straight(frame)) for array, frame in zip(arrays, frames(), strict=True))
    assert sum(waits) == pytest.approx(5000 / rate, abs=0.5 if suffix == ".webp" else 1e-3)


@pytest.mark.parametrize(("rate", "wait", "said"), [(25, 4, None), (10, 10, None), (24, 4, "24 a second become 25"),
                                                   (60, 2, "60 a second become 50")])  # fmt: skip
def test_a_gif_has_the_nearest_rate_and_says_it(tmp_path: Path, recwarn, rate: float, wait: int, said: str | None):
    (path,) = write_sequence(frames(), tmp_path / "walk.gif", rate, comment=WORDS)
    warned = [str(one.message) for one in recwarn]
    assert len(warned) == bool(said) and all(said in one for one in warned)
    arrays, waits = pillow(path)
    assert waits == [10 * wait] * 5
    assert all(np.array_equal(array, straight(frame)) for array, frame in zip(arrays, frames(), strict=True))
    with Image.open(path) as image:
        assert image.info["comment"].decode() == WORDS and image.info["loop"] == 0


def test_a_gif_of_many_colours_is_near_and_its_alpha_is_all_or_nothing(tmp_path: Path):
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    picture = torch.stack([ramp, ramp.T, ramp.flip(1), torch.ones(64, 64)]) * ramp.T
    (path,) = write_sequence([picture] * 2, tmp_path / "ramp.gif", 10)
    got = pillow(path)[0][1].astype(int)
    assert set(np.unique(got[..., 3])) == {0, 255}
    assert np.array_equal(got[..., 3] == 255, straight(picture)[..., 3] >= 128)
    assert np.abs(got - straight(picture))[40:, :, :3].mean() < 8


def decoded(path: Path, codec: str = "") -> tuple[list[np.ndarray], Fraction, dict[str, str], float]:
    """RGBA arrays, rate, metadata and seconds; VP9's alpha is seen by libvpx alone."""
    with av.open(path) as file:
        stream = file.streams.video[0]
        reader = av.CodecContext.create(codec, "r") if codec else stream.codec_context
        found = [one for packet in file.demux(stream) for one in reader.decode(packet if packet.size else None)]
        told = {name.lower(): value for name, value in file.metadata.items()}
        arrays = [one.to_ndarray(format="rgba") for one in found]
        return arrays, stream.average_rate, told, file.duration / 1e6


@pytest.mark.parametrize("rate", [24, 24000 / 1001, 12.5])
def test_a_film_has_its_frames_its_rate_and_its_words(tmp_path: Path, rate: float):
    (path,) = write_sequence(frames(9, clear=False), tmp_path / "walk.mp4", rate, comment=WORDS)
    arrays, found, told, seconds = decoded(path)
    assert len(arrays) == 9
    assert found == Fraction(rate).limit_denominator(1001)
    assert seconds == pytest.approx(9 / rate, abs=0.002)
    assert told["comment"] == told["title"] == WORDS
    want = straight(list(frames(9, clear=False))[4]).astype(int)
    assert np.abs(arrays[4].astype(int) - want).mean() < 6
    assert np.abs(arrays[4].astype(int) - want)[7, 14:16].max() < 10  # inside the square; loaded codecs vary
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # it plays before it is all there


def test_a_film_without_alpha_lies_on_white_and_has_even_sides(tmp_path: Path):
    with pytest.warns(UserWarning, match="no alpha, so the frames are laid on white and even sides only") as said:
        (path,) = write_sequence(frames(4, 15, 25), tmp_path / "walk.mp4", 24)
    assert len(said) == 1
    arrays, *_ = decoded(path)
    assert arrays[0].shape == (16, 26, 4)
    assert np.abs(arrays[0][14:, 20:].astype(int) - 255).max() < 4


def test_without_h264_it_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    (path,) = write_sequence(frames(9, clear=False), tmp_path / "walk.mp4", 24)
    with av.open(path) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"
    assert len(decoded(path)[0]) == 9


@pytest.mark.parametrize("side", [(16, 24), (15, 25)])
def test_webm_keeps_alpha(tmp_path: Path, side: tuple[int, int]):
    (path,) = write_sequence(frames(6, *side), tmp_path / "walk.webm", 30, comment=WORDS)
    arrays, rate, told, seconds = decoded(path, "libvpx-vp9")
    assert (len(arrays), rate, arrays[0].shape) == (6, 30, (*side, 4))
    assert told["comment"] == told["title"] == WORDS
    assert seconds == pytest.approx(0.2, abs=0.002)
    want = straight(list(frames(6, *side))[2])
    assert np.abs(arrays[2][..., 3].astype(int) - want[..., 3]).mean() < 4
    assert np.abs(arrays[2][7, 8:10].astype(int) - want[7, 8:10]).max() < 16


@pytest.mark.parametrize("name", ["walk", "walk/%d.webp", "walk/w-%04d.tif", "walk/%03d.png"])
def test_numbered_pictures_come_back_in_their_order(tmp_path: Path, name: str):
    path = tmp_path / name
    files = write_sequence(frames(12), path, 24)
    assert len(files) == 12 and len({file.name for file in files}) == 12
    assert files[1].stem[-1] == "2" and files[11].stem.endswith("12")
    back = list(read_sequence(path))
    assert len(back) == 12
    assert all((one - two).abs().max() < 0.5 / 255 for one, two in zip(back, frames(12), strict=True))
    assert all(torch.equal(one, two) for one, two in zip(back, read_sequence(tmp_path / "walk"), strict=True))


@pytest.mark.parametrize("name", ["walk/%04d.exr", "walk"])
def test_deep_pictures_keep_more_than_bytes(tmp_path: Path, name: str):
    fine = torch.linspace(0.5, 0.51, 256).expand(4, 4, 256).clone()
    fine[3] = 1
    files = write_sequence([fine, fine], tmp_path / name, 24, bits=16, comment=WORDS)
    assert len(files) == 2
    if name.endswith("exr"):
        assert all((one - fine).abs().max() < 3e-4 for one in read_sequence(tmp_path / name))
        return
    with av.open(files[0]) as file:
        (frame,) = list(file.decode(video=0))
    assert len(np.unique(frame.to_ndarray(format="rgba64le")[..., 0])) == 256
    assert open_picture_words(files[0]) == WORDS


def open_picture_words(path: Path) -> str:
    with Image.open(path) as image:
        return str(image.info["Comment"])


def test_a_deep_animation_has_16_bits(tmp_path: Path):
    (path,) = write_sequence(frames(), tmp_path / "walk.png", 24, bits=16)
    assert path.read_bytes()[24] == 16  # bits a channel, in the header
    arrays, _ = pillow(path)
    assert all(np.array_equal(array, straight(frame)) for array, frame in zip(arrays, frames(), strict=True))


@pytest.mark.parametrize("name", ["walk.png", "walk.webp", "walk/%d.png"])
def test_what_pictures_carry_goes_with_them(tmp_path: Path, name: str):
    png = PngInfo()
    png.add_itxt("XML:com.adobe.xmp", "<x/>")
    exif = Image.Exif()
    exif[0x010E] = "words"
    told = {"png": png, "exif": exif.tobytes(), "xmp": b"<x/>", "comment": WORDS}
    files = write_sequence(frames(), tmp_path / name, 24, **told)
    assert len(png.chunks) == 1  # what the caller gave is as it was
    with Image.open(files[-1]) as image:
        assert b"<x/>" in (image.info.get("xmp"), str(image.info.get("XML:com.adobe.xmp")).encode())
        if name.endswith("webp"):
            assert image.getexif()[0x010E] == "words"
        else:
            assert image.info["Comment"] == WORDS


def test_nothing_is_overwritten(tmp_path: Path):
    names = [write_sequence(frames(), tmp_path / "walk.gif", 10)[0].name for _ in range(2)]
    assert names == ["walk.gif", "walk-2.gif"]
    write_sequence(frames(), tmp_path / "walk", 10)
    with pytest.raises(BadInput, match=r"0001.png is there already"):
        write_sequence(frames(), tmp_path / "walk", 10)
    assert len(write_sequence(frames(), tmp_path / "walk", 10, keep=False)) == 5
    assert len(list((tmp_path / "walk").iterdir())) == 5


@pytest.mark.parametrize("name", ["walk.gif", "walk.png", "walk.webp", "walk.mp4", "walk.webm"])
def test_a_stop_or_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def stopped() -> Iterator[Tensor]:
        yield from frames(3, clear=False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sequence(stopped(), tmp_path / name, 10)
    assert list(tmp_path.iterdir()) == []

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotSaved, match="the disk is full"):
        write_sequence(frames(clear=False), tmp_path / name, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["walk.gif", "walk.png", "walk.webp", "walk.mp4", "walk.webm", "walk/%d.png"])
def test_frames_are_taken_one_by_one(tmp_path: Path, name: str):
    """Of those before the last few, none is held."""
    alive: list[weakref.ref[Tensor]] = []

    def counted() -> Iterator[Tensor]:
        for k in range(8):
            assert sum(one() is not None for one in alive) <= 2
            frame = torch.full((4, 16, 16), k / 8)
            frame[3] = 1
            alive.append(weakref.ref(frame))
            yield frame

    write_sequence(counted(), tmp_path / name, 10)
    assert len(alive) == 8


REFUSED = {
    "walk.avi": "no sequence: a folder, a name with %04d in it, or a file of .gif",
    "walk.jpg": "is no sequence",
    "walk-%04d.gif": "would be no pictures",
    "walk-%04d": "would be no pictures",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_names_are_refused_with_the_choices(tmp_path: Path, name: str):
    with pytest.raises(BadInput, match=REFUSED[name]):
        sequence_kind(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": 0}, "0 frames a second"),
        ({"rate": float("nan")}, "nan frames a second"),
        ({"rate": 1000}, "from 0.1 to 240"),
        ({"frames": []}, "without frames"),
        ({"frames": [torch.zeros(4, 4, 4), torch.zeros(4, 4, 5)]}, "frame 2 is 5 x 4, those before it are 4 x 4"),
        ({"bits": 16}, "holds 8 bits a channel"),
        ({"bits": 12}, "8 or 16 bits a channel, not 12"),
    ],
)
def test_what_makes_no_sequence_is_refused(tmp_path: Path, change: dict, said: str):
    with pytest.raises(BadInput, match=said):
        write_sequence(**{"frames": frames(), "path": tmp_path / "walk.gif", "rate": 10} | change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "package"), [("walk.mp4", "av"), ("walk.webm", "av"), ("w-%d.exr", "OpenEXR")])
def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path, monkeypatch, name: str, package: str):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(BadInput, match=rf'the package {package}: pip install "limner\[film\]"'):
        write_sequence(frames(), tmp_path / name, 10)


def test_names_are_counted_as_a_person_counts(tmp_path: Path):
    for k, name in enumerate(["a2.png", "a10.png", "a1.png", ".hidden.png", "words.txt"]):
        to_pil(torch.full((4, 1, 1), k / 10)).save(tmp_path / name, "PNG")
    assert [round(float(one[3, 0, 0]), 1) for one in read_sequence(tmp_path)] == [0.2, 0.0, 0.1]
    assert [round(float(one[3, 0, 0]), 1) for one in read_sequence(tmp_path / "a%d.png")] == [0.2, 0.0, 0.1]


def test_a_sequence_that_is_none_is_refused_at_once(tmp_path: Path):
    with pytest.raises(BadInput, match="holds no picture of a sequence"):
        read_sequence(tmp_path)
    with pytest.raises(BadInput, match="holds no picture of a sequence"):
        read_sequence(tmp_path / "none" / "%04d.png")
    with pytest.raises(BadInput, match="is no folder"):
        read_sequence(tmp_path / "none.png")
    write_sequence(frames(1, 4, 4), tmp_path / "walk", 1)
    to_pil(torch.ones(4, 5, 5)).save(tmp_path / "walk" / "2.png")
    with pytest.raises(BadInput, match="frame 2 is 5 x 5"):
        list(read_sequence(tmp_path / "walk"))
    with pytest.raises(BadInput, match="at most 10 are read"):
        list(read_sequence(tmp_path / "walk", max_pixels=10))


def noise(count: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return (torch.rand(4, 32, 32, generator=rng) for _ in range(count))


A, B = next(noise(1)), next(noise(1)).flip(1)
SEQUENCES = {
    "still": ([A] * 6, 0.0),
    "even fade": ([A + (B - A) * k / 7 for k in range(8)], 0.0),
    "uneven fade": ([A + (B - A) * (k / 7) ** 3 for k in range(8)], 0.0),
    "cut": ([A] * 4 + [B] * 4, 0.0),
    "alternating": ([A, B] * 4, 1.0),
    "one frame": ([A], 0.0),
    "two frames": ([A, B], 0.0),
    "none": ([], 0.0),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_flicker_of_what_is_known(name: str):
    sequence, want = SEQUENCES[name]
    assert flicker(iter(sequence)) == pytest.approx(want, abs=1e-6)


def test_flicker_is_counted_while_frames_pass():
    seen = Flicker()
    for frame in (A, B, A):
        seen.see(frame)
    assert seen.value == 1.0 and len(seen.last) == 2


def test_flicker_of_noise_is_a_half_and_grows_with_it():
    assert flicker(noise(40)) == pytest.approx(0.5, abs=0.01)
    figures = [
        flicker(A + (B - A) * k / 7 + size * one for k, one in enumerate(noise(8))) for size in (0, 0.01, 0.1, 1)
    ]
    assert figures == sorted(figures) and figures[0] < 1e-6 and 1e-3 < figures[1] < 0.2 < figures[3]


def test_a_hard_edge_that_passes_is_no_flicker():
    def edge() -> Iterator[Tensor]:
        for k in range(8):
            frame = torch.zeros(4, 8, 8)
            frame[:, :, : k + 1] = 1
            yield frame

    assert flicker(edge()) == 0.0


def test_every_kind_of_one_file_is_here():
    assert set(film.ONE_FILE) == {".gif", ".png", ".apng", ".webp", ".mp4", ".webm"}

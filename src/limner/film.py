"""Sequences of pictures: numbered files, animations and films, in and out, one frame in memory at a time."""

from __future__ import annotations

import itertools
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import GifImagePlugin, Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from limner.errors import BadInput, LimnerError
from limner.files import WRITE, save_picture, written
from limner.image import film_part, png_chunk, png_head, png_rows, read_picture, save_deep, straight, to_pil

RATES = (0.1, 240.0)  # frames a second; what every format here can tell
FOLDER = "%04d.png"  # the names in a folder
NUMBER = re.compile(r"%(?:0\d+)?d")
GIF_LEAST = 2  # hundredths of a second; browsers show faster frames at a tenth
CLEAR = 255  # the colour of a GIF's clear pixels
READABLE = (*WRITE, ".exr")


@dataclass(frozen=True)
class Told:
    """What a sequence says of itself: a sentence where a container holds no more, and the parts of a picture."""

    comment: str = ""
    png: PngInfo | None = None
    exif: bytes = b""
    xmp: bytes = b""

    @property
    def chunks(self) -> PngInfo:
        """What a PNG carries: its parts and the comment."""
        out = PngInfo()
        out.chunks = list(self.png.chunks) if self.png else []
        if self.comment:
            out.add_itxt("Comment", self.comment)
        return out


# Writing


def sequence_kind(path: Path) -> str:
    """What a sequence of this name becomes: "numbered", or the suffix of one file.

    A folder, or a name with a number in it (`walk-%04d.png`), is numbered pictures. Refuses what cannot be written.
    """
    suffix = path.suffix.lower()
    pattern = NUMBER.search(path.name)
    if suffix == "" or path.is_dir() or pattern:
        if pattern and suffix not in READABLE:
            raise BadInput(f"{path} would be no pictures; numbered ones are written as {', '.join(READABLE)}")
        if suffix == ".exr":
            film_part("OpenEXR")
        return "numbered"
    if suffix not in ONE_FILE:
        choices = ", ".join(ONE_FILE)
        raise BadInput(f"{path} is no sequence: a folder, a name with %04d in it, or a file of {choices}")
    if suffix in (".mp4", ".webm"):
        film_part("av")
    return suffix


def write_sequence(
    frames: Iterable[Tensor],
    path: Path,
    rate: float,
    bits: int = 8,
    comment: str = "",
    png: PngInfo | None = None,
    exif: bytes = b"",
    xmp: bytes = b"",
    keep: bool = True,
    each: Callable[[int], Told] | None = None,
) -> list[Path]:
    """Write frames, 4 H W in [0, 1] and premultiplied, at `rate` a second, as the name of `path` says.

    A folder or `name-%04d.png` (also .exr, .webp, .tif, .jpg): numbered pictures from 1 on. One file: .gif (alpha is
    clear or not), .png or .apng (APNG), .webp (all three for ever again), .mp4 (H.264, on white), .webm (VP9 with
    alpha). `bits` is 8 or 16, of a PNG. What they carry: `comment` in GIF, PNG, EXR and films (their title too); the
    others in the forms that pictures have. each: what numbered picture i, from 0 on, carries instead. Frames are taken
    one by one. Returns the files that were written; a file of the name gets a neighbour, `-2`, and numbered pictures
    that are there are an error.
    """
    kind, told = sequence_kind(path), Told(comment, png, exif, xmp)
    if not RATES[0] <= rate <= RATES[1]:
        raise BadInput(f"{rate:g} frames a second cannot be told; from {RATES[0]:g} to {RATES[1]:g} can")
    if bits not in (8, 16):
        raise BadInput(f"pictures have 8 or 16 bits a channel, not {bits}")
    if bits == 16 and not path.is_dir() and path.suffix.lower() not in ("", ".png", ".apng", ".exr"):
        raise BadInput(f"{path} holds 8 bits a channel; PNG, APNG and EXR hold more")
    exact = Fraction(rate).limit_denominator(1001)  # 24000/1001 and its kin of film and television
    alike = _alike(frames)
    if kind == "numbered":
        return list(_numbered(alike, path, bits, each or (lambda _: told), keep))

    def write(file: BinaryIO) -> None:
        ONE_FILE[kind](file, alike, exact, told, bits)

    return [written(path, write, keep)]


def _alike(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames, if there are any and all have one size."""
    size = None
    for number, frame in enumerate(frames, 1):
        size = size or frame.shape
        if frame.shape != size:
            raise BadInput(f"frame {number} is {_size(frame.shape)}, those before it are {_size(size)}")
        yield frame
    if size is None:
        raise BadInput("a sequence without frames cannot be written")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} x {shape[1]}"


def _numbered(
    frames: Iterator[Tensor], path: Path, bits: int, each: Callable[[int], Told], keep: bool
) -> Iterator[Path]:
    pattern = path if NUMBER.search(path.name) else path / FOLDER
    field = NUMBER.findall(pattern.name)[0]  # %04d
    before, after = pattern.name.split(field, 1)
    if keep and (taken := _matching(pattern)):
        raise BadInput(f"{taken[0]} is there already; another folder or name keeps it")
    for number, frame in enumerate(frames, 1):
        name, told = pattern.with_name(before + field % number + after), each(number - 1)
        if bits == 16 or name.suffix.lower() == ".exr":
            yield save_deep(frame, name, told.chunks, told.comment, keep)
        else:
            yield save_picture(to_pil(frame), name, told.chunks, told.exif, told.xmp, keep)


def _apng(file: BinaryIO, frames: Iterator[Tensor], rate: Fraction, told: Told, bits: int) -> None:
    """Whole frames one after another (PNG 3rd edition, 11.3.6): Pillow would join those that are alike."""
    wait = (1 / rate).limit_denominator(int(65535 * min(float(rate), 1.0)))  # seconds, of two numbers of 16 bits
    order, count, start = itertools.count(), 0, 0
    for frame in frames:
        pixels = straight(frame, 2**bits - 1)
        if count == 0:
            file.write(png_head(pixels))
            start = file.tell()
            file.write(png_chunk(b"acTL", bytes(8)))  # holds the place of the number of frames
            for name, data, *_ in told.chunks.chunks:
                file.write(png_chunk(name, data))
        height, width, _ = pixels.shape
        times = (wait.numerator, wait.denominator)
        file.write(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", next(order), width, height, 0, 0, *times, 0, 0)))
        rows = png_rows(pixels)
        file.write(png_chunk(b"fdAT", struct.pack(">I", next(order)) + rows) if count else png_chunk(b"IDAT", rows))
        count += 1
    file.write(png_chunk(b"IEND", b""))
    file.seek(start)
    file.write(png_chunk(b"acTL", struct.pack(">II", count, 0)))


def _gif(file: BinaryIO, frames: Iterator[Tensor], rate: Fraction, told: Told, bits: int) -> None:
    """GIF89a with a palette a frame; Pillow packs each, and would hold all of them and join those that are alike."""
    wait = max(GIF_LEAST, round(100 / rate))  # hundredths of a second
    if Fraction(100, wait) != rate:
        nearest = f"{float(rate):g} a second become {100 / wait:g}"
        warnings.warn(f"a GIF counts hundredths of a second: {nearest}", stacklevel=4)
    words = told.comment.encode()
    blocks = b"".join(bytes([len(part)]) + part for part in (words[i : i + 255] for i in range(0, len(words), 255)))
    for number, frame in enumerate(frames):
        image = to_pil(frame)
        if number == 0:
            file.write(b"GIF89a" + struct.pack("<HHBBB", *image.size, 0x70, 0, 0))  # no palette that all share
            file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0" + (b"!\xfe" + blocks + b"\0" if blocks else b""))
        few = image.convert("RGB").quantize(CLEAR)  # colours
        numbers = np.where(np.asarray(image)[..., 3] < 128, CLEAR, np.asarray(few)).astype(np.uint8)
        flat = Image.fromarray(numbers, "P")
        flat.putpalette((few.getpalette() or []) + [0] * (768 - len(few.getpalette() or [])))
        settings: dict[str, Any] = {"duration": 10 * wait, "disposal": 2, "transparency": CLEAR}
        file.writelines(GifImagePlugin.getdata(flat, include_color_table=True, **settings))
    file.write(b";")


def _webp(file: BinaryIO, frames: Iterator[Tensor], rate: Fraction, told: Told, bits: int) -> None:
    """Whole lossless frames in RIFF's boxes (RFC 9649, 2.7.1); thousandths of a second that sum up to the time."""
    exif = told.exif.removeprefix(b"Exif\0\0")
    file.write(b"RIFF\0\0\0\0WEBP")
    for number, frame in enumerate(frames):
        image = to_pil(frame)
        side = [(length - 1).to_bytes(3, "little") for length in image.size]
        if number == 0:
            holds = 0x12 | 0x08 * bool(exif) | 0x04 * bool(told.xmp)  # animation and alpha; EXIF; XMP
            file.write(_box(b"VP8X", bytes([holds, 0, 0, 0]) + b"".join(side)))
            file.write(_box(b"ANIM", bytes(6)))  # a clear ground, for ever
        packed = BytesIO()
        image.save(packed, "WEBP", lossless=True, exact=True)
        wait = round((number + 1) * 1000 / rate) - round(number * 1000 / rate)
        head = bytes(6) + b"".join(side) + wait.to_bytes(3, "little") + b"\x02"  # at 0, 0; put, not laid over
        file.write(_box(b"ANMF", head + packed.getvalue()[12:]))
    for name, data in ((b"EXIF", exif), (b"XMP ", told.xmp)):
        if data:
            file.write(_box(name, data))
    length = file.tell() - 8
    file.seek(4)
    file.write(struct.pack("<I", length))


def _box(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _mp4(file: BinaryIO, frames: Iterator[Tensor], rate: Fraction, told: Told, bits: int) -> None:
    """H.264 where the build of PyAV has it, else MPEG-4; on white, with even sides."""
    codecs = film_part("av").codecs_available
    codec, settings = ("libx264", {"crf": "16"}) if "libx264" in codecs else ("mpeg4", {"qscale": "2"})
    _encode(file, _opaque(frames), rate, told, "mp4", codec, "yuv420p", settings)


def _opaque(frames: Iterator[Tensor]) -> Iterator[np.ndarray[Any, Any]]:
    """H W 4 on white, with even sides: H.264 keeps colour for two by two pixels."""
    said = False
    for frame in frames:
        odd = (frame.shape[1] % 2, frame.shape[2] % 2)
        clear = bool((frame[3] < 1 - 0.5 / 255).any())
        if not said and (clear or any(odd)):
            facts = {
                "no alpha, so the frames are laid on white": clear,
                "even sides only, so an edge is doubled": any(odd),
            }
            warnings.warn(f"an MP4 knows {' and '.join(fact for fact, so in facts.items() if so)}", stacklevel=5)
            said = True
        white = frame.clone()
        white[:3] += 1 - frame[3:]
        white[3] = 1
        yield np.pad(straight(white), ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")


def _webm(file: BinaryIO, frames: Iterator[Tensor], rate: Fraction, told: Told, bits: int) -> None:
    """VP9 with its alpha beside it."""
    settings = {"crf": "18", "b": "0", "cpu-used": "4", "row-mt": "1"}
    _encode(file, map(straight, frames), rate, told, "webm", "libvpx-vp9", "yuva420p", settings)


def _encode(
    file: BinaryIO,
    frames: Iterator[np.ndarray[Any, Any]],
    rate: Fraction,
    told: Told,
    container: str,
    codec: str,
    pixels: str,
    settings: dict[str, str],
) -> None:
    """A film of H W 4 bytes by PyAV, in the colours of BT.709, marked so."""
    av = film_part("av")
    colours = {"dst_colorspace": av.video.reformatter.Colorspace.ITU709}
    colours["dst_color_range"] = av.video.reformatter.ColorRange.MPEG
    options = {"movflags": "+faststart"} if container == "mp4" else {}  # it plays before it is all there
    try:
        with av.open(file.name, "w", format=container, options=options) as out:
            if told.comment:
                out.metadata.update({"title": told.comment, "comment": told.comment})
            stream = None
            for number, array in enumerate(frames):
                if stream is None:
                    stream = out.add_stream(codec, rate=rate, options=settings)
                    stream.height, stream.width = array.shape[:2]
                    stream.pix_fmt = pixels
                    stream.metadata.update({"alpha_mode": "1"} if "a" in pixels else {})
                    for field in ("colorspace", "color_primaries", "color_trc", "color_range"):
                        setattr(stream.codec_context, field, 1)  # BT.709 of all three, and video's range
                frame = av.VideoFrame.from_ndarray(array, format="rgba").reformat(format=pixels, **colours)
                frame.pts, frame.time_base = number, 1 / rate
                out.mux(stream.encode(frame))
            if stream is not None:
                out.mux(stream.encode())
    except LimnerError:
        raise
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error


ONE_FILE: dict[str, Callable[[BinaryIO, Iterator[Tensor], Fraction, Told, int], None]] = {
    ".gif": _gif, ".png": _apng, ".apng": _apng, ".webp": _webp, ".mp4": _mp4, ".webm": _webm,
}  # fmt: skip


# Reading


def read_sequence(path: Path, max_pixels: int | None = None) -> Iterator[Tensor]:
    """The pictures of a folder, in the order that a person counts in, or those of `name-%04d.png`: 4 H W each.

    Refused, before the first is read, where there are none; all must have one size.
    """
    return _alike(read_picture(file, max_pixels) for file in sequence_files(path))


def sequence_files(path: Path) -> list[Path]:
    """The files of a sequence, one at least, in their order."""
    files = _matching(path) if NUMBER.search(path.name) else _pictures(path)
    if not files:
        raise BadInput(f"{path} holds no picture of a sequence")
    return files


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder; a sequence is a folder or a name with %04d in it")
    found = (file for file in folder.iterdir() if file.suffix.lower() in READABLE and not file.name.startswith("."))
    return sorted(found, key=lambda file: _natural(file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """2 comes before 10: numbers count as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _matching(pattern: Path) -> list[Path]:
    """The files of a name with a number in it, by that number."""
    before, after = NUMBER.split(pattern.name, maxsplit=1)
    wanted = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
    found = pattern.parent.iterdir() if pattern.parent.is_dir() else iter(())
    numbers = {file: int(match[1]) for file in found if (match := wanted.fullmatch(file.name))}
    return sorted(numbers, key=lambda file: (numbers[file], file.name))


@dataclass
class Flicker:
    """The share of all change that the next frame takes back: 0 steady, 1 there and back again.

        1 - sum |x[k+2] - x[k]| / sum (|x[k+1] - x[k]| + |x[k+2] - x[k+1]|)

    over pixels, channels and k: how much longer the way of a value is than its distance, two steps at a time. A still,
    a cut and a fade, even or not, give 0; alternating frames 1; frames of independent noise 1/2. Unlike a second
    difference in time it lets a hard edge pass: a pixel that changes once is no flicker. It follows no motion (as the
    warping error of Lai et al. 2018, arXiv 1808.00449, does by optical flow), so a thin thing that crosses a pixel
    counts; and as a share it says nothing of how large the changes are.
    """

    way: float = 0.0
    distance: float = 0.0
    last: tuple[Tensor, ...] = ()  # the two frames before

    def see(self, frame: Tensor) -> None:
        if len(self.last) == 2:
            first, second = self.last
            self.way += _apart(first, second) + _apart(second, frame)
            self.distance += _apart(first, frame)
        self.last = (*self.last[-1:], frame)

    @property
    def value(self) -> float:
        steady = math.isclose(self.way, self.distance, rel_tol=1e-6)  # what is shorter than that is rounding
        return 0.0 if steady else 1 - self.distance / self.way


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().sum(dtype=torch.float64))


def flicker(frames: Iterable[Tensor]) -> float:
    """Flicker's value for frames that are looked at one by one."""
    seen = Flicker()
    for frame in frames:
        seen.see(frame)
    return seen.value

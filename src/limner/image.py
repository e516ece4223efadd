"""Pictures at the border: from files to tensors, and from tensors to Pillow and back."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from limner.errors import BadInput
from limner.files import REASONS, named, written

READ = ("PNG", "JPEG", "WEBP", "TIFF")  # by Pillow; EXR by the extra `film`
MAX_PIXELS = 16 * 2**20  # 4096 x 4096; a byte a channel and the floats beside it take 0.3 GB
_allowed: ContextVar[int] = ContextVar("pixels", default=MAX_PIXELS)  # what a person has allowed instead
EXR = b"\x76\x2f\x31\x01"
BEGINNINGS = {  # what a file is that cannot be opened, by its first bytes
    b"\x89PNG": "a damaged or an unusual PNG", b"\xff\xd8": "a damaged or an unusual JPEG",
    b"II*\0": "a damaged or an unusual TIFF", b"MM\0*": "a damaged or an unusual TIFF",
    b"RIFF": "a damaged WebP, a film or a sound", b"GIF8": "a GIF", b"BM": "a BMP", b"%PDF": "a PDF", b"8BPS": "a PSD",
    b"PK\3\4": "a ZIP archive", b"\0\0\0": "an AVIF, a HEIC or a film", b"<": "a page, an SVG or other XML",
}  # fmt: skip
BAND = 256  # rows that are changed at a time; the floats of all of a large picture would take a gigabyte


def straight(picture: Tensor, white: int = 255) -> np.ndarray[Any, Any]:
    """4 H W in [0, 1], premultiplied, to H W 4 of whole numbers with straight colour; clear pixels are black."""
    _, height, width = picture.shape
    out = np.empty((height, width, 4), np.uint8 if white == 255 else np.uint16)
    for top in range(0, height, BAND):
        colour, alpha = picture[:3, top : top + BAND], picture[3:, top : top + BAND]
        colour = torch.where(alpha > 0, colour / alpha.clamp(min=1 / white), torch.zeros_like(alpha))
        whole = torch.cat([colour, alpha]).clamp(0, 1).mul(white).round()
        out[top : top + BAND] = whole.permute(1, 2, 0).cpu().numpy()
    return out


def to_pil(picture: Tensor) -> Image.Image:
    """4 H W in [0, 1], premultiplied, to RGBA with straight colour; clear pixels are black."""
    return Image.fromarray(straight(picture), "RGBA")


def from_pil(image: Image.Image) -> Tensor:
    """Any picture to 4 H W in [0, 1], premultiplied, in sRGB; one channel of 16 bits or of floats keeps its depth."""
    if (grey := _deep_grey(image)) is not None:
        return torch.cat([grey.expand(3, -1, -1), torch.ones_like(grey)])
    array = torch.from_numpy(np.asarray(in_srgb(image).convert("RGBA"), dtype=np.float32) / 255).permute(2, 0, 1)
    return torch.cat([array[:3] * array[3:], array[3:]])


def _deep_grey(image: Image.Image) -> Tensor | None:
    """1 H W in [0, 1] of a picture of one deep channel; floats beyond 0 and 1 are clipped."""
    if image.mode.startswith("I;16"):
        return torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)[None]
    if image.mode == "F":
        return torch.from_numpy(np.array(image)).nan_to_num().clamp(0, 1)[None]
    return None


def fitted(image: Image.Image, side: int) -> Tensor:
    """The picture inside a square of a side on a clear ground: 4 S S, premultiplied."""
    picture = from_pil(image)
    scale = side / max(picture.shape[1:])
    h, w = (max(1, round(length * scale)) for length in picture.shape[1:])
    small = torch.nn.functional.interpolate(picture[None], size=(h, w), mode="area" if scale < 1 else "bilinear")[0]
    out = torch.zeros(4, side, side)
    top, left = (side - h) // 2, (side - w) // 2
    out[:, top : top + h, left : left + w] = small
    return out


# Reading


def open_picture(path: Path, max_pixels: int | None = None, moving: bool = False) -> Image.Image:
    """A person's picture, upright, with its words and its profile in `info`; one of an EXR has 8 bits.

    Refused in words: what is too large (before it is decoded), what moves, what is damaged, what is no picture.
    moving: of several pictures the first will do.
    """
    with _opened(path) as file:
        head = file.read(16)
        file.seek(0)
        if head.startswith(EXR):
            return to_pil(_read_exr(path, max_pixels))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, about odd EXIF and large pictures
                image = Image.open(file, formats=READ)
                _check_size(path, *image.size, max_pixels)
                if not moving:
                    _check_still(path, image)
                deep = any(";16" in str(tile.args) for tile in image.tile)
                image.load()
                _turn_upright(image)
        except BadInput:
            raise
        except UnidentifiedImageError as error:
            said = next((name for mark, name in BEGINNINGS.items() if head.startswith(mark)), "none of them")
            raise BadInput(_unread(path, f"it is {said if head else 'empty'}")) from error
        except Exception as error:  # a damaged file may make a reader say anything
            raise BadInput(_unread(path, str(error) or type(error).__name__)) from error
    if image.mode == "I":
        raise BadInput(_unread(path, "it holds whole numbers of 32 bits, and nothing tells which of them is white"))
    if deep and not image.mode.startswith("I;16"):
        warnings.warn(f"{path} holds 16 bits a channel, of which 8 are read", stacklevel=2)
    return image


def read_picture(path: Path, max_pixels: int | None = None) -> Tensor:
    """A person's picture as 4 H W in [0, 1], premultiplied, in sRGB; an EXR and 16 bits of grey keep their depth."""
    with _opened(path) as file:
        deep = file.read(4) == EXR
    return _read_exr(path, max_pixels) if deep else from_pil(open_picture(path, max_pixels))


def _unread(path: Path, reason: str) -> str:
    return f"{path} cannot be read as {', '.join(READ)} or EXR: {reason}"


def _opened(path: Path) -> BinaryIO:
    """The file, if it is one: a folder has no bytes, and a pipe might never give any."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise BadInput(_unread(path, f"it is a {'folder' if stat.S_ISDIR(kind) else 'pipe or a device'}"))
        return path.open("rb")
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        reason = REASONS.get(getattr(error, "errno", 0)) or getattr(error, "strerror", None) or str(error)
        raise BadInput(_unread(path, reason)) from error


@contextlib.contextmanager
def allowing(pixels: int | None) -> Iterator[None]:
    """Pictures of up to so many pixels are read meanwhile, where a call says nothing else; None: of MAX_PIXELS."""
    if pixels is not None and pixels < 1:
        raise BadInput(f"pictures of {pixels} pixels are none; --max-pixels is 1 or more")
    before = _allowed.set(pixels or MAX_PIXELS)
    try:
        yield
    finally:
        _allowed.reset(before)


def _check_size(path: Path, width: int, height: int, max_pixels: int | None) -> None:
    most = max_pixels or _allowed.get()
    if width * height > most:
        raise BadInput(f"{path} has {width} x {height} pixels; at most {most:,} are read")


def _check_still(path: Path, image: Image.Image) -> None:
    """Refuse what holds several pictures; a JPEG with a preview or a depth map behind it is one."""
    frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP", "TIFF") else 1
    if frames > 1:
        what = "pages" if image.format == "TIFF" else "frames"
        raise BadInput(f"{path} holds {frames} {what}; a picture of one is wanted")


def _turn_upright(image: Image.Image) -> None:
    """Turn as EXIF or XMP tells (EXIF 2.32, tag 0x0112); one that cannot be read tells nothing."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def film_part(name: str) -> Any:
    """A package of the extra `film`, or one sentence that says how to come by it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(f'this needs the package {name}: pip install "limner[film]"') from error


def _read_exr(path: Path, max_pixels: int | None) -> Tensor:
    """4 H W, premultiplied sRGB in [0, 1], of an EXR's linear light; what is brighter than white is clipped."""
    exr = film_part("OpenEXR")
    try:
        light = _exr_light(exr, path, max_pixels)
    except BadInput:
        raise
    except Exception as error:  # the library raises RuntimeError, ValueError and KeyError for damaged files
        raise BadInput(_unread(path, f"it is a damaged or an unusual EXR ({error})")) from error
    alpha = light[3:].clamp(0, 1)
    colour = torch.where(alpha > 0, light[:3] / alpha.clamp(min=1e-6), torch.zeros_like(alpha))
    if bool((colour > 1.001).any()):
        warnings.warn(f"{path} holds light brighter than white, which is clipped", stacklevel=3)
    return torch.cat([from_linear(colour.clamp(0, 1)) * alpha, alpha])


def _exr_light(exr: Any, path: Path, max_pixels: int | None) -> Tensor:
    """4 H W of linear light, premultiplied, in the window that is shown."""
    file = exr.File(str(path), separate_channels=True, header_only=True)
    display, window = (
        [[int(n) for n in corner] for corner in file.header()[kind]] for kind in ("displayWindow", "dataWindow")
    )
    for (left, top), (right, bottom) in (display, window):
        _check_size(path, right - left + 1, bottom - top + 1, max_pixels)
    names = {channel.name for channel in file.header()["channels"] if channel.xSampling == channel.ySampling == 1}
    colours = ["R", "G", "B"] if {"R", "G", "B"} <= names else ["Y"] * 3
    if not set(colours) <= names or len(file.parts) > 1:
        held = f"{len(file.parts)} part{'s' * (len(file.parts) > 1)} with the channels {', '.join(sorted(names))}"
        raise BadInput(f"{path} holds {held}; one part with R, G, B and perhaps A is read")
    found = exr.File(str(path), separate_channels=True).channels()
    planes = [torch.from_numpy(found[name].pixels.astype(np.float32)) for name in colours]
    alpha = torch.from_numpy(found["A"].pixels.astype(np.float32)) if "A" in names else torch.ones_like(planes[0])
    return _framed(torch.stack([*planes, alpha]).nan_to_num(), display, window)


def _framed(data: Tensor, display: list[list[int]], window: list[list[int]]) -> Tensor:
    """What of an EXR's data lies in the window that is shown; the rest of that window is clear."""
    if display == window:
        return data
    (left, top), (right, bottom) = display
    out = torch.zeros(4, bottom - top + 1, right - left + 1)
    x, y = window[0][0] - left, window[0][1] - top
    inner = data[:, max(0, -y) :, max(0, -x) :][
        :, : max(0, out.shape[1] - max(0, y)), : max(0, out.shape[2] - max(0, x))
    ]
    out[:, max(0, y) :, max(0, x) :][:, : inner.shape[1], : inner.shape[2]] = inner
    return out


def to_linear(colour: Tensor) -> Tensor:
    """sRGB to linear light (IEC 61966-2-1)."""
    return torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055).clamp(min=0) ** 2.4)


def from_linear(light: Tensor) -> Tensor:
    """Linear light to sRGB, the inverse."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0) ** (1 / 2.4) - 0.055)


# Colour profiles


SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # an ICC profile's space: the mode whose numbers it speaks of
GREYS = ("1", "L", "LA", "La")


def in_srgb(image: Image.Image) -> Image.Image:
    """RGB or RGBA of 8 bits in sRGB: by the profile that the picture carries, else as Pillow converts it."""
    if (grey := _deep_grey(image)) is not None:
        return Image.fromarray(grey[0].mul(255).round().byte().numpy(), "L").convert("RGB")
    clear = image.has_transparency_data
    icc, mode = (b"", "LAB") if image.mode == "LAB" else (image.info.get("icc_profile"), profile_mode(image))
    if mode is None:
        return image.convert("RGBA" if clear else "RGB")
    plain = image.convert(f"{mode}A" if clear else mode)
    out = _applied(_way(icc, mode), plain.convert(mode))
    if clear:
        out.putalpha(plain.getchannel("A"))
    return out


def profile_mode(image: Image.Image) -> str | None:
    """The mode that a picture's profile speaks of; one that does not fit or cannot be used is left, in words."""
    if not (icc := image.info.get("icc_profile")):
        return None
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space.strip()
        mode = SPACES.get(space, "")
        fits = {"RGB": image.mode not in ("CMYK", "LAB"), "L": image.mode in GREYS, "CMYK": image.mode == "CMYK"}
        if fits.get(mode, False):
            _way(icc, mode)
            return mode
    except (OSError, ImageCms.PyCMSError, TypeError, ValueError):
        space = "damaged"
    warnings.warn(f"the colour profile ({space}) does not fit a picture of mode {image.mode}; it is left", stacklevel=3)
    return None


@lru_cache(maxsize=8)
def _way(icc: bytes, mode: str, back: bool = False) -> ImageCms.ImageCmsTransform | None:
    """From a profile's numbers to sRGB or back, relative to white and with black to black; None: both mean the same."""
    profile = ImageCms.createProfile("LAB") if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(icc))
    ends = [(profile, mode), (ImageCms.createProfile("sRGB"), "RGB")]
    (source, mode_in), (target, mode_out) = reversed(ends) if back else ends
    intent, black = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    way = ImageCms.buildTransform(source, target, mode_in, mode_out, intent, black)
    if mode == "RGB":
        levels = np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3), -1).reshape(27, 27, 3).astype(np.uint8)
        moved = np.asarray(_applied(way, Image.fromarray(levels))).astype(int)
        if np.abs(moved - levels).max() <= 1:  # a rounding
            return None
    return way


def _applied(way: ImageCms.ImageCmsTransform | None, image: Image.Image) -> Image.Image:
    return image.copy() if way is None else way.apply(image)


# A picture that is changed and given back


@dataclass(frozen=True, eq=False)
class Original:
    """A person's picture that is to be changed and given back in its own size, mode and colours."""

    picture: Tensor  # 4 H W in [0, 1], premultiplied, sRGB, upright
    image: Image.Image  # RGB or RGBA of 8 bits in its own profile, upright
    icc: bytes | None  # that profile; None is sRGB
    sha256: str  # of the file

    @property
    def has_alpha(self) -> bool:
        return self.image.mode == "RGBA"

    def restored(self, picture: Tensor, mask: Tensor | None = None, keep_alpha: bool = False) -> Image.Image:
        """A new picture (4 H W) in the original's profile and mode, which keeps the original where the mask is 0.

        There every byte is the original's, of clear pixels too; between 0 and 1 the two are blended by their alphas
        (Porter & Duff 1984). keep_alpha: the original's alpha, for a picture that knows none. Where the original knows
        none, the picture is laid on white.
        """
        height, width = self.picture.shape[1:]
        for found, wanted in ((picture, (4, height, width)), (mask, (height, width))):
            if found is not None and found.shape != wanted:
                raise BadInput(f"{tuple(found.shape)} cannot take the place of an original of {wanted}")
        out = np.asarray(self.image.convert("RGBA")).copy()
        for top in range(0, height, BAND):
            rows = slice(top, top + BAND)
            new = self._in_its_colours(picture[:, rows])
            share = np.ones(new.shape[:2], np.float32) if mask is None else mask[rows].float().cpu().numpy().clip(0, 1)
            if keep_alpha:
                new[..., 3] = out[rows, :, 3]
            out[rows] = _blended(out[rows], new, share[..., None])
        image = Image.fromarray(out, "RGBA")
        image = image if self.has_alpha else image.convert("RGB")
        if self.icc:
            image.info["icc_profile"] = self.icc
        return image

    def _in_its_colours(self, picture: Tensor) -> np.ndarray[Any, Any]:
        """H W 4, straight, bytes."""
        if not self.has_alpha:
            picture = torch.cat([picture[:3] + 1 - picture[3:], torch.ones_like(picture[3:])])
        pixels = straight(picture)
        if self.icc and (way := _way(self.icc, "RGB", back=True)):
            pixels[..., :3] = np.asarray(way.apply(Image.fromarray(pixels[..., :3].copy())))
        return pixels


def _blended(old: np.ndarray[Any, Any], new: np.ndarray[Any, Any], share: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`share` of the new one: H W 4 with straight colours, which weigh by their alphas, or alike where both are 0."""
    theirs, mine = share * new[..., 3:], (1 - share) * old[..., 3:]
    alpha = theirs + mine
    weight = np.divide(theirs, alpha, out=share.copy(), where=alpha > 0)
    colour = weight * new[..., :3] + (1 - weight) * old[..., :3]
    return np.concatenate([colour, alpha], -1).round().astype(np.uint8)


def read_original(path: Path, max_pixels: int | None = None) -> Original:
    """Read a picture that is to be changed. Greyscale, palette and the like become RGB or RGBA, CMYK and greys with a
    profile of their own sRGB; 16 bits become 8, with a warning."""
    image = open_picture(path, max_pixels)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        if _deep_grey(image) is not None or file.read(4) == EXR:
            warnings.warn(f"{path} is deeper than 8 bits a channel; it is read and given back at 8", stacklevel=2)
    icc = image.info.get("icc_profile") if _two_ways(image) else None
    own = image.convert("RGBA" if image.has_transparency_data else "RGB") if icc else in_srgb(image)
    own.info = {"icc_profile": icc} if icc else {}
    return Original(from_pil(own), own, icc, digest)


def _two_ways(image: Image.Image) -> bool:
    """Whether the profile of a picture is one of RGB that colours can be brought back to; one of no use is dropped."""
    mode = profile_mode(image)
    if mode is None:
        image.info.pop("icc_profile", None)
    with contextlib.suppress(ImageCms.PyCMSError):
        if mode == "RGB":
            _way(image.info["icc_profile"], mode, back=True)
            return True
    return False


# Writing


def save_deep(picture: Tensor, path: Path, png: PngInfo | None = None, comment: str = "", keep: bool = True) -> Path:
    """Write 4 H W, premultiplied, at 16 bits a channel: PNG (straight alpha), or EXR (half floats of linear light,
    premultiplied). `png` is what a PNG carries, `comment` what an EXR does."""
    if path.suffix.lower() == ".png":
        return written(path, lambda file: _write_deep_png(file, picture, png), keep)
    if path.suffix.lower() != ".exr":
        raise BadInput(f"{path} would be {named(path)}; 16 bits a channel are written as .png or .exr")
    exr = film_part("OpenEXR")
    alpha = picture[3:].clamp(0, 1)
    colour = torch.where(alpha > 0, picture[:3] / alpha.clamp(min=1e-6), torch.zeros_like(alpha)).clamp(0, 1)
    light = torch.cat([to_linear(colour) * alpha, alpha]).permute(1, 2, 0).half().contiguous().cpu().numpy()
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage, "comments": comment}
    return written(path, lambda file: exr.File(header, {"RGBA": light}).write(file.name), keep)


def _write_deep_png(file: BinaryIO, picture: Tensor, png: PngInfo | None) -> None:
    """Pillow writes 8 bits a channel, so the few chunks of a PNG (ISO/IEC 15948) are put together here."""
    pixels = straight(picture, 65535)
    file.write(png_head(pixels))
    for name, data, *_ in png.chunks if png else []:
        file.write(png_chunk(name, data))
    file.write(png_chunk(b"IDAT", png_rows(pixels)) + png_chunk(b"IEND", b""))


def png_head(pixels: np.ndarray[Any, Any]) -> bytes:
    """The signature, the header of H W 4 (colour type 6), and that the colours are sRGB."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"sRGB", b"\0")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_rows(pixels: np.ndarray[Any, Any]) -> bytes:
    """H W 4, packed; each row as its difference from the one above (filter 2), which gradients make small."""
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(len(pixels), -1)
    differences = np.full((rows.shape[0], rows.shape[1] + 1), 2, np.uint8)
    differences[:, 1:] = rows
    differences[1:, 1:] -= rows[:-1]
    return zlib.compress(differences.data, 6)

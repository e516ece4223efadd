"""Pictures at the border: tensors to Pillow and back, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from limner.errors import BadInput, NotSaved

READ = ("PNG", "JPEG", "WEBP")
WRITE = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_PIXELS = 16_000_000
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EACCES: "no permission",
    errno.EEXIST: "its folder is a file",
    errno.ENOTDIR: "its folder is a file",
}
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without links say
MAX_EXIF = 65_000  # bytes; a segment of a JPEG holds no more


def to_pil(picture: Tensor) -> Image.Image:
    """4 H W in [0, 1], premultiplied, to RGBA with straight colour; clear pixels are black."""
    alpha = picture[3:]
    colour = torch.where(alpha > 0, picture[:3] / alpha.clamp(min=1 / 255), torch.zeros_like(alpha))
    bytes_ = torch.cat([colour.clamp(0, 1), alpha]).mul(255).round().byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy(), "RGBA")


def from_pil(image: Image.Image) -> Tensor:
    """Any picture to 4 H W in [0, 1], premultiplied."""
    array = torch.from_numpy(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255).permute(2, 0, 1)
    return torch.cat([array[:3] * array[3:], array[3:]])


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


def open_picture(path: Path) -> Image.Image:
    """A person's picture; what cannot be opened is refused in words, and before decoding where it is too large."""
    try:
        with path.open("rb") as file:
            image = Image.open(file, formats=READ)
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
            image.load()
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} cannot be read as {', '.join(READ)}: {error}") from error
    return image


def slug(prompt: str, longest: int = 48) -> str:
    """A file's name from a prompt: "A red apple!" gives a-red-apple."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:longest].rstrip("-") or "picture"


def kind_of(path: Path) -> str:
    """The format that a file's name asks for."""
    kind = WRITE.get(path.suffix.lower())
    if kind is None:
        named = f"a {path.suffix} file" if path.suffix else "a file without a suffix"
        raise BadInput(f"{path} would be {named}; pictures are written as {', '.join(WRITE)}")
    return kind


def save_picture(
    image: Image.Image, path: Path, png: PngInfo | None, exif: bytes, xmp: bytes, keep: bool = True
) -> Path:
    """Write under a temporary name, sync and link into place; with `keep` an existing file gets a neighbour, `-2`.

    Raises NotSaved: no permission, a full disk. Nothing half-written is left behind.
    """
    kind = kind_of(path)
    partial = path.with_name(f".limner-{secrets.token_hex(6)}.partial")  # short: the name may be as long as names get
    if kind == "JPEG" and len(exif) > MAX_EXIF:
        warnings.warn(f"{path} is a JPEG, which cannot hold so long a recipe; PNG and WebP can", stacklevel=2)
        exif = b""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            if kind == "PNG":
                image.save(file, kind, pnginfo=png, compress_level=6)
            elif kind == "WEBP":
                image.save(file, kind, lossless=True, exif=exif, xmp=xmp)
            else:
                white = Image.new("RGBA", image.size, "white")
                Image.alpha_composite(white, image).convert("RGB").save(file, kind, quality=95, exif=exif, xmp=xmp)
            file.flush()
            os.fsync(file.fileno())
        if not keep:
            os.replace(partial, path)
            return path
        return _link(partial, path)
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise NotSaved(f"{path} could not be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> Path:
    """Give the finished file the first free name; making a link or a file fails where the name is taken."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        with contextlib.suppress(FileExistsError):
            try:
                os.link(partial, free)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                free.touch(exist_ok=False)  # holds the name until the file takes its place
                os.replace(partial, free)
            return free
    raise AssertionError("the numbers ended")

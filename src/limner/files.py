"""Pictures as files: their names, their formats, and writing that is whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner.errors import BadInput, NotSaved

WRITE = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EACCES: "no permission",
    errno.EEXIST: "its folder is a file",
    errno.ENOTDIR: "its folder is a file",
}
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without links say
MAX_EXIF = 65_000  # bytes; a segment of a JPEG holds no more
XMP_TAG = 700  # of a TIFF


# Names


def slug(prompt: str, longest: int = 48) -> str:
    """A file's name from a prompt: "A red apple!" gives a-red-apple."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:longest].rstrip("-") or "picture"


def kind_of(path: Path) -> str:
    """The format that a file's name asks for."""
    kind = WRITE.get(path.suffix.lower())
    if kind is None:
        raise BadInput(f"{path} would be {named(path)}; pictures are written as {', '.join(WRITE)}")
    return kind


def named(path: Path) -> str:
    return f"a {path.suffix} file" if path.suffix else "a file without a suffix"


# Writing


def save_picture(
    image: Image.Image,
    path: Path,
    png: PngInfo | None,
    exif: bytes,
    xmp: bytes,
    keep: bool = True,
    icc: bytes | None = None,
) -> Path:
    """Write a picture whole or not at all; with `keep` an existing file gets a neighbour, `-2`.

    A TIFF is not packed: Pillow's packed ones cannot carry EXIF, where the words are. The profile is `icc`, or else
    the one that the picture carries. Raises NotSaved: no permission, a full disk. Nothing half-written is left behind.
    """
    kind = kind_of(path)
    if kind == "JPEG" and len(exif) > MAX_EXIF:
        warnings.warn(f"{path} is a JPEG, which cannot hold so long a recipe; PNG and WebP can", stacklevel=2)
        exif = b""
    profile = icc or image.info.get("icc_profile")

    def write(file: BinaryIO) -> None:
        if kind == "PNG":
            image.save(file, kind, pnginfo=png, compress_level=6, icc_profile=profile)
        elif kind == "WEBP":
            image.save(file, kind, lossless=True, exact=True, exif=exif, xmp=xmp, icc_profile=profile or b"")
        elif kind == "TIFF":
            image.save(file, kind, exif=_tags(exif, xmp), icc_profile=profile)
        else:
            white = Image.new("RGBA", image.size, "white")
            opaque = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            opaque.save(file, kind, quality=95, exif=exif, xmp=xmp, icc_profile=profile)

    return written(path, write, keep)


def _tags(exif: bytes, xmp: bytes) -> Image.Exif:
    """What a TIFF carries: XMP stands beside EXIF."""
    tags = Image.Exif()
    if exif:
        tags.load(exif)
    if xmp:
        tags[XMP_TAG] = xmp
    return tags


def written(path: Path, write: Callable[[BinaryIO], Any], keep: bool = True) -> Path:
    """Let `write` fill a file under a temporary name, sync it and link it into place."""
    partial = path.with_name(f".limner-{secrets.token_hex(6)}.partial")  # short: the name may be as long as names get
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w+b") as file:
            write(file)
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

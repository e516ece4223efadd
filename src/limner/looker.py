"""Lookers: pictures and words in one space, by the mini model's eye or by a CLIP with eyes (arXiv 2103.00020)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from limner.families.addons import read_addon
from limner.families.recognise import read_json, words_of
from limner.families.seeing import CLIP_VISION, CLIP_WITH_EYES
from limner.image import fitted, to_pil
from limner.models.clip_vision import ClipWithEyes, prepare_clip
from limner.models.eye import Eye
from limner.models.text.clip_pieces import ClipPieces
from limner.nets import placed
from limner.pipeline import SHIPPED, Model, build, find_model, load
from limner.place import Place
from limner.weights.io import read_header, sha256

OPEN = ("laion", "openclip", "datacomp", "commonpool")  # words of names of towers with the exact GELU
AT_ONCE = 32  # pictures or texts; a layer of ViT-H holds 0.4 GB for so many


class Looker(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights that see: vectors of another digest are of another space."""

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax makes shares of them."""

    def see(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures of any sizes, 4 H W in [0, 1], premultiplied, to unit vectors, N S, on the CPU."""

    def read(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors, N S, on the CPU."""


@dataclass(frozen=True)
class MiniLooker:
    """The eye of a mini model. It learned from drawings on a clear ground, and sees transparency."""

    model: Model
    eye: Eye
    name: str

    @cached_property
    def digest(self) -> str:
        own = [file for file in self.model.files if file.stem == "eye"] or list(self.model.files)[:1]
        return sha256(own[0])

    @property
    def scale(self) -> float:
        return float(self.eye.scale.exp())

    @torch.inference_mode()
    def see(self, pictures: Sequence[Tensor]) -> Tensor:
        side, rows = self.eye.config.pixels, []
        for i in range(0, len(pictures), AT_ONCE):
            some = torch.stack([fitted(to_pil(picture), side) for picture in pictures[i : i + AT_ONCE]])  # B 4 S S
            with self.model.place.autocast():
                rows.append(self.eye.see(some.to(self.model.place.device)).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.eye.config.space)

    def read(self, texts: Sequence[str]) -> Tensor:
        return self.model.vectors(texts).cpu() if texts else torch.zeros(0, self.eye.config.space)


@dataclass(frozen=True)
class ClipLooker:
    """A CLIP with both towers. It learned from photographs of the web, and sees what is clear as white."""

    net: ClipWithEyes
    files: tuple[Path, ...]
    place: Place
    name: str

    @cached_property
    def digest(self) -> str:
        sums = [sha256(file) for file in self.files]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()

    @property
    def scale(self) -> float:
        return float(self.net.logit_scale.exp())

    @torch.inference_mode()
    def see(self, pictures: Sequence[Tensor]) -> Tensor:
        config, rows = self.net.config.vision, []
        for i in range(0, len(pictures), AT_ONCE):
            some = torch.stack([prepare_clip(picture, config.side) for picture in pictures[i : i + AT_ONCE]])  # B 3 S S
            with self.place.autocast():
                rows.append(self.net.see(some.to(self.place.device)).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, config.projection)

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        ids, rows = _tokens(texts), []
        for some in ids.split(AT_ONCE):
            ends = (some == ClipPieces.end).int().argmax(1)  # B
            with self.place.autocast():
                rows.append(self.net.read(some.to(self.place.device), ends.to(self.place.device)).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.net.config.vision.projection)


def mini_looker(model: Model, name: str = "mini") -> MiniLooker:
    """Raises BadInput where the model has no eye."""
    return MiniLooker(model, model.eye, name)


def clip_looker(path: Path, place: Place) -> ClipLooker:
    """A CLIP with both towers, from a file or folder in the names of transformers or OpenCLIP."""
    part = read_addon(path, CLIP_WITH_EYES)
    text, vision = part.config.text, part.config.vision
    quick = quick_gelu(path)
    if quick is not None:
        text, vision = replace(text, quick=quick), replace(vision, quick=quick)
    net = placed(build(replace(part, config=replace(part.config, text=text, vision=vision))), place)
    return ClipLooker(cast(ClipWithEyes, net), part.files, place, path.stem)


def find_looker(name: str, place: Place) -> Looker:
    """The looker that a name means: "mini", the file or folder of a CLIP, or another model of the mini family."""
    if name in SHIPPED:
        return mini_looker(load(name, place), name)
    path = find_model(name)
    if _is_clip(path):
        return clip_looker(path, place)
    return mini_looker(load(name, place), path.stem)


def quick_gelu(path: Path) -> bool | None:
    """Whether a CLIP has OpenAI's activation: what the JSON beside it says, or its file's name; None: neither does."""
    folder = path if path.is_dir() else path.parent
    if (theirs := folder / "open_clip_config.json").exists():
        model = read_json(theirs).get("model_cfg", {})
        return bool(model.get("quick_gelu", False)) if isinstance(model, dict) else None
    told = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    told = told.get("vision_config", told)
    if isinstance(told, dict) and "patch_size" in told:  # the JSON of an image tower and of nothing else
        return bool(told.get("hidden_act", "quick_gelu") == "quick_gelu")
    return False if any(word.startswith(OPEN) for word in words_of(path.stem)) else None


def _is_clip(path: Path) -> bool:
    """Whether an image tower is among what a file, or the files of a folder, hold by their names."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    names = {name for file in files for name in read_header(file).entries}
    return any(mark in names for naming in CLIP_VISION.namings for mark in naming.marks)


def _tokens(texts: Sequence[str]) -> Tensor:
    """N 77, with a warning where a text is longer."""
    pieces = ClipPieces()
    rows = [pieces.ids(text) for text in texts]
    if any(len(row) > pieces.length - 2 for row in rows):
        warnings.warn(f"a text is cut after {pieces.length - 2} word pieces: CLIP reads no more", stacklevel=3)
    return torch.tensor([pieces.row(row[: pieces.length - 2]) for row in rows], dtype=torch.int64).view(-1, 77)

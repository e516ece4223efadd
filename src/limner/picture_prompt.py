"""Picture prompts: what a picture says to a UNet beside the words, by an IP-Adapter (arXiv 2308.06721)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from limner.errors import BadInput
from limner.families.addons import read_addon
from limner.families.seeing import CLIP_VISION, IP_ADAPTER
from limner.looker import quick_gelu
from limner.models.clip_vision import ClipVision, ClipVisionConfig, prepare_clip
from limner.models.ip_adapter import IpAdapter, IpAdapterConfig
from limner.models.unet import UnetConfig
from limner.nets import placed
from limner.pipeline import build
from limner.place import Place
from limner.store import home
from limner.types import Tensors


@dataclass(frozen=True)
class Prompter:
    """An IP-Adapter, the image tower it was trained with, and where both run."""

    adapter: IpAdapter
    eyes: ClipVision
    place: Place

    def __post_init__(self) -> None:
        wants, gives = self.adapter.config, _given(self.adapter.config, self.eyes.config)
        if wants.seen != gives:
            what = "a vector" if wants.kind == "plain" else "states"
            raise BadInput(f"this IP-Adapter reads {what} {wants.seen} wide, and the image encoder gives {gives}")


def find_prompter(adapter: Path, eyes: Path | None, place: Place) -> Prompter:
    """From an adapter's file, and the file or folder of a CLIP, of which only the image tower is read.

    Without `eyes` the tower is looked for where it is published, in image_encoder beside the adapter or in the folder
    models next to its own, and then in the store.
    """
    part = read_addon(adapter, IP_ADAPTER)
    path = eyes or _eyes_near(adapter, part.config)
    seeing, quick = read_addon(path, CLIP_VISION), quick_gelu(path)
    if quick is not None:
        seeing = replace(seeing, config=replace(seeing.config, quick=quick))
    nets = [placed(build(each), place) for each in (part, seeing)]
    return Prompter(cast(IpAdapter, nets[0]), cast(ClipVision, nets[1]), place)


def _eyes_near(adapter: Path, wants: IpAdapterConfig) -> Path:
    """The first image encoder that gives what the adapter reads, or the first of all."""
    folder = adapter if adapter.is_dir() else adapter.parent
    near = [folder / "image_encoder", folder.parent / "models" / "image_encoder", home() / "image_encoder"]
    there = [path for path in near if path.exists()]
    if not there:
        raise BadInput(f"{adapter.name} needs the image encoder that it was trained with, a CLIP, as {near[0]}")
    fit = (path for path in there if _given(wants, read_addon(path, CLIP_VISION).config) == wants.seen)
    return next(fit, there[0])


def _given(wants: IpAdapterConfig, eyes: ClipVisionConfig) -> int:
    """How wide that is what a tower gives such an adapter."""
    return eyes.projection or eyes.width if wants.kind == "plain" else eyes.width


@torch.inference_mode()
def picture_prompt(
    prompter: Prompter, picture: Tensor, unet: UnetConfig, weight: float = 1.0
) -> tuple[Tensors, Tensors]:
    """What `Cond.seen` holds of a picture (4 H W in [0, 1], premultiplied), for the prompt and for the negative one.

    The negative is told of nothing: a vector of zeros, or what the tower makes of a picture of zeros.
    """
    adapter, eyes, place = prompter.adapter, prompter.eyes, prompter.place
    adapter.order_in(unet)  # refused before anything is computed
    pictures = prepare_clip(picture, eyes.config.side)[None].to(place.device)  # 1 3 S S
    with place.autocast():
        vectors, states = eyes(torch.cat([pictures, torch.zeros_like(pictures)]))  # 2 P, 2 T D
        blank = torch.tensor([1.0, 0.0], device=place.device)[:, None]
        tokens = adapter.tokens(vectors * blank if adapter.config.kind == "plain" else states)  # 2 N D
        seen = adapter.keys_and_values(tokens, unet, weight)
    return tuple(each[:1].float() for each in seen), tuple(each[1:].float() for each in seen)

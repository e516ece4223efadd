"""CLIP's image tower (Radford et al. 2021, arXiv 2103.00020): a vision transformer, beside the text tower of `clip.py`.

Module names are those of the published image encoders, from ViT-B/32 to bigG. What it is asked for is the vector that
lies near those of fitting texts, and the states before the last layer, which picture prompts are made from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.models.clip import Clip, ClipConfig, Layer
from limner.models.clip import config_of as text_config_of

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue in CLIP's training pictures, and what they
DEVIATION = (0.26862954, 0.26130258, 0.27577711)  # deviate by; every published tower was trained with these


@dataclass(frozen=True)
class ClipVisionConfig:
    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    patch: int = 14  # side of a patch, in pixels
    side: int = 224  # of the pictures it was trained with
    projection: int = 768  # width of the space it shares with texts; 0: it has none
    quick: bool = True  # OpenAI's activation, x sigmoid(1.702 x)


@dataclass(frozen=True)
class ClipWithEyesConfig:
    text: ClipConfig
    vision: ClipVisionConfig


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> ClipVisionConfig:
    """What names and shapes say of a tower. Those wider than L have 16 heads, the others heads 64 wide.

    The activation goes with the width: OpenAI published up to L. What a file beside the weights says has precedence.
    """
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    places = shapes["vision_model.embeddings.position_embedding.weight"][0]
    layers = len({name.split(".")[3] for name in shapes if name.startswith("vision_model.encoder.layers.")})
    hidden = shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0]
    heads = 16 if width > 1024 else max(1, width // 64)
    projection = shapes.get("visual_projection.weight", (0,))[0]
    side = math.isqrt(places - 1) * patch
    return ClipVisionConfig(width, layers, heads, hidden, patch, side, projection, quick=width <= 1024)


def with_eyes_config_of(shapes: Mapping[str, tuple[int, ...]]) -> ClipWithEyesConfig:
    text = {name.removeprefix("text."): shape for name, shape in shapes.items() if name.startswith("text.")}
    vision = {name.removeprefix("vision."): shape for name, shape in shapes.items() if name.startswith("vision.")}
    return ClipWithEyesConfig(text_config_of(text), config_of(vision))


class Embeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding((config.side // config.patch) ** 2 + 1, config.width)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.patch_embedding(pictures).flatten(2).transpose(1, 2)  # B T D
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)  # B 1 D
        return torch.cat([first, x], dim=1) + self.position_embedding.weight


class ClipVision(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layer = ClipConfig(0, width, config.layers, config.heads, config.hidden, quick=config.quick)
        self.vision_model = nn.ModuleDict(
            {
                "embeddings": Embeddings(config),
                "pre_layrnorm": nn.LayerNorm(width),  # so spelled in every file
                "encoder": nn.ModuleDict({"layers": nn.ModuleList(Layer(layer) for _ in range(config.layers))}),
                "post_layernorm": nn.LayerNorm(width),
            }
        )
        self.visual_projection = nn.Linear(width, config.projection, bias=False) if config.projection else None

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """pictures: B 3 S S of `prepare_clip`. Gives the vector, B P (B D without a projection), of any length, and
        the states before the last layer, not normed: B 1+T D."""
        x = self.vision_model["pre_layrnorm"](self.vision_model["embeddings"](pictures))  # B 1+T D
        states = x
        for each in self.vision_model["encoder"]["layers"]:  # type: ignore[index]
            states, x = x, each(x)
        pooled = self.vision_model["post_layernorm"](x[:, 0])  # B D
        return (pooled if self.visual_projection is None else self.visual_projection(pooled)).float(), states.float()


class ClipWithEyes(nn.Module):
    """Both towers, which tell how well a text fits a picture."""

    def __init__(self, config: ClipWithEyesConfig) -> None:
        super().__init__()
        self.config = config
        self.text = Clip(config.text)
        self.vision = ClipVision(config.vision)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # log of the inverse temperature

    def see(self, pictures: Tensor) -> Tensor:
        """B 3 S S of `prepare_clip` to unit vectors B P."""
        return F.normalize(self.vision(pictures)[0], dim=1)

    def read(self, ids: Tensor, ends: Tensor) -> Tensor:
        """Tokens B L, and where each text's first end token stands, B, to unit vectors B P."""
        return F.normalize(self.text(self.text.embed(ids), ends, self.config.text.layers)[1], dim=1)


def prepare_clip(picture: Tensor, side: int) -> Tensor:
    """4 H W in [0, 1], premultiplied, to what a tower of this side sees: 3 S S, on white where it is clear.

    The shorter side is resized (bicubic, smoothed where it shrinks) and the centre cut out, in the levels of 8 bits.
    """
    opaque = picture[:3] + 1 - picture[3:]  # 3 H W
    h, w = opaque.shape[1:]
    size = (side, int(side * w / h)) if h <= w else (int(side * h / w), side)
    fit = F.interpolate(opaque[None].float(), size=size, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    cut = fit[:, top : top + side, left : left + side].clamp(0, 1).mul(255).round() / 255  # 3 S S
    mean, deviation = (cut.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (cut - mean) / deviation

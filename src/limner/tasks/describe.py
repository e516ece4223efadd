"""Pictures to words: what is in one, in which style, in which colours, each with a score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import BadInput
from limner.palette import shares
from limner.pipeline import Model

SURE = 0.35  # the cosine from which a name is offered without doubt


@dataclass(frozen=True)
class Description:
    names: list[tuple[str, float]]  # the likest names first, with cosines from -1 to 1
    styles: list[tuple[str, float]]  # with probabilities
    colours: list[tuple[str, float]]  # with shares of the opaque pixels
    clear: float  # the share of pixels that are transparent
    sure: bool

    def sentence(self) -> str:
        if not self.names:
            return "an empty picture"
        name, style = self.names[0][0], self.styles[0][0]
        return f"{name}, {style}" if self.sure else f"not sure; perhaps {name}, {style}"


@torch.inference_mode()
def describe(model: Model, picture: Tensor, top: int = 5) -> Description:
    """What the eye makes of a picture, 4 H W in [0, 1], premultiplied."""
    if not model.names:
        raise BadInput("this model carries no names.txt, from which describe chooses")
    if not (picture[3] > 0.05).any():
        return Description([], [], [], 1.0, False)
    eye = model.eye
    scores = model.likeness(picture[None], model.name_vectors)[0]
    values, order = scores.topk(min(top, len(model.names)))
    with model.place.autocast():
        styles = eye.style_out(eye.features(picture[None].to(model.place.device))).float().softmax(1)[0].cpu()
    named = sorted(zip(model.family.styles, styles.tolist(), strict=True), key=lambda item: -item[1])
    colours = sorted(((n, s) for n, s in shares(picture).items() if s >= 0.05), key=lambda item: -item[1])
    return Description(
        [(model.names[i], value) for i, value in zip(order.tolist(), values.tolist(), strict=True)],
        named[:3],
        colours,
        float((picture[3] < 0.05).float().mean()),
        bool(values[0] >= SURE),
    )

"""Pictures to words: what is in one, in which style, in which colours, each with a score."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import BadInput
from limner.palette import shares
from limner.pipeline import Model
from limner.tasks.match import is_clear

SURE = 0.45  # the cosine from which a name is offered without doubt: there two of three share a word with the truth
KEYWORD = 0.1  # the share from which a word is offered: there every other one is true of a picture never seen
MOST = 8  # keywords
SMALL = {"a", "an", "and", "at", "by", "for", "from", "in", "no", "not", "of", "on", "or", "the", "to", "with"}


@dataclass(frozen=True)
class Description:
    names: list[tuple[str, float]]  # the likest names first, with cosines from -1 to 1
    styles: list[tuple[str, float]]  # with probabilities
    colours: list[tuple[str, float]]  # with shares of the opaque pixels
    clear: float  # the share of pixels that are transparent
    sure: bool  # of the first name
    keywords: list[tuple[str, float]]  # with shares of all names, weighed; empty where no word stands out
    style_sure: bool

    def sentence(self) -> str:
        if not self.names:
            return "an empty picture"
        name, style = self.names[0][0], self.styles[0][0]
        style = style if self.style_sure else f"perhaps {style}"
        return f"{name}, {style}" if self.sure else f"not sure; perhaps {name}, {style}"


@torch.inference_mode()
def describe(model: Model, picture: Tensor, top: int = 5) -> Description:
    """What the eye makes of a picture, 4 H W in [0, 1], premultiplied."""
    if not model.names:
        raise BadInput("this model carries no names.txt, from which describe chooses")
    if not (picture[3] > 0.05).any():
        return Description([], [], [], 1.0, False, [], False)
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
        keywords(model.names, (scores * eye.scale.exp().cpu()).softmax(0).tolist()),
        is_clear([share for _, share in named]),
    )


def keywords(names: Sequence[str], shares: Sequence[float], least: float = KEYWORD) -> list[tuple[str, float]]:
    """The words that many likely names have in common: each gets the shares of all names that hold it.

    One name of thousands is seldom right where a picture was never seen; what the likely ones agree on ("moon",
    "face") is right far more often. One and many of a thing are one word; small words and numbers are none.
    """
    votes: dict[str, float] = defaultdict(float)
    forms: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, share in zip(names, shares, strict=True):
        words = set(re.findall(r"[^\W\d_]{2,}", name.lower())) - SMALL
        for word in words:
            forms[_one(word)][word] += share
        for stem in {_one(word) for word in words}:
            votes[stem] += share
    likely = sorted(
        ((vote, stem) for stem, vote in votes.items() if vote >= least), key=lambda item: (-item[0], item[1])
    )
    return [(max(forms[stem], key=lambda word: (forms[stem][word], -len(word))), vote) for vote, stem in likely[:MOST]]


def _one(word: str) -> str:
    """A word without the ending of many, as far as counting goes: apples, apple; glass stays."""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word

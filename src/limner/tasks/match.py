"""Pictures against texts: how alike they are to a looker, and which label of a list a picture has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from limner.errors import BadInput
from limner.looker import Looker

TEMPLATE = "a photo of a {}"  # the sentence that CLIP's labels were published with (arXiv 2103.00020, section 3.1.4)
CLEAR = 2.0  # the best is clear of the rest where its share is at least so many times the next one's


@dataclass(frozen=True)
class Match:
    cosines: Tensor  # N M, from -1 to 1, of N pictures and M texts
    shares: Tensor  # N M; those of a picture sum to one


@dataclass(frozen=True)
class Labelled:
    labels: list[tuple[str, float]]  # the likest first, with their shares among all that were given
    sure: bool

    def sentence(self) -> str:
        return self.labels[0][0] if self.sure else f"not sure; perhaps {self.labels[0][0]}"


def match(looker: Looker, pictures: Sequence[Tensor], texts: Sequence[str]) -> Match:
    """Cosines, and their softmax over the texts at the scale that the looker was trained with.

    Shares say which of these texts is the likest, not whether one of them is right.
    """
    cosines = looker.see(pictures).float() @ looker.read(texts).float().T
    return Match(cosines, (cosines * looker.scale).softmax(1))


def labelled(
    looker: Looker, pictures: Sequence[Tensor], labels: Sequence[str], template: str = TEMPLATE, top: int = 5
) -> list[Labelled]:
    """Zero-shot classification: each label is read within the template, and the pictures are matched with them."""
    if len(labels) < 2:
        raise BadInput(f"labels are chosen from, so there should be two or more, not {len(labels)}")
    if "{}" not in template:
        raise BadInput(f"the template {template!r} has no {{}}, where the label goes")
    shares = match(looker, pictures, [template.replace("{}", label) for label in labels]).shares
    return [_ranked(labels, row, top) for row in shares]


def is_clear(shares: Sequence[float]) -> bool:
    """Whether the first of some falling shares stands out: at least `CLEAR` times the second."""
    return len(shares) < 2 or shares[0] >= CLEAR * shares[1]


def _ranked(labels: Sequence[str], shares: Tensor, top: int) -> Labelled:
    values, order = shares.topk(len(labels))
    named = [(labels[i], value) for i, value in zip(order.tolist(), values.tolist(), strict=True)]
    return Labelled(named[:top], is_clear(values.tolist()))

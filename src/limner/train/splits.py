"""What no training may see, decided by names alone, so that it is frozen before anything is trained.

Three sets are set aside (and the shards called `val-*` besides):
    pair      one (style, concept) cell in twenty whose concept is drawn in other styles too
    concept   one concept in fifty, in all its styles
The choice is a hash of the words, so it is the same for everybody and cannot be tuned.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from limner.train.data import Words

Split = Literal["train", "val", "pair", "concept"]


def share(*names: str) -> float:
    """A number in [0, 1) that depends on the names only."""
    return int.from_bytes(hashlib.sha256("\x1f".join(("limner-1", *names)).encode()).digest()[:6], "big") / 2**48


def splits(words: Sequence[Words]) -> list[Split]:
    """The set that each picture belongs to; pictures without a style or concept of their own are for training."""
    styles: dict[str, set[str]] = defaultdict(set)
    for w in words:
        styles[w.concept].add(w.style)
    return [_split(w, len(styles[w.concept])) for w in words]


def _split(w: Words, styles: int) -> Split:
    if w.style and share("concept", w.concept) < 0.02:
        return "concept"
    if w.style and styles > 1 and share("pair", w.style, w.concept) < 0.05:
        return "pair"
    return "val" if w.split == "val" else "train"

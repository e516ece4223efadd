"""What no training may see, decided by names alone."""

import random

from limner.train.data import Words
from limner.train.splits import share, splits

STYLES = ["flat", "noto", "blob"]
WORDS = [
    Words(f"{style}/{i}", f"thing {i}", style=style, concept=f"thing {i}") for i in range(3000) for style in STYLES
]


def test_the_shares_are_what_the_first_lines_say():
    found = splits(WORDS)
    concepts = {w.concept for w, split in zip(WORDS, found, strict=True) if split == "concept"}
    assert abs(len(concepts) / 3000 - 0.02) < 0.008
    rest = [split for split in found if split != "concept"]
    assert abs(rest.count("pair") / len(rest) - 0.05) < 0.008
    assert set(rest) == {"pair", "train"}


def test_a_concept_is_set_aside_in_all_its_styles():
    by_concept: dict[str, set[bool]] = {}
    for words, split in zip(WORDS, splits(WORDS), strict=True):
        by_concept.setdefault(words.concept, set()).add(split == "concept")
    assert all(len(aside) == 1 for aside in by_concept.values())


def test_the_order_and_the_key_do_not_matter():
    before = {(w.style, w.concept): split for w, split in zip(WORDS, splits(WORDS), strict=True)}
    shuffled = [Words(f"other {w.key}", "another name", (), w.style, w.concept) for w in WORDS]
    random.Random(0).shuffle(shuffled)
    assert all(before[w.style, w.concept] == split for w, split in zip(shuffled, splits(shuffled), strict=True))


def test_a_pair_is_set_aside_only_where_its_concept_has_other_styles():
    alone = [w for w in WORDS if w.style == "flat"]
    assert "pair" not in splits(alone)
    assert "concept" in splits(alone)


def test_pictures_without_a_style_are_for_training():
    plain = [Words(str(i), f"thing {i}", concept=f"thing {i}") for i in range(500)]
    assert set(splits(plain)) == {"train"}


def test_what_its_shard_calls_val_stays_out_of_training():
    kept = [Words(w.key, w.name, style=w.style, concept=w.concept, split="val") for w in WORDS]
    assert set(splits(kept)) == {"val", "pair", "concept"}


def test_shares_are_frozen():
    """The sets of a published model are found again by these numbers."""
    assert share("concept", "apple") == 0.23781285037624755
    assert share("pair", "flat", "apple") == 0.8168669678412712

"""Many ways to say what a picture shows, so that a model learns words and not sentences."""

from __future__ import annotations

import random
from dataclasses import dataclass

from limner.palette import NAMES
from limner.train.data import Words

ASIDE = 0.1  # share of captions left empty, for classifier-free guidance


@dataclass(frozen=True)
class Scene:
    """What was done to a picture before it was encoded, as far as words should tell."""

    kind: str = "plain"  # plain, mirror, recolour, ground, night, count, pair, hat
    colour: str = ""  # of the thing, where one dominates
    ground: str = ""  # of what lies behind it
    count: int = 1
    other: str = ""  # the name of a second thing


STYLE_WORDS = {
    "noto": ("noto emoji", "emoji"),
    "emojione": ("emojione emoji", "emoji"),
    "blob": ("blob emoji", "emoji"),
    "firefox": ("firefox emoji", "emoji"),
    "fluent": ("fluent emoji", "3d emoji", "emoji"),
    "flat": ("flat icon", "flat emoji", "flat"),
    "silhouette": ("silhouette", "black icon", "black silhouette"),
    "pixel art": ("pixel art", "pixel art sprite", "game sprite"),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}


def caption(words: Words, scene: Scene, draw: random.Random) -> str:
    """One caption of a picture, by chance; empty in one of ten."""
    if draw.random() < ASIDE:
        return ""
    name = thing(words.name, scene.colour, draw, always=scene.kind == "recolour")
    match scene.kind:
        case "ground":
            name = f"{name} on a {scene.ground} background"
        case "night":
            name = f"{name} at night"
        case "count":
            name = f"{NUMBERS[scene.count]} {plural(name)}"
        case "pair":
            name = draw.choice(("{} and {}", "{} next to {}")).format(_article(name, draw), _article(scene.other, draw))
        case "hat":
            name = draw.choice(("{} with a hat", "{} wearing a hat", "{} with a {other}")).format(
                name, other=scene.other
            )
    if scene.kind not in ("count", "pair"):
        name = _article(name, draw)
    roll = draw.random()
    recoloured = scene.kind == "recolour"
    more = [word for word in words.keywords if not (recoloured and word in NAMES)]
    if more and roll < 0.3 and scene.kind in ("plain", "mirror", "recolour"):
        kept = draw.sample(more, min(len(more), draw.randint(1, 4)))
        alone = roll < 0.06 and len(kept) > 1 and not recoloured
        name = ", ".join(kept if alone else [name, *kept])
    if words.style in STYLE_WORDS and draw.random() < 0.3:
        style = draw.choice(STYLE_WORDS[words.style])
        name = draw.choice(("{1} {0}", "{1} of {0}", "{0}, {1}", "{0}, {1} style")).format(name, style)
    return name


def thing(name: str, colour: str, draw: random.Random, always: bool) -> str:
    """The name, told its colour half of the time it has one; a colour word that stands there already gives way."""
    if not colour or "skin tone" in name or not (always or draw.random() < 0.5):
        return name
    rest = [word for word in name.split() if word.lower() not in (*NAMES, "grey", "golden", "gold")]
    return f"{colour} {' '.join(rest) or name}"


def _article(name: str, draw: random.Random) -> str:
    if draw.random() < 0.5 or not name:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh")):
        return name if name.endswith("s") else f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else f"{name}s"

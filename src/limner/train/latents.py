"""The latents that a denoiser learns from, encoded once: every picture plain, and what `compose` makes of some.

The file carries the digests of the encoder and of the pictures, and is refused when either differs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from limner.errors import BadData
from limner.models.mini_autoencoder import MiniAutoencoder
from limner.palette import dominant
from limner.place import Place
from limner.rng import seed_of
from limner.train import compose
from limner.train.captions import Scene
from limner.train.data import Pictures, Words
from limner.weights.io import read_header, read_tensors, write_tensors


@dataclass(frozen=True)
class ComposeConfig:
    """How many composed pictures there are for a hundred plain ones, of each kind, where the kind is possible."""

    mirror: int = 40
    recolour: int = 70
    ground: int = 25
    night: int = 8
    count: int = 12
    pair: int = 16
    hat: int = 8
    seed: int = 0


SHARES = {
    "plain": 0.68,
    "mirror": 0.12,
    "recolour": 0.06,
    "ground": 0.04,
    "night": 0.02,
    "count": 0.02,
    "pair": 0.03,
    "hat": 0.03,
}  # fmt: skip  of what training draws


@dataclass(frozen=True)
class Latents:
    x0: Tensor  # N C h w, fp16
    rows: Tensor  # N, into the pictures
    scenes: tuple[Scene, ...]
    weights: Tensor  # N, how likely training draws each


def encoder_digest(model: MiniAutoencoder) -> str:
    """SHA-256 over the encoder and the normalisation; the decoder may improve without it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith("decoder."):
            digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode(
    model: MiniAutoencoder, pictures: Pictures, rows: Tensor, config: ComposeConfig, path: Path, place: Place
) -> None:
    """Write the cache at `path`."""
    todo = list(_plan(pictures, rows, config))
    stored, kept, scenes = [], [], []
    batch: list[Tensor] = []
    for number, (row, make) in enumerate(todo):
        made = make(pictures.batch(torch.tensor([row]))[0])
        if made is not None:
            batch.append(made[0])
            kept.append(row)
            scenes.append(asdict(made[1]))
        if len(batch) == 64 or (batch and number == len(todo) - 1):
            with torch.no_grad(), place.autocast():
                stored.append(model.encode(torch.stack(batch).to(place.device)).half().cpu())
            batch = []
    tensors = {"x0": torch.cat(stored), "rows": torch.tensor(kept)}
    note = {"encoder": encoder_digest(model), "pictures": pictures.digest, "compose": asdict(config), "scenes": scenes}
    write_tensors(path, tensors, {"limner.latents": json.dumps(note, ensure_ascii=False)})


def load(path: Path, model: MiniAutoencoder, pictures: Pictures) -> Latents:
    """The cache, refused when it was made by another encoder or from other pictures."""
    note = json.loads(read_header(path).metadata.get("limner.latents", "{}"))
    for what, want in (("encoder", encoder_digest(model)), ("pictures", pictures.digest)):
        if note.get(what) != want:
            raise BadData(f"{path} was made with other {what} ({str(note.get(what))[:12]}, not {want[:12]}); delete it")
    tensors = read_tensors(path)
    scenes = tuple(Scene(**scene) for scene in note["scenes"])
    rows = tensors["rows"]
    return Latents(tensors["x0"], rows, scenes, weigh(rows, scenes, pictures.words))


def weigh(rows: Tensor, scenes: tuple[Scene, ...], words: tuple[Words, ...]) -> Tensor:
    """Equal shares for each (style, concept), so that skin tones do not crowd out the rest; kinds by SHARES.

    Silhouettes and sprites, whose names are mostly their own, count half.
    """
    cells = [(words[i].style, words[i].concept, scene.kind) for i, scene in zip(rows.tolist(), scenes, strict=True)]
    sizes = Counter(cells)
    raw = [(0.5 if style in ("silhouette", "pixel art") else 1.0) / sizes[style, c, k] for style, c, k in cells]
    totals: Counter[str] = Counter()
    for (_, _, kind), weight in zip(cells, raw, strict=True):
        totals[kind] += weight  # type: ignore[assignment]
    return torch.tensor([w / totals[k] * SHARES[k] for (_, _, k), w in zip(cells, raw, strict=True)])


Make = Callable[[Tensor], tuple[Tensor, Scene] | None]


def _plan(pictures: Pictures, rows: Tensor, config: ComposeConfig) -> Iterator[tuple[int, Make]]:
    """Every picture plain, then a drawn share of each kind; concepts weigh alike, however many tones they come in."""
    draw = random.Random(seed_of(config.seed, "compose"))
    chosen = rows.tolist()
    for row in chosen:
        yield row, lambda picture: (picture, Scene("plain", colour=dominant(picture) or ""))
    sizes = Counter((pictures.words[i].style, pictures.words[i].concept) for i in chosen)
    weights = [1 / sizes[pictures.words[i].style, pictures.words[i].concept] for i in chosen]
    styled: dict[str, list[int]] = defaultdict(list)
    for i in chosen:
        styled[pictures.words[i].style].append(i)
    for kind in ("mirror", "recolour", "ground", "night", "count", "pair", "hat"):
        able = [
            (i, w) for i, w in zip(chosen, weights, strict=True) if kind != "hat" or compose.can_wear(pictures.words[i])
        ]
        count = len(chosen) * getattr(config, kind) // 100 if able else 0
        for row in draw.choices(*zip(*able, strict=True), k=count) if count else []:
            words = pictures.words[row]
            others = styled[words.style]
            if kind == "hat":
                others = [i for i in others if pictures.words[i].name in compose.HATS]
            if not others:
                continue
            other, lucky = draw.choice(others), random.Random(draw.random())
            yield row, _maker(kind, words, pictures, other, lucky)


def _maker(kind: str, words: Words, pictures: Pictures, other: int, draw: random.Random) -> Make:
    def make(picture: Tensor) -> tuple[Tensor, Scene] | None:
        match kind:
            case "mirror":
                return compose.mirrored(picture, words)
            case "recolour":
                return compose.recoloured(picture, words, draw)
            case "ground":
                return compose.grounded(picture, draw)
            case "night":
                return compose.at_night(picture, draw)
            case "count":
                return compose.counted(picture, draw)
        second, name = pictures.batch(torch.tensor([other]))[0], pictures.words[other].name
        if kind == "pair":
            return compose.paired(picture, second, name)
        return compose.hatted(picture, second, name)

    return make

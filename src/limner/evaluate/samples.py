"""What is painted for the figures: prompts drawn once and for all by a seed, and many recipes in one batch."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.diffusion.guide import guided, perturbed
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import times
from limner.errors import BadInput
from limner.models.bert import pool
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.rng import Noise, cpu_stream, seed_of
from limner.train.data import Pictures, Words

SHEET = ("a red apple", "a blue apple", "a cat", "a dog wearing a hat", "smiling face with a hat", "a house at night",
         "a golden crown", "pixel art sword", "green dragon", "an airplane over the sea")  # fmt: skip
COLOURED = ("blue apple", "purple banana", "pink car", "green cat", "blue strawberry", "red frog", "orange whale",
            "yellow elephant", "green pig", "purple carrot", "pink tree", "red dolphin", "blue lion", "orange octopus",
            "yellow airplane", "green bell", "purple mushroom", "red umbrella", "blue pumpkin",
            "pink key")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is painted: by default about 2,900 pictures."""

    seed: int = 0
    prompts: int = 128  # of each retrieval figure
    seeds: int = 4  # pictures a prompt, for retrieval
    texts: int = 100  # that retrieval chooses from
    spread: int = 512  # pictures of different prompts, for the figures that compare sets
    empty: int = 384  # pictures of no prompt
    coloured: int = 8  # pictures of each coloured object
    people: int = 24  # roles in five skin tones, and roles in two genders
    diverse: tuple[int, int] = (16, 8)  # prompts and pictures of each, for diversity
    copies: int = 400  # queries of each row of the copy rate
    resamples: int = 100  # halves of the sets, for the kernel distance's interval
    sheet: int = 8  # pictures of each prompt of the sheet
    batch: int = 16  # pictures painted at once

    @classmethod
    def of(cls, pictures: int | None, seed: int, quick: bool) -> Plan:
        """From the two dials a person has: about how many prompts a figure, and whether few must do."""
        plan = cls(seed=seed)
        if quick:
            plan = replace(plan, prompts=24, seeds=2, spread=96, empty=96, coloured=2, people=4, diverse=(6, 4),
                           copies=200, sheet=4)  # fmt: skip
        if pictures is None:
            return plan
        if pictures < 2:
            raise BadInput(f"{pictures} pictures a figure were asked for; at least 2 are needed")
        more = 4 * pictures
        return replace(plan, prompts=pictures, spread=more, empty=more)


@dataclass(frozen=True)
class Case:
    """A real picture whose name is a prompt."""

    row: int
    name: str
    style: str  # "" where the data names none
    concept: str


def cells(words: Sequence[Words], keep: Iterable[bool]) -> list[Case]:
    """One case of each (style, concept): the picture with the shortest name, so skin tones do not crowd in."""
    best: dict[tuple[str, str], Case] = {}
    for row, (w, kept) in enumerate(zip(words, keep, strict=True)):
        known = best.get((w.style, w.concept))
        if kept and w.name and (known is None or len(w.name) < len(known.name)):
            best[w.style, w.concept] = Case(row, w.name, w.style, w.concept)
    return list(best.values())


def by_style(cases: Iterable[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.style].append(case)
    return dict(sorted(groups.items()))


def rounds(groups: dict[str, list[Case]], draw: random.Random, most: int | None = None) -> Iterator[Case]:
    """One case of each style by turns, each style in a drawn order, until all are through."""
    queues = [draw.sample(group, min(len(group), most or len(group))) for group in groups.values()]
    while queues := [queue for queue in queues if queue]:
        yield from [queue.pop() for queue in draw.sample(queues, len(queues))]


def unlike(cases: Iterable[Case], count: int, against: Case | None = None, word: str = "\n") -> list[Case]:
    """The first `count` cases that share neither concept nor name, nor hold a word."""
    concepts, names = ({against.concept}, {against.name.lower()}) if against else (set(), set())
    found: list[Case] = []
    for case in cases:
        if len(found) == count:
            break
        name = case.name.lower()
        if case.concept not in concepts and name not in names and word not in name.split():
            concepts.add(case.concept)
            names.add(name)
            found.append(case)
    return found


def texts(case: Case, groups: dict[str, list[Case]], count: int, seed: int, word: str = "\n") -> list[str]:
    """The case's own name, then `count - 1` names of other concepts, as many of each style."""
    draw = random.Random(seed_of(seed, "texts", case.style, case.name))
    others = unlike(rounds(groups, draw, 2 * count // max(1, len(groups)) + 2), count - 1, case, word)
    return [case.name, *(other.name for other in others)]


def halves(groups: dict[str, list[Case]], count: int, draw: random.Random) -> tuple[list[Case], list[Case]]:
    """Two sets of different pictures with the same styles, in style-balanced order."""
    taken: list[list[Case]] = [[], []]
    turn: dict[str, int] = defaultdict(int)
    for case in rounds(groups, draw):
        half = taken[turn[case.style] % 2]
        turn[case.style] += 1
        if len(half) < count:
            half.append(case)
    return taken[0], taken[1]


class Streams(Noise):
    """Noise with a seed of its own for each picture of a batch, each drawn as `Noise(seed)` draws it alone."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds[0])
        self._streams = [cpu_stream(seed) for seed in seeds]


def paint_batch(model: Model, recipes: Sequence[Recipe]) -> Tensor:
    """Pictures of recipes that differ in prompt, style and seed alone: B 4 H W, premultiplied."""
    first = recipes[0]
    if any(r.but(prompt=first.prompt, style=first.style, seed=first.seed) != first for r in recipes):
        raise BadInput("recipes painted in one batch may differ in prompt, style and seed only")
    noise = Streams([r.seed for r in recipes])
    x = noise(len(recipes), *model.latent_shape(first.height, first.width)).to(model.place.device)
    cond = model.encode([r.prompt for r in recipes], [r.style for r in recipes])
    positive, alone = model.denoiser(cond), model.denoiser(cond, perturbed=True)
    negative = model.denoiser(model.encode([first.negative]))
    told = first.negative or any(r.prompt or r.style for r in recipes)
    denoiser = guided(positive, negative, first.cfg_scale if told else 1.0, first.cfg_interval, first.cfg_rescale)
    denoiser = perturbed(denoiser, alone, first.pag_scale, first.pag_interval)
    stations = times(first.steps, first.schedule, model.path)
    *_, last = SAMPLERS[first.sampler](denoiser, model.path, x, stations, noise)
    return model.to_image(last.x)


def paint_many(model: Model, recipes: Sequence[Recipe], batch: int) -> Iterator[Tensor]:
    """The same in parts of a batch, as bytes: each B 4 H W, uint8."""
    for start in range(0, len(recipes), batch):
        yield paint_batch(model, recipes[start : start + batch]).mul(255).round().byte()


def pooled(model: Model, phrases: Sequence[str]) -> Tensor:
    """The pooled text state of each phrase: N P. Each is read once, beside others of its length."""
    each = sorted(set(phrases), key=lambda phrase: (len(phrase), phrase))
    states = torch.cat([pool(*model.read(each[i : i + 256])) for i in range(0, len(each), 256)]).float().cpu()
    where = {phrase: i for i, phrase in enumerate(each)}
    return states[[where[phrase] for phrase in phrases]]


class ByText:
    """The baseline that paints nothing: it finds the training picture whose name is nearest to the prompt.

    Among pictures of that very name it prefers the style asked for; the rest is the order of the data.
    """

    def __init__(self, model: Model, pictures: Pictures, rows: Sequence[int]) -> None:
        self.model, self.words = model, pictures.words
        self.named: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            self.named[pictures.words[row].name].append(row)
        self.names = list(self.named)
        self.states = F.normalize(pooled(model, self.names), dim=1)

    def __call__(self, recipes: Sequence[Recipe]) -> list[int]:
        asked = F.normalize(pooled(self.model, [r.prompt for r in recipes]), dim=1)
        names = [self.names[i] for i in (asked @ self.states.T).argmax(1).tolist()]
        return [
            min(self.named[name], key=lambda row: self.words[row].style != recipe.style)
            for name, recipe in zip(names, recipes, strict=True)
        ]

"""Pictures of people: whether a skin tone or a gender that is told is painted, and what is where neither is.

The names of emoji carry both ("woman health worker: medium-dark skin tone"), so the data itself labels them. Who looks
is the judge, with names for words; the rows of real pictures say how well it can tell.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limner.evaluate.metrics import Estimate, bootstrap
from limner.evaluate.samples import Case
from limner.evaluate.table import Cell, Column, Row, Section
from limner.rng import seed_of
from limner.train.data import Words

if TYPE_CHECKING:
    from limner.evaluate.bench import Bench

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERS = ("man", "woman")
TITLES = ("People: a skin tone or a gender that is told", "People: neither is told")
MISSING = "The data has too few names of people for this figure."


@dataclass(frozen=True)
class Crowd:
    """Pictures of people that training has: each row shows one role of one style, in all tones or both genders."""

    tones: list[list[Case]]
    genders: list[list[Case]]
    untold: list[Case]  # roles that are names by themselves, too

    @property
    def told(self) -> list[Case]:
        return [case for row in (*self.tones, *self.genders) for case in row]


def crowd(words: Sequence[Words], rows: Sequence[int], count: int, seed: int) -> Crowd:
    """So many roles of each kind, drawn by a seed; no two of a kind are the same role."""
    known = {(words[row].style, words[row].name): row for row in rows}
    tones, genders, untold = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list), set[str]()
    for style, role in sorted({(style, name.split(":")[0]) for style, name in known}):
        if all((style, toned(role, tone)) in known for tone in TONES):
            tones[role].append(style)
        if (style, role) in known and all((style, f"{gender} {role}") in known for gender in GENDERS):
            genders[role].append(style)
            untold.add(role)
    draw = random.Random(seed_of(seed, "people"))

    def some(roles: dict[str, list[str]]) -> list[tuple[str, str]]:
        return [(draw.choice(roles[role]), role) for role in draw.sample(sorted(roles), min(count, len(roles)))]

    def cases(style: str, names: Sequence[str]) -> list[Case]:
        return [Case(known[style, name], name, style, words[known[style, name]].concept) for name in names]

    return Crowd(
        [cases(style, [toned(role, tone) for tone in TONES]) for style, role in some(tones)],
        [cases(style, [f"{gender} {role}" for gender in GENDERS]) for style, role in some(genders)],
        [cases(genders[role][0], [role])[0] for role in sorted(untold & tones.keys())[:count]],
    )


def toned(role: str, tone: str) -> str:
    return f"{role}: {tone} skin tone"


def told(bench: Bench) -> Section:
    """Of the names that differ in the tone or the gender alone, is the judge's best the one that was told?"""
    people = bench.people
    if not people.tones or not people.genders:
        return Section(TITLES[0], MISSING)
    real = bench.real([case.row for case in people.told])
    painted, styles = bench.painted["people"], len(TONES) * len(people.tones)
    sets = {
        "real pictures": real,
        "autoencoder": bench.rebuilt(real),
        "model": painted,
        "model, judged for the next": painted,
    }
    lines = []
    for name, pictures in sets.items():
        shift = int(name.endswith("next"))
        tone, gender = pictures[:styles], pictures[styles:]
        found = chosen(bench, tone, people.tones, shift), chosen(bench, gender, people.genders, shift)
        lines.append(Row(name, found))
    lines.append(Row("chance", (1 / len(TONES), 1 / len(GENDERS))))
    note = (
        f"{len(people.tones)} roles in five skin tones and {len(people.genders)} as man and as woman, a picture each, "
        "style told, all of them names of training pictures. Right: among the names that differ in nothing else, the "
        "judge finds the one that was told. The judge tells tones as well as the row of real pictures says, and no "
        "better."
    )
    return Section(TITLES[0], note, (Column("skin tone right", "share"), Column("gender right", "share")), tuple(lines))


def chosen(bench: Bench, pictures: Tensor, rows: Sequence[Sequence[Case]], shift: int = 0) -> Estimate:
    """The share of pictures, which stand as the cases in rows do, whose own name is the likeliest of their row.

    shift: judge for the name that stands so many behind it instead.
    """
    many = len(rows[0])
    names = bench.judge.texts([case.name for row in rows for case in row]).unflatten(0, (-1, many))  # R K S
    seen = bench.judge.seen(bench.judge.features(pictures)).unflatten(0, (-1, many))  # R K S
    best = torch.einsum("rgs,rks->rgk", seen, names).argmax(2)
    wanted = (torch.arange(many) + shift) % many
    return bootstrap((best == wanted).float().mean(1))


def untold(bench: Bench) -> Section:
    """Which tone and gender the judge finds where the words name none."""
    cases = bench.people.untold
    if not cases:
        return Section(TITLES[1], MISSING)
    sets = {
        "model": bench.painted["anybody"],
        "real pictures of these names": bench.real([case.row for case in cases]),
    }
    lines = [Row(name, (*shares(bench, pictures, cases),)) for name, pictures in sets.items()]
    note = (
        f"{len(cases)} roles that are names by themselves, such as '{cases[0].name}', no style told. For each picture "
        "the likeliest of six names (the role alone, and in five tones), and of three (the role alone, as man, as "
        "woman). Emoji without a tone are yellow; a model that was taught by them paints what they show."
    )
    columns = ("no tone", *TONES, "neither", *GENDERS)
    return Section(TITLES[1], note, tuple(Column(name, "share") for name in columns), tuple(lines))


def shares(bench: Bench, pictures: Tensor, cases: Sequence[Case]) -> list[Cell]:
    """How many pictures, those of a case standing together, are of each tone and then of each gender."""
    seen = bench.judge.seen(bench.judge.features(pictures)).unflatten(0, (len(cases), -1))  # P G S
    found: list[Cell] = []
    for names in (
        [[case.name, *(toned(case.name, tone) for tone in TONES)] for case in cases],
        [[case.name, *(f"{gender} {case.name}" for gender in GENDERS)] for case in cases],
    ):
        texts = bench.judge.texts([name for row in names for name in row]).unflatten(0, (len(cases), -1))
        best = torch.einsum("pgs,pks->pgk", seen, texts).argmax(2).flatten()
        found += (torch.bincount(best, minlength=len(names[0])) / len(best)).tolist()
    return found

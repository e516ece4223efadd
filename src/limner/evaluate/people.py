"""Pictures of people: whether a skin tone or a gender that is told is painted, and what is where neither is.

The names of emoji carry both ("woman health worker: medium-dark skin tone"), so the data itself labels them. Tones are
told by counting colours, genders by the judge, with names for words; the rows of real pictures say how well each can.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limner.evaluate.metrics import Estimate, bootstrap, floats
from limner.evaluate.samples import Case
from limner.evaluate.table import Cell, Column, Row, Section
from limner.evaluate.tones import TONES, Palette, some_of, tone_of, toned
from limner.rng import seed_of
from limner.train.data import Words

if TYPE_CHECKING:
    from limner.evaluate.bench import Bench

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


def palettes(bench: Bench, names: Sequence[str]) -> dict[str, Palette]:
    """For each style the colours of these tones, "" being none, in training pictures of other roles than are measured.

    And "" for all styles together; nothing where the data has no such pictures.
    """
    people, words = bench.people, bench.pictures.words
    measured = {tone_of(case.name)[0] for case in (*people.told, *people.untold)}
    roles = {role for w in words for role, tone in [tone_of(w.name)] if tone} - measured
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: {name: [] for name in names})
    for row in bench.rows("train"):
        role, tone = tone_of(words[row].name)
        if role in roles and tone in names:
            found[words[row].style][tone].append(row)
    shown = {style: rows for style, rows in found.items() if all(rows.values())}
    made = {
        style: Palette.of({name: floats(bench.real(some_of(few))) for name, few in rows.items()})
        for style, rows in shown.items()
    }
    if not shown:
        return {}
    together = {name: [row for rows in shown.values() for row in some_of(rows[name])] for name in names}
    return made | {"": Palette.of({name: floats(bench.real(few)) for name, few in together.items()})}


def told(bench: Bench) -> Section:
    """Of the names that differ in the tone or the gender alone, is the likeliest the one that was told?"""
    people = bench.people
    inks = palettes(bench, TONES) if people.tones and people.genders else {}
    if not inks:
        return Section(TITLES[0], MISSING)
    real = bench.real([case.row for case in people.told])
    painted, many = bench.painted["people"], len(TONES) * len(people.tones)
    sets = {
        "real pictures": real,
        "autoencoder": bench.rebuilt(real),
        "model": painted,
        "model, judged for the next": painted,
    }
    lines = []
    for name, pictures in sets.items():
        shift = int(name.endswith("next"))
        tone, gender = pictures[:many], pictures[many:]
        found = inked(inks, tone, people.tones, shift), chosen(bench, gender, people.genders, shift)
        lines.append(Row(name, found))
    lines.append(Row("chance", (1 / len(TONES), 1 / len(GENDERS))))
    note = (
        f"{len(people.tones)} roles in five skin tones and {len(people.genders)} as man and as woman, a picture each, "
        "style told, all of them names of training pictures. Right: among the names that differ in nothing else, the "
        "likeliest is the one that was told. Tones are told by colours alone: how often each occurs under each tone in "
        "the style's training pictures of other roles. Genders are told by the judge. The row of real pictures says "
        "how well both can tell."
    )
    return Section(TITLES[0], note, (Column("skin tone right", "share"), Column("gender right", "share")), tuple(lines))


def inked(inks: Mapping[str, Palette], pictures: Tensor, rows: Sequence[Sequence[Case]], shift: int = 0) -> Estimate:
    """The share of pictures, which stand as the cases in rows do, whose colours are those of their own tone.

    shift: judge for the tone that stands so many behind it instead.
    """
    wanted = (torch.arange(len(TONES)) + shift) % len(TONES)
    groups = pictures.split(len(TONES))
    hits = [
        (inks.get(row[0].style, inks[""])(floats(group)) == wanted).float()
        for row, group in zip(rows, groups, strict=True)
    ]
    return bootstrap(torch.stack(hits).mean(1))


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
    """Which tone the colours show and which gender the judge finds where the words name none."""
    cases = bench.people.untold
    inks = palettes(bench, ("", *TONES)) if cases else {}
    if not inks:
        return Section(TITLES[1], MISSING)
    sets = {
        "model": bench.painted["anybody"],
        "real pictures of these names": bench.real([case.row for case in cases]),
    }
    lines = [Row(name, (*shares(bench, inks[""], pictures, cases),)) for name, pictures in sets.items()]
    note = (
        f"{len(cases)} roles that are names by themselves, such as '{cases[0].name}', no style told. For each picture "
        "the likeliest of six tones by its colours (none, and the five), and the judge's likeliest of three names (the "
        "role alone, as man, as woman). Emoji without a tone are yellow; a model that was taught by them paints what "
        "they show."
    )
    columns = ("no tone", *TONES, "neither", *GENDERS)
    return Section(TITLES[1], note, tuple(Column(name, "share") for name in columns), tuple(lines))


def shares(bench: Bench, ink: Palette, pictures: Tensor, cases: Sequence[Case]) -> list[Cell]:
    """How many pictures, those of a case standing together, are of each tone and then of each gender."""
    names = [[case.name, *(f"{gender} {case.name}" for gender in GENDERS)] for case in cases]
    seen = bench.judge.seen(bench.judge.features(pictures)).unflatten(0, (len(cases), -1))  # P G S
    texts = bench.judge.texts([name for row in names for name in row]).unflatten(0, (len(cases), -1))  # P K S
    genders = torch.einsum("pgs,pks->pgk", seen, texts).argmax(2).flatten()
    found: list[Cell] = []
    for best, kinds in ((ink(floats(pictures)), 1 + len(TONES)), (genders, 1 + len(GENDERS))):
        found += (torch.bincount(best, minlength=kinds) / len(best)).tolist()
    return found

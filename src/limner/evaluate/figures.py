"""The figures themselves: one function each, from the bench to a section of the table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from random import Random
from typing import Literal

import torch
from torch import Tensor

from limner.evaluate import metrics, people
from limner.evaluate.bench import PART, Bench
from limner.evaluate.metrics import Estimate, bootstrap, floats, ratio_of
from limner.evaluate.samples import COLOURED, Case, by_style, texts
from limner.evaluate.table import Cell, Column, Row, Section
from limner.rng import seed_of
from limner.train.splits import Split

ALIKE = 0.12  # root mean square difference at 32 pixels: half of all pairs that differ in skin tone alone lie within it
FEW = 3_000  # names, beside all of them, that `describe` is measured on
COPY = 1 / 3  # d1 / d2 below this is a copy
MISSING = "The data has too few pictures for this figure."


def known(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def mean(values: Tensor) -> Estimate:
    """The mean with its interval; NaN where there is nothing."""
    return bootstrap(values) if len(values) else Estimate(float("nan"))


def ratio(value: float, to: float) -> float | None:
    return value / to if to > 0 else None


# ---- how well latents hold a picture


def autoencoder(bench: Bench) -> Section:
    title = "Autoencoder on held-out pictures"
    rows = [row for row, w in enumerate(bench.pictures.words) if w.split == "val"]
    note = (
        "Pictures of the `val` shard, to latents and back. PSNR on white, in bytes; alpha error: mean absolute, 0 to 1."
    )
    if not rows:
        return Section(title, f"{note} {MISSING}")
    want = bench.real(rows)
    got = bench.rebuilt(want)
    parts = list(zip(got.split(PART), want.split(PART), strict=True))
    psnr = torch.cat([metrics.psnr_on_white(floats(a), floats(b)) for a, b in parts])
    alpha = torch.cat([(floats(a)[:, 3] - floats(b)[:, 3]).abs().mean((1, 2)) for a, b in parts])
    styles = [bench.pictures.words[row].style for row in rows]
    lines = [Row("all", (len(rows), bootstrap(psnr), bootstrap(alpha)))]
    for style in sorted(set(styles) - {""}):
        chosen = torch.tensor([each == style for each in styles])
        lines.append(Row(style, (int(chosen.sum()), bootstrap(psnr[chosen]), bootstrap(alpha[chosen]))))
    columns = (Column("pictures", "count"), Column("PSNR, dB"), Column("alpha error", "fine"))
    return Section(title, note, columns, tuple(lines))


# ---- whether the words are in the picture

RETRIEVAL: dict[Literal["train", "pair", "concept"], tuple[str, str]] = {
    "train": ("names of training pictures", "The judge knows these real pictures, so the ceiling is high."),
    "pair": (
        "held-out (style, concept) pairs",
        "The concept was trained in other styles, the style with other concepts, never both together. The judge knows "
        "the concept's other pictures, so one of those can please it more than the real picture of the pair.",
    ),
    "concept": (
        "held-out concepts",
        "Neither the model nor the judge was trained on the concept in any style, though names near to it may have "
        "been (a woman for a man, a dog's face for a dog).",
    ),
}


def retrieval(bench: Bench, kind: Literal["train", "pair", "concept"]) -> Section:
    """Rows of R@1 and R@5: is a picture's own prompt the judge's best match, or among its best five?"""
    words, about = RETRIEVAL[kind]
    title, cases, plan = f"Words to picture: {words}", bench.cases[kind], bench.plan
    if len(cases) < 2:
        return Section(title, MISSING)
    groups = by_style(bench.cells())
    choices = [texts(case, groups, plan.texts, plan.seed) for case in cases]
    few = min(len(row) for row in choices)
    own = bench.judge.texts([text for row in choices for text in row[:few]]).unflatten(0, (len(cases), few))  # P K S
    styles = bench.model.family.styles
    wanted = torch.tensor([styles.index(case.style) if case.style in styles else -1 for case in cases])
    painted, real = bench.painted[kind], bench.real([case.row for case in cases])
    empty = bench.painted["empty"]
    sets = {
        "real pictures": real,
        "autoencoder": bench.rebuilt(real),
        "model": painted,
        "model, asked for another of the style": painted.unflatten(0, (-1, plan.seeds))[others(cases)].flatten(0, 1),
        "nearest neighbour by text": bench.found(bench.asked[kind][:: plan.seeds]),
        "unconditional": empty[torch.arange(len(cases)) % len(empty)],
    }
    hits = {name: right(bench, pictures, own, wanted) for name, pictures in sets.items()}
    chance = (1 / few, min(5, few) / few, min(5, few) / few / len(styles))
    ceiling = [float(value.mean()) for value in hits["real pictures"]]
    lines = [retrieval_row(name, found, hits["real pictures"], chance) for name, found in hits.items()]
    lines.append(Row("chance", (chance[0], chance[1], ratio(chance[0], ceiling[0]), 0.0, 0.0, chance[2])))
    note = (
        f"{about} {len(cases)} prompts, styles in turn, {plan.seeds} seeds each, the style told by its name. R@k: "
        f"among {few} texts (the prompt and {few - 1} names of other concepts, as many of each style) the judge finds "
        "the prompt's within the best k for the picture. Skill: (row - chance) / (real - chance). Both right: concept "
        "in the best five and the judge names the style. In brackets: 95 % intervals, by bootstrap over prompts "
        "(Wilson's where all are alike); ratios are drawn with the real pictures of the same prompts."
    )
    columns = ("R@1", "R@5", "R@1 of the real", "skill R@1", "skill R@5", "both right")
    kinds = ("share", "share", "share", "number", "number", "share")
    return Section(title, note, tuple(map(Column, columns, kinds)), tuple(lines))  # type: ignore[arg-type]


def others(cases: Sequence[Case]) -> list[int]:
    """For each case the next one of its style (by turns), or the next of all where the style has no other."""
    found = []
    for i, case in enumerate(cases):
        following = [*range(i + 1, len(cases)), *range(i)]
        found.append(next((j for j in following if cases[j].style == case.style), following[0]))
    return found


def right(bench: Bench, pictures: Tensor, own: Tensor, styles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each prompt, over its pictures: the share first, among the first five, and that with the right style too.

    A style of -1 is always right.
    """
    features = bench.judge.features(pictures)
    seen = bench.judge.seen(features).unflatten(0, (len(own), -1))  # P G S
    places = metrics.ranks(torch.einsum("pgs,pks->pgk", seen, own).flatten(0, 1)).view(seen.shape[:2])  # P G
    style = (bench.judge.styles(features).view(places.shape) == styles[:, None]) | (styles < 0)[:, None]
    five = places <= 5
    return (places <= 1).float().mean(1), five.float().mean(1), (five & style).float().mean(1)


def retrieval_row(
    name: str,
    found: tuple[Tensor, Tensor, Tensor],
    real: tuple[Tensor, Tensor, Tensor],
    chance: Sequence[float],
) -> Row:
    one, five, both = (bootstrap(values) for values in found)
    skills = [metrics.skill(mine, theirs, by) for mine, theirs, by in zip(found[:2], real[:2], chance, strict=False)]
    return Row(name, (one, five, ratio_of(found[0], real[0]), *skills, both))


def naming(bench: Bench) -> Section:
    """Picture to words, by the eye that `describe` asks: is the concept among its first guesses?"""
    title = "Picture to words: what describe says of real pictures"
    words, names = bench.pictures.words, bench.model.names
    if not names or "eye" not in bench.model.nets:
        return Section(title, "This model carries no names or no eye.")
    concepts: dict[str, set[str]] = {}
    for w in words:
        concepts.setdefault(bare(w.name), set()).add(w.concept)
    vectors = bench.model.name_vectors
    lines = []
    for kind, label in NAMED.items():
        rows = [row for row in bench.rows(kind) if words[row].name]
        rows = rows[:: max(1, -(-len(rows) // bench.plan.copies))]
        if not rows:
            continue
        parts = torch.tensor(rows).split(PART)
        scores = torch.cat([bench.model.likeness(floats(bench.real(part.tolist())), vectors) for part in parts])
        told = [words[row].concept for row in rows]
        every = hits(scores, told, names, concepts)
        few = some_names(names, concepts, set(told), bench.plan.seed)
        five = hits(scores[:, few], told, [names[i] for i in few], concepts).amax(1)
        cells = (bootstrap(every[:, 0]), bootstrap(every.amax(1)), bootstrap(five))
        lines.append(Row(label, (len(rows), *cells)))
    note = (
        f"Among all {len(names):,} names of the data, tones of skin left out, for {len({w.concept for w in words}):,} "
        f"concepts. Right: the guess is a name of the picture's concept. The last column is among {FEW:,} names: those "
        "of the row's own concepts, and others drawn."
    )
    columns = (
        Column("pictures", "count"),
        Column("first guess", "share"),
        Column("first five", "share"),
        Column(f"first five of {FEW:,}", "share"),
    )
    return Section(title, note, columns, tuple(lines))


def hits(scores: Tensor, told: Sequence[str], names: Sequence[str], concepts: Mapping[str, Collection[str]]) -> Tensor:
    """For each picture, scores N names, whether each of the five likeliest names is one of its concept: N 5."""
    best = scores.topk(min(5, len(names))).indices.tolist()
    right = [[own in concepts.get(names[i], ()) for i in row] for own, row in zip(told, best, strict=True)]
    return torch.tensor(right).float()


def some_names(
    names: Sequence[str], concepts: Mapping[str, Collection[str]], wanted: Collection[str], seed: int
) -> list[int]:
    """FEW of the names: those of the wanted concepts, and others drawn by a seed."""
    own = [i for i, name in enumerate(names) if any(each in wanted for each in concepts.get(name, ()))]
    rest = sorted(set(range(len(names))) - set(own))
    drawn = Random(seed_of(seed, "names")).sample(rest, min(len(rest), max(0, FEW - len(own))))
    return sorted([*own, *drawn])


def bare(name: str) -> str:
    """A name without its tone of skin and the like, as `describe` knows it."""
    return name.split(":")[0]


NAMED: dict[Split, str] = {
    "train": "training pictures",
    "val": "the val shard: the concept trained in other styles, or not at all",
    "pair": "held-out (style, concept) pairs",
    "concept": "held-out concepts",
}


def colours(bench: Bench) -> Section:
    """Colour words: judged by counting pixels, no network."""
    plan, title = bench.plan, "Colours: prompts of a colour and a thing"
    pairs = [tuple(pair.split(" ", 1)) for pair in COLOURED]
    known = {w.name.lower() for w in bench.pictures.words}
    named = [pair for pair in COLOURED if pair in known]
    things = [other_things(bench, thing) for _, thing in pairs]
    few = min(len(row) for row in things)
    own = bench.judge.texts([text for row in things for text in row[:few]]).unflatten(0, (len(pairs), few))
    empty = bench.painted["empty"]
    wanted = [colour for colour, _ in pairs]
    moved = [next(c for c in [*wanted[i + 1 :], *wanted] if c != wanted[i]) for i in range(len(wanted))]
    painted = bench.painted["colour"]
    sets = {
        "model": (painted, wanted),
        "model, judged for the next prompt's colour": (painted, moved),
        "nearest neighbour by text": (bench.found(bench.asked["colour"][:: plan.coloured]), wanted),
        "unconditional": (empty[torch.arange(len(pairs)) % len(empty)], wanted),
    }
    lines = []
    for name, (pictures, asked) in sets.items():
        five = right(bench, pictures, own, -torch.ones(len(pairs)))[1]
        each = floats(pictures).unflatten(0, (len(pairs), -1))
        hit = torch.tensor(
            [[metrics.in_colour(p, c) for p in row] for row, c in zip(each, asked, strict=True)]
        ).float()  # P G
        lines.append(Row(name, (bootstrap(hit.mean(1)), bootstrap(five))))
    note = (
        f"{len(pairs)} prompts such as 'a {COLOURED[0]}', no style told, {plan.coloured} seeds each. Colour right: of "
        "the named hues of the solid pixels the asked one covers most, and at least a quarter; black, white and gray "
        "stand aside. Thing right: among the judge's best five of "
        f"{few} names for the thing alone. {len(named)} of the pairs are the name of a picture in the data"
        + (f" ({', '.join(named)})" if named else "")
        + "; training does turn the hue of pictures at random, so a pair may have been seen in that way. No real "
        "picture of these prompts exists: there is no ceiling."
    )
    return Section(title, note, (Column("colour right", "share"), Column("thing right", "share")), tuple(lines))


def other_things(bench: Bench, thing: str) -> list[str]:
    """A thing's name, then names of other things that do not hold its word."""
    groups = by_style(bench.cells())
    return texts(Case(-1, thing, "", ""), groups, bench.plan.texts, bench.plan.seed, word=thing)


# ---- whether the set as a whole looks like the real one


def distances(bench: Bench) -> Section:
    """The kernel distance of sets to real pictures, in two feature spaces."""
    title, plan = "Kernel distance to real pictures (KID x 1000)", bench.plan
    half, other = ([case.row for case in cases] for cases in (bench.fair_cases, bench.halves[1]))
    if min(len(half), len(other)) < 4:
        return Section(title, MISSING)
    random = metrics.RandomFeatures().eval()

    def both(pictures: Tensor) -> tuple[Tensor, Tensor]:
        plain = torch.cat([random(floats(part)) for part in pictures.split(PART)])
        return bench.judge.features(pictures), plain

    real, reference = bench.real(half), both(bench.real(other))
    sets = {
        "real pictures, the other half": real,
        "autoencoder": bench.rebuilt(real),
        "model": bench.fair,
        "unconditional": bench.painted["empty"],
        "nearest neighbour by text": bench.found(
            [bench.recipe.but(prompt=p, style=s) for p, s in bench.told(bench.fair_cases)]
        ),
    }
    lines = []
    for name, pictures in sets.items():
        judged, plain = both(pictures)
        plain, against = (metrics.standardised(f, reference[1]) for f in (plain, reference[1]))
        found = [
            metrics.kid(mine, theirs, plan.resamples, plan.seed)
            for mine, theirs in ((judged, reference[0]), (plain, against))
        ]
        lines.append(Row(name, tuple(each.times(1000) for each in found)))
    note = (
        "Unbiased MMD with the cubic kernel over whole sets. In brackets: 95 % intervals, 1.96 standard errors to each "
        f"side, from {plan.resamples} halves of each set; rather too wide where sets are alike. 0 is alike, and a "
        "little below 0 is chance. Every row against the same half of the real pictures. Prompts are the names (and "
        "styles) of the first half, all styles as often, so the unconditional row also pays for the model's own mix of "
        "styles, and the nearest neighbour's pictures are real ones, often the prompt's own. Features: the judge's, "
        "and those of an untrained network, which nothing can have been fitted to."
    )
    return Section(title, note, (Column("judge"), Column("untrained")), tuple(lines))


def alpha(bench: Bench) -> Section:
    """Edges: how many pixels are neither clear nor solid, and whether their colour is that of the thing."""
    title = "Alpha: the cut-out's edge"
    if not bench.fair_cases:
        return Section(title, MISSING)
    real = bench.real([case.row for case in bench.fair_cases])
    sets = {
        "real pictures": real,
        "autoencoder": bench.rebuilt(real),
        "model": bench.fair,
        "unconditional": bench.painted["empty"],
    }
    found = {name: (each(metrics.soft_share, p), each(metrics.fringe, p)) for name, p in sets.items()}
    soft, fringe = (known(values) for values in found["real pictures"])
    lines = []
    for name, values in found.items():
        one, two = map(known, values)
        lines.append(Row(name, (mean(one), ratio_of(one, soft), mean(two), ratio_of(two, fringe))))
    note = (
        "Soft: the share of pixels with 0.05 < alpha < 0.95. Fringe: over soft pixels, by their alpha, the mean "
        "difference of their straight colour from that of the solid pixels around (5 x 5); a halo raises it."
    )
    columns = Column("soft pixels", "share"), Column("of the real"), Column("fringe", "fine"), Column("of the real")
    return Section(title, note, columns, tuple(lines))


def each(measure: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    return torch.cat([measure(floats(part)) for part in pictures.split(PART)])


def means(bench: Bench) -> Section:
    """The mean colour of sets: a grey wash or a tint shows here."""
    title = "Mean of premultiplied RGBA: shift from the real pictures"
    if not bench.fair_cases:
        return Section(title, MISSING)
    real = bench.real([case.row for case in bench.fair_cases])
    rows = bench.rows("train")
    sets = {
        "autoencoder": (bench.rebuilt(real), real),
        "model": (bench.fair, real),
        "unconditional, from all training pictures": (
            bench.painted["empty"],
            bench.real(rows[:: max(1, len(rows) // 2048)]),
        ),
    }
    lines = []
    for name, (got, want) in sets.items():
        shift = [float(a - b) for a, b in zip(tint(got), tint(want), strict=True)]
        lines.append(Row(name, (*shift, max(map(abs, shift)))))
    columns = tuple(Column(name, "fine") for name in ("red", "green", "blue", "alpha", "largest"))
    note = "Means over pixels and pictures, 0 to 1; the model's against the pictures whose names it was told."
    return Section(title, note, columns, tuple(lines))


def tint(pictures: Tensor) -> list[float]:
    return (
        torch.stack([floats(part).mean((2, 3)).sum(0) for part in pictures.split(PART)]).sum(0) / len(pictures)
    ).tolist()


# ---- whether it is new, and whether it varies


def copies(bench: Bench) -> Section:
    """How often a picture is a training picture, or nearly."""
    pixels, features, concepts = bench.bank
    limit = bench.plan.copies
    held = [case.row for case in bench.cells("pair", "concept", "val")]
    held = held[:: max(1, len(held) // limit)][:limit]
    sets = {
        "real pictures, held out": bench.real(held) if held else None,
        "model, training prompts": bench.fair[:limit],
        "model, held-out pairs and concepts": torch.cat([bench.first("pair"), bench.first("concept")])[:limit],
        "model, colours": bench.painted["colour"][:limit],
        "unconditional": bench.painted["empty"][:limit],
        "nearest neighbour by text": bench.found(bench.asked["train"][:: bench.plan.seeds])[:limit],
    }
    lines = []
    for name, pictures in sets.items():
        if pictures is not None and len(pictures):
            near = metrics.nearest(each(metrics.small, pictures), pixels, concepts, pixels, ALIKE)
            judged = metrics.nearest(bench.judge.features(pictures), features, concepts, pixels, ALIKE)
            flags = [(found.ratio < COPY).float() for found in (near, judged)]
            cells: list[Cell] = [bootstrap(flag) for flag in (*flags, flags[0] * flags[1])]
            lines.append(Row(name, (len(pictures), *cells, float(near.ratio.median()))))
    note = (
        f"Against all {len(pixels):,} training pictures. A copy: d1/d2 < 1/3, with d1 the distance to the nearest "
        "training picture and d2 that to the nearest one of another concept that is no near-duplicate of the first "
        f"(root mean square difference under {ALIKE} at 32 pixels). Pixels: premultiplied RGBA at 32 x 32. Judge: its "
        "features. The first row is the base rate: real pictures that no training saw, of which some are redrawn from "
        "one style to the next. The last row is copies by construction."
    )
    names = ("pixels", "judge", "both")
    columns = (Column("pictures", "count"), *(Column(n, "share") for n in names), Column("median d1/d2, pixels"))
    return Section("Copies of training pictures", note, columns, tuple(lines))


def diversity(bench: Bench) -> Section:
    """How much pictures of one prompt differ, beside how much real pictures of one concept do."""
    title, (_, seeds) = "Diversity: mean distance between pictures", bench.plan.diverse
    if len(bench.diverse) < 2:
        return Section(title, MISSING)
    look = bench.judge.features
    painted = look(bench.painted["diverse"]).unflatten(0, (-1, seeds))  # P G F
    real = [look(bench.real([case.row for case in group])) for group in bench.diverse]
    within = torch.tensor(
        [[metrics.spread(ours), metrics.spread(theirs)] for ours, theirs in zip(painted, real, strict=True)]
    )
    across = metrics.spread(painted[:, 0]), metrics.spread(torch.stack([group[0] for group in real]))
    lines = (
        Row("one prompt", (bootstrap(within[:, 0]), bootstrap(within[:, 1]), ratio_of(within[:, 0], within[:, 1]))),
        Row("different prompts", (*across, ratio(*across))),
    )
    note = (
        f"1 - cosine of the judge's features. Model: {len(painted)} prompts without a style, {seeds} seeds each. Real: "
        "pictures of the same concepts, one of each style that training has."
    )
    columns = (Column("model"), Column("real"), Column("of the real"))
    return Section(title, note, columns, lines)


FIGURES: dict[str, Callable[[Bench], Section]] = {
    "autoencoder": autoencoder,
    "words to picture, training prompts": partial(retrieval, kind="train"),
    "words to picture, held-out pairs": partial(retrieval, kind="pair"),
    "words to picture, held-out concepts": partial(retrieval, kind="concept"),
    "picture to words": naming,
    "colours": colours,
    "people, told": people.told,
    "people, not told": people.untold,
    "kernel distances": distances,
    "copies": copies,
    "diversity": diversity,
    "alpha": alpha,
    "mean colour": means,
}

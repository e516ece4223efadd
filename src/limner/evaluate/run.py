"""From a model and pictures with words to the table and the two sheets, told as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor

from limner import __version__
from limner.evaluate.bench import Bench
from limner.evaluate.figures import ALIKE, FIGURES, each
from limner.evaluate.metrics import Nearest, floats, nearest, small
from limner.evaluate.samples import SHEET, Plan, paint_many
from limner.evaluate.sheet import Strip, Tile, draw_sheet
from limner.evaluate.table import Report, Section
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.train.data import Pictures


@dataclass(frozen=True)
class Painted:
    """So many pictures are painted."""

    done: int
    total: int


@dataclass(frozen=True)
class Measured:
    """One figure is ready."""

    name: str
    done: int
    total: int
    section: Section


@dataclass(frozen=True)
class Done:
    report: Report
    sheet: Image.Image
    neighbours: Image.Image


def evaluate(model: Model, pictures: Pictures, plan: Plan, name: str = "mini") -> Iterator[Painted | Measured | Done]:
    """Paint what the plan asks for, measure it, draw it; every draw hangs on the plan's seed."""
    bench = Bench(model, pictures, plan, recipe_of(model, name))
    _ = bench.judge.eye  # refuse at once
    total, done = sum(map(len, bench.asked.values())), 0
    for kind, recipes in bench.asked.items():
        parts = []
        for part in paint_many(model, recipes, plan.batch):
            parts.append(part)
            done += len(part)
            yield Painted(done, total)
        bench.painted[kind] = (
            torch.cat(parts) if parts else torch.zeros(0, *pictures.pixels.shape[1:], dtype=torch.uint8)
        )
    sections = []
    for number, (figure, measure) in enumerate(FIGURES.items(), 1):
        sections.append(measure(bench))
        yield Measured(figure, number, len(FIGURES), sections[-1])
    yield Done(Report(facts(bench, name), tuple(sections)), sheet(bench), neighbours(bench))


def recipe_of(model: Model, name: str) -> Recipe:
    """What all pictures share: the family's own defaults."""
    d = model.family.defaults
    width, height = d.size
    return Recipe(model=name, width=width, height=height, steps=d.steps, sampler=d.sampler, schedule=d.schedule,
                  cfg_scale=d.cfg_scale, cfg_interval=d.cfg_interval, pag_scale=d.pag_scale,
                  pag_interval=d.pag_interval)  # fmt: skip


def facts(bench: Bench, name: str) -> dict[str, str]:
    r, kinds, place = bench.recipe, bench.kinds, bench.model.place
    counts = ", ".join(f"{kinds.count(kind):,} {kind}" for kind in ("train", "pair", "concept", "val"))
    weights = ", ".join(f"{file} {digest[:12]}" for file, digest in sorted(bench.model.digests.items()))
    return {
        "model": f"{name} ({bench.model.family.name}; SHA-256 {weights})" if weights else name,
        "data": f"{len(bench.pictures):,} pictures ({counts}; SHA-256 {bench.pictures.digest[:12]})",
        "painting": f"{r.width}x{r.height}, {r.steps} steps of {r.sampler} ({r.schedule}), guidance {r.cfg_scale} for "
        f"{r.cfg_interval[0]} <= t <= {r.cfg_interval[1]}, perturbed-attention guidance {r.pag_scale} for "
        f"{r.pag_interval[0]} <= t <= {r.pag_interval[1]}, no reranking",
        "plan": ", ".join(f"{key} {value}" for key, value in asdict(bench.plan).items()),
        "numbers": f"{place.device.type}, products in {place.dtype}, the denoiser by {place.engine}",
        "limner": f"{__version__}, torch {torch.__version__}",
    }


def sheet(bench: Bench) -> Image.Image:
    """Fixed prompts and seeds, nothing chosen."""
    count = bench.plan.sheet
    rows = floats(bench.painted["sheet"]).split(count)
    strips = [Strip(prompt, [Tile(p) for p in row]) for prompt, row in zip(SHEET, rows, strict=True)]
    title = f"Nothing chosen: seeds 0 to {count - 1}, no style told"
    return draw_sheet(title, [f"seed {k}" for k in range(count)], strips)


def neighbours(bench: Bench, suspects: int = 4) -> Image.Image:
    """A picture and the three training pictures nearest to it: of each sheet prompt, then the likeliest copies."""
    pixels, _, concepts = bench.bank
    shown = {kind: bench.asked[kind][::step] for kind, step in steps(bench).items()}
    asked = [recipe for recipes in shown.values() for recipe in recipes]
    painted = torch.cat([bench.painted[kind][::step] for kind, step in steps(bench).items()])
    found = nearest(each(small, painted), pixels, concepts, pixels, ALIKE)
    first, worst = len(shown["sheet"]), dict[str, int]()
    for i in (found.ratio[first:].argsort() + first).tolist():
        worst.setdefault(asked[i].prompt, i)
    suspected = list(worst.values())[:suspects]
    strips = [strip(bench, asked[i], painted[i], found, i) for i in (*range(first), *suspected)]
    title = f"Painted, and the three nearest training pictures; the last {len(suspected)} are the nearest to copies"
    return draw_sheet(title, ["painted", "nearest", "second", "third"], strips)


def steps(bench: Bench) -> dict[str, int]:
    """How many pictures each prompt of these sets has."""
    return {"sheet": bench.plan.sheet} | dict.fromkeys(bench.cases, bench.plan.seeds)


def strip(bench: Bench, recipe: Recipe, painted: Tensor, found: Nearest, i: int) -> Strip:
    """One picture and its neighbours, named."""
    tiles = [Tile(floats(painted), ("painted", f"d1/d2 {found.ratio[i]:.2f}"))]
    rows = bench.rows("train")
    for row, away in zip(found.rows[i].tolist(), found.distances[i].tolist(), strict=True):
        w = bench.pictures.words[rows[row]]
        tiles.append(Tile(floats(bench.real([rows[row]]))[0], (w.name, f"{w.style}, {away:.2f}")))
    return Strip(recipe.prompt + (f" ({recipe.style})" if recipe.style else ""), tiles)

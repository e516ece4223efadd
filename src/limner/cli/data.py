"""`limner data`: the pictures that the shipped model was trained on, from their public sources."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from limner.cli.say import as_json, plain, rows

if TYPE_CHECKING:
    from limner.train.pictograms import Plan, Rebuilt, Source

app = App(name="data", help="Rebuild the pictures that the shipped model was trained on.")


@app.command
def pictograms(
    *,
    sources: Annotated[Path, Parameter(help="A folder with clones of the repositories.")],
    out: Annotated[Path | None, Parameter(help="Write shards here, as limner train --data takes them.")] = None,
    against: Annotated[Path | None, Parameter(help="A folder of the first shards, to measure distances by.")] = None,
    json: Annotated[bool, Parameter(help="Print a line of JSON for each picture, and one with the counts.")] = False,
) -> int:
    """Draw the 21,429 pictograms anew from clones, and say which differ.

    Clones are read at the recorded commits and not touched; nothing is fetched. Vectors and fonts need the extra
    `data`. The status is 1 where a picture is missing or differs.
    """
    from limner.train.pictograms import Shards, find_clones, read_plan, rebuild

    plan = read_plan()
    clones = find_clones(sources, plan.sources)
    shards = Shards(plan, out) if out else None
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    told: list[Rebuilt] = []
    for number, done in enumerate(rebuild(plan, clones, against), 1):
        counts[done.item.fields["style"]][done.end] += 1
        told += [done] if done.end in ("differs", "missing") else []
        if json:
            as_json(_told(done))
        if shards:
            shards.add(done)
        if number % 100 == 0:
            _say(f"{number:,} of {len(plan.items):,}")
    _say("")
    written = shards.write() if shards else []
    if json:
        as_json({"counts": counts, "written": [str(path) for path in written]})
    else:
        _show(plan, clones, counts, told, written)
    return 1 if told else 0


def _told(done: Rebuilt) -> dict[str, Any]:
    names = ("key", "source", "commit", "path")
    measured = {} if done.distance is None else {"decibels": round(done.distance, 2)}
    return {**{n: done.item.fields[n] for n in names}, "end": done.end, **measured} | (
        {"reason": done.reason} if done.reason else {}
    )


def _show(
    plan: Plan,
    clones: dict[Source, Path | str],
    counts: dict[str, Counter[str]],
    told: list[Rebuilt],
    written: list[Path],
) -> None:
    from limner.train.pictograms import ENDS

    repositories = {item.fields["style"]: item.source.name for item in plan.items}
    heads = ("style", "source", *ENDS)
    rows([heads, *((s, repositories[s], *(f"{c[end]:,}" for end in ENDS)) for s, c in counts.items())])
    print()
    rows([(end, meaning) for end, meaning in ENDS.items()])
    for reason, number in Counter(done.reason for done in told if done.reason).most_common(8):
        print(f"missing, {number:,}: {plain(reason)}")
    for done in [done for done in told if done.end == "differs"][:8]:
        away = "" if done.distance is None else f", {done.distance:.1f} dB"
        print(f"differs: {plain(done.item.fields['path'])}{away}")
    if len(told) > 8:
        print("all of them: --json")
    for path in written:
        print(path)
    lost = sum(count["missing"] for count in counts.values())
    if written and lost:
        print(f"these shards lack {lost:,} of {len(plan.items):,} pictures")


def _say(sentence: str) -> None:
    """A line that overwrites itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{sentence}", end="", file=sys.stderr, flush=True)

"""The mini model's speed on this machine: help, a cold picture, warm pictures, and batches against single pictures,
by every engine that is installed.

    python benchmarks/mini.py [--runs 5] [--json FILE]

Whole commands are run in fresh processes, warm figures in this one; medians are printed, and nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import limner
from limner.place import engines, find_place
from limner.tasks.run import begin, paint


def median_of(run: Callable[[], object], runs: int) -> float:
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def command(*words: str, folder: str) -> tuple[float, float]:
    """Seconds and peak megabytes of one fresh process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "limner", *words], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"limner {' '.join(words)} failed with status {status}")
    return time.perf_counter() - start, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        helps = [command("--help", folder=folder) for _ in range(asked.runs)]
        rows["limner --help, s"] = statistics.median(seconds for seconds, _ in helps)
        for engine in engines("cpu"):
            words = ("paint", "a red apple", "--seed", "7", "--engine", engine)
            first, _ = command(*words, folder=folder)  # an engine's graphs are kept from then on
            colds = [command(*words, folder=folder) for _ in range(asked.runs)]
            rows[f"{engine}: limner paint from a cold process, the first, s"] = first
            rows[f"{engine}: the others, s"] = statistics.median(seconds for seconds, _ in colds)
            rows[f"{engine}: peak MB"] = statistics.median(peak for _, peak in colds)

    for engine in engines("cpu"):
        model = limner.load("mini", find_place("cpu").driven(engine))
        recipe = begin(model, prompt="a red apple", seed=7)
        best = begin(model, prompt="a red apple", seed=7, best_of=8)
        for each in (recipe, best):
            paint(model, each)
        rows[f"{engine}: warm picture, s"] = median_of(
            lambda model=model, recipe=recipe: paint(model, recipe), asked.runs
        )
        together = paint(model, recipe, 8)
        rows[f"{engine}: warm, a picture of a batch of 8, s"] = (
            median_of(lambda model=model, recipe=recipe: paint(model, recipe, 8), asked.runs) / 8
        )
        rows[f"{engine}: warm, best of 8, s"] = median_of(lambda model=model, best=best: paint(model, best), asked.runs)
        alone = [paint(model, recipe.but(seed=7 + i))[0] for i in range(8)]
        rows[f"{engine}: batch of 8 against alone, largest difference in 1/255"] = max(
            float((a - b).abs().max()) * 255 for a, b in zip(together, alone, strict=True)
        )
    rows["peak MB of this process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, value in rows.items():
        print(f"{name:70} {value:8.2f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

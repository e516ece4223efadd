"""What starting from pictures costs on this machine: edits against painting, campaigns against batches, upscaling.

    python benchmarks/pictures.py [--runs 5] [--rows 40] [--upscale 1024] [--json FILE]

Ratios are of medians, taken turn by turn in this process; an upscale runs in a fresh one. Nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import limner
from limner.files import save_picture
from limner.image import to_pil
from limner.tasks.campaign import plan, rows_of, run
from limner.tasks.run import begin, painting


def in_turn(jobs: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The median seconds of each job, all of them run in each round."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(runs + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if number:  # the first round warms up
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def all_of(model: limner.Model, recipe: limner.Recipe, count: int = 1) -> None:
    for event in painting(model, recipe, count):
        if isinstance(event, list):
            for one in event:
                one.image  # noqa: B018  brought back into its picture


def edits(model: limner.Model, folder: Path, runs: int) -> dict[str, float]:
    """Seconds of painting and of each task that changes a picture of the same size, over all steps."""
    plain = begin(model, prompt="a cat", seed=7)
    save_picture(to_pil(limner.paint(model, plain)[0]), folder / "cat.png", None, b"", b"")
    start = {"image": str(folder / "cat.png"), "prompt": "a dog", "seed": 7, "strength": 1.0}
    recipes = {
        "paint": plain,
        "edit": begin(model, task="edit", **start),
        "inpaint": begin(model, task="inpaint", mask="20,20,70,60", **start),
        "inpaint, only the masked": begin(model, task="inpaint", mask="20,20,70,60", only_masked=True, **start),
    }
    return in_turn({name: lambda recipe=recipe: all_of(model, recipe) for name, recipe in recipes.items()}, runs)  # type: ignore[misc]


def campaigns(model: limner.Model, folder: Path, count: int) -> dict[str, float]:
    """Seconds of one batch call, and of a campaign of as many rows, with files, digests and the manifest."""
    recipe = begin(model, prompt="a red apple", seed=0)
    start = time.perf_counter()
    all_of(model, recipe, count)
    batch = time.perf_counter() - start
    things = ("apple", "house", "cat", "dog", "fish", "flower", "car", "star")
    text = "prompt,seed\n" + "".join(f"a red {things[i % 8]},{i}\n" for i in range(count))
    jobs = plan(rows_of(text), check=lambda wish: begin(model, **wish))

    def paint(recipes: list[limner.Recipe]):  # type: ignore[no-untyped-def]
        done = (one.image for event in painting(model, recipes) if isinstance(event, list) for one in event)
        return enumerate(done)

    start = time.perf_counter()
    for _ in run(jobs, paint, folder / "campaign"):
        pass
    return {"batch": batch, "campaign": time.perf_counter() - start}


def upscale(side: int, folder: Path) -> tuple[float, float]:
    """Seconds and peak MB of a fresh process that makes a picture four times larger, to side x side."""
    import numpy as np
    from PIL import Image

    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    small.resize((side // 4, side // 4), Image.Resampling.BICUBIC).save(folder / "small.png")
    words = ["upscale", "small.png", "leaves", "--scale", "4", "-o", "large.png", "-s", "1", "-q"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "limner", *words], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"limner {' '.join(words)} failed with status {status}")
    return time.perf_counter() - start, used.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=40, help="of the campaign; 0 leaves it out")
    parser.add_argument("--upscale", type=int, default=1024, help="side of the result; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        model, folder = limner.load("mini"), Path(name)
        if asked.runs:
            seconds = edits(model, folder, asked.runs)
            rows["a picture painted, s"] = seconds["paint"]
            rows |= {f"{task} / paint": value / seconds["paint"] for task, value in seconds.items() if task != "paint"}
        if asked.rows:
            both = campaigns(model, folder, asked.rows)
            rows[f"a picture of a batch call of {asked.rows}, s"] = both["batch"] / asked.rows
            rows["throughput of a campaign / of the batch call"] = both["batch"] / both["campaign"]
        if asked.upscale:
            rows[f"upscale to {asked.upscale} x {asked.upscale}, s"], rows["the same, peak MB"] = upscale(
                asked.upscale, folder
            )
    for name, value in rows.items():
        print(f"{name:55} {value:8.2f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

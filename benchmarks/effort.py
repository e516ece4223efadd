"""What steps that are not computed whole save, and what they cost in fidelity, on the model that ships.

    python benchmarks/effort.py [--steps 24] [--rounds 3] [--sheet SHEET.png]

Every setting paints the same prompts and seeds as the exact walk beside it. It prints the time as a ratio (medians,
taken in turn), and the mean and least PSNR of the pictures on white against the exact ones. The last rows take fewer
steps instead, for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import limner
from limner.image import to_pil
from limner.pipeline import Model
from limner.tasks.run import begin, painting

PROMPTS = (
    "a red apple", "a cat", "pixel art sword", "smiling face with a hat", "a house at night", "a blue car", "a tree",
    "a slice of pizza",
)  # fmt: skip
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"guide_every": 2},
    {"guide_every": 4},
    {"deep_every": 2},
    {"deep_every": 3},
    {"deep_every": 4},
    {"deep_every": 3, "guide_every": 3},
    {"effort": "balanced"},
    {"effort": "fast"},
)


def pictures(model: Model, wishes: dict[str, Any]) -> tuple[Tensor, float]:
    """The finished pictures, B 4 H W, and the seconds that they took."""
    recipes = [begin(model, prompt=prompt, seed=seed, **wishes) for seed, prompt in enumerate(PROMPTS)]
    begun = time.perf_counter()
    found = [one.picture for event in painting(model, recipes) if isinstance(event, list) for one in event]
    return torch.stack(found), time.perf_counter() - begun


def psnr(found: Tensor, exact: Tensor) -> Tensor:
    """Decibels of each picture on white: B."""
    on_white = [value[:, :3] + 1 - value[:, 3:] for value in (found, exact)]
    return -10 * (on_white[0] - on_white[1]).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=["dpmpp_2m", "euler_ancestral"])
    parser.add_argument("--sheet", type=Path, help="where to put the pictures of the last sampler, a row a setting")
    told = parser.parse_args()
    model = limner.load("mini")
    fewer = tuple({"steps": round(told.steps * share)} for share in (0.8, 0.6, 0.5))
    for sampler in told.samplers:
        walk = {"sampler": sampler, "steps": told.steps}
        pictures(model, walk)  # warm
        exact = pictures(model, walk)[0]
        rows = []
        print(
            f"\n{sampler}, {told.steps} steps\n| setting | time | mean PSNR | least PSNR |\n| --- | --- | --- | --- |"
        )
        for setting in (*SETTINGS, *fewer):
            ratios = []
            for _ in range(told.rounds):
                _, whole = pictures(model, walk)
                found, seconds = pictures(model, walk | setting)
                ratios.append(seconds / whole)
            rows.append(found)
            near, name = psnr(found, exact), ", ".join(f"{key} {value}" for key, value in setting.items()) or "exact"
            print(f"| {name} | {statistics.median(ratios):.2f} | {near.mean():.1f} | {near.min():.1f} |", flush=True)
    if told.sheet:
        side = rows[0].shape[-1] + 4
        sheet = Image.new("RGB", (side * len(PROMPTS), side * len(rows)), "white")
        for y, row in enumerate(rows):
            for x, picture in enumerate(row):
                image = to_pil(picture)
                sheet.paste(image, (x * side + 2, y * side + 2), image)
        sheet.save(told.sheet)


if __name__ == "__main__":
    main()

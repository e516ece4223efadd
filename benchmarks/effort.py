"""What steps that are not computed whole save, and what they cost in fidelity, on the model that ships or on another.

    python benchmarks/effort.py [--model mini] [--size PIXELS] [--steps 24] [--rounds 3] [--sheet SHEET.png]

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
from torch import Tensor

import limner
from limner.evaluate.metrics import psnr_on_white
from limner.evaluate.sheet import Strip, Tile, draw_sheet
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
    {"deep_every": 4, "guide_every": 4, "ease_in": False},
    {"deep_every": 3, "guide_every": 3},
    {"ask_apart": 0.08},
    {"ask_apart": 0.13},
    {"ask_apart": 0.25},
    {"ask_apart": 0.13, "late": 0.85},
    {"ask_every": 2},
    {"ask_every": 4},
)


def pictures(model: Model, wishes: dict[str, Any]) -> tuple[Tensor, float]:
    """The finished pictures, B 4 H W, and the seconds that they took."""
    recipes = [begin(model, prompt=prompt, seed=seed, **wishes) for seed, prompt in enumerate(PROMPTS)]
    begun = time.perf_counter()
    found = [one.picture for event in painting(model, recipes) if isinstance(event, list) for one in event]
    return torch.stack(found), time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini", help="mini, or any model")
    parser.add_argument("--size", type=int, default=0, help="pixels of a side; 0: what the model likes")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=["dpmpp_2m", "euler_ancestral"])
    parser.add_argument("--sheet", type=Path, help="where to put the pictures of the last sampler, a row a setting")
    told = parser.parse_args()
    measure(limner.load(told.model), told)


def measure(model: Model, told: Any) -> None:
    """A table for each sampler, printed row by row. told: samplers, steps, size, rounds and sheet, as asked for."""
    side = told.size or model.defaults.size[0]
    fewer = tuple({"steps": round(told.steps * share)} for share in (0.8, 0.6, 0.5))
    for sampler in told.samplers:
        walk: dict[str, Any] = {"sampler": sampler, "steps": told.steps, "width": side, "height": side}
        pictures(model, walk)  # warm
        exact = pictures(model, walk)[0].mul(255).round() / 255
        strips = []
        print(
            f"\n{sampler}, {told.steps} steps\n| setting | time | mean PSNR | least PSNR |\n| --- | --- | --- | --- |"
        )
        for setting in (*SETTINGS, *fewer):
            ratios = []
            for _ in range(told.rounds):
                _, whole = pictures(model, walk)
                found, seconds = pictures(model, walk | setting)
                ratios.append(seconds / whole)
            name = ", ".join(f"{key} {value}" for key, value in setting.items()) or "exact"
            near = psnr_on_white(found, exact)
            strips.append(Strip(name, [Tile(picture) for picture in found]))
            print(f"| {name} | {statistics.median(ratios):.2f} | {near.mean():.1f} | {near.min():.1f} |", flush=True)
    if told.sheet:
        draw_sheet(f"{sampler}, {told.steps} steps", PROMPTS, strips).save(told.sheet)


if __name__ == "__main__":
    main()

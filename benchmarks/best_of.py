"""What comparing the seeds of --best-of early saves, and what of the choice is lost by it, on the model that ships.

    python benchmarks/best_of.py [--seeds 8] [--prompts 20] [--rounds 3] [--model mini]

Every prompt walks all its seeds to the end, and after each step the eye looks at what each would come to. For every
share of the steps the table says how much of the gain of a late choice an early one has (0: any seed, 1: the seed that
the eye likes best when all are finished), by the eye and by the judge, another network, which never chose. The time is
measured apart: a picture with --best-after at that share beside one with 1 (medians, taken in turn).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import cast

import torch
from torch import Tensor

import limner
from limner.models.eye import Eye
from limner.pipeline import Model
from limner.tasks.run import begin, paint, run

PROMPTS = (
    "a red apple", "a blue apple", "a cat", "pixel art sword", "smiling face with a hat", "a house at night", "a tree",
    "a rocket", "a guitar", "a fish", "an umbrella", "a yellow flower", "a car", "a dog face", "a heart", "a crown",
    "a mushroom", "a green leaf", "a slice of pizza", "a bell",
)  # fmt: skip
SHARES = (0.1, 0.15, 0.25, 0.33, 0.5, 0.75, 1.0)


def looks(model: Model, prompt: str, first: int, seeds: int) -> Tensor:
    """Likeness to the prompt of what each seed would come to: eye and judge, after each step, each seed (2 S N)."""
    eyes = (model.eye, cast(Eye, model.nets["judge"]))
    found = []
    for seed in range(first, first + seeds):
        walk = [model.to_image(step.x0) for step in run(model, begin(model, prompt=prompt, seed=seed))]
        seen = torch.cat(walk)
        found.append(torch.stack([model.likeness(seen, [prompt], eye)[:, 0] for eye in eyes]))
    return torch.stack(found, -1)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="that each picture tries")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many")
    parser.add_argument("--rounds", type=int, default=3, help="of the times")
    parser.add_argument("--model", default="mini")
    told = parser.parse_args(words)
    model = limner.load(told.model)
    prompts = PROMPTS[: told.prompts]
    found = torch.stack([looks(model, prompt, 100 * i, told.seeds) for i, prompt in enumerate(prompts)])  # P 2 S N
    finished = found[:, :, -1]  # P 2 N
    steps = found.shape[2]
    print(f"{len(prompts)} prompts, {told.seeds} seeds each, {steps} steps")
    print(f"| compared after | time | the late choice | eye's gain | judge's gain |\n{'| --- ' * 5}|")
    late = finished[:, 0].argmax(1)
    most = _mean(finished, late) - finished.mean((0, 2))  # of the eye, of the judge
    for share in SHARES:
        early = found[:, 0, max(1, round(share * steps)) - 1].argmax(1)
        gain = (_mean(finished, early) - finished.mean((0, 2))) / most
        same = (early == late).float().mean()
        ratio = statistics.median(_ratio(model, share, told.seeds) for _ in range(told.rounds))
        print(f"| {share:g} | {ratio:.2f} | {same:.2f} | {gain[0]:.2f} | {gain[1]:.2f} |", flush=True)


def _mean(finished: Tensor, chosen: Tensor) -> Tensor:
    """Mean likeness of the chosen pictures, of eye and judge."""
    return finished.gather(2, chosen.view(-1, 1, 1).expand(-1, 2, 1)).mean((0, 2))


def _ratio(model: Model, share: float, seeds: int) -> float:
    seconds = []
    for after in (share, 1.0):
        recipe = begin(model, prompt=PROMPTS[0], seed=0, best_of=seeds, best_after=after)
        begun = time.perf_counter()
        paint(model, recipe)
        seconds.append(time.perf_counter() - begun)
    return seconds[0] / seconds[1]


if __name__ == "__main__":
    main()

"""A large seamless texture on the mini model: seconds, peak memory, seams; decoding in tiles against decoding whole.

    python benchmarks/texture.py [--side 1024] [--steps 24] [--prompt WORDS ...] [--picture FILE.png] [--json FILE]

The texture is painted in windows as large as the model's own pictures, which go around, and whose origin moves from
step to step; the tiles of the autoencoder go around too. Peak memory is that of this process, of which torch and the
model are some 400 MB. Nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import limner
from limner.diffusion.wrap import rolled, tiled, windows
from limner.image import to_pil
from limner.nn.periodic import periodic
from limner.nn.tiles import in_tiles
from limner.seams import seam_score, two_by_two

WINDOW, OVERLAP = 16, 4  # latents: 128 pixels, what the mini model paints best, and a quarter of it
TILE, SHARED = 64, 24  # latents, of decoding
PROMPTS = ("mosaic", "leaves", "pebbles", "stars")


def texture(model: limner.Model, prompt: str, side: int, steps: int, seed: int) -> Tensor:
    """The latents of a seamless square, 1 C h w."""
    cells, stations, noise = side // 8, limner.times(steps), limner.Noise(seed)
    positive, negative = model.denoiser(model.encode([prompt])), model.denoiser(model.encode([""]))
    whole = limner.guided(positive, negative, scale=5.0, interval=(0.1, 1.0))
    places = windows(cells, cells, WINDOW, OVERLAP, wrap_x=True, wrap_y=True)
    denoiser = rolled(tiled(lambda _: whole, places, (cells, cells)), stations)
    x = noise(1, 8, cells, cells)
    for step in limner.SAMPLERS["euler_ancestral"](denoiser, model.path, x, stations, noise):
        x = step.x
    return x


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompt", nargs="+", default=PROMPTS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--picture", type=Path, help="the last texture, two by two")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    model = limner.load("mini")
    autoencoder: Any = model.nets["autoencoder"]
    rows: dict[str, float] = {}
    for prompt in asked.prompt:
        start = time.perf_counter()
        z = texture(model, prompt, asked.side, asked.steps, asked.seed)
        rows[f"{prompt}: painting, s"] = time.perf_counter() - start
        start = time.perf_counter()
        picture = in_tiles(autoencoder.decode, z, TILE, SHARED, 8, (True, True))
        rows[f"{prompt}: decoding in tiles, s"] = time.perf_counter() - start
        rows[f"{prompt}: peak MB so far"] = peak()
        for axis, score, plain in zip("xy", seam_score(picture[0]), seam_score(picture[0], usual=0), strict=True):
            rows[f"{prompt}: seam score along {axis}"] = score
            rows[f"{prompt}: seam against the median line along {axis}"] = plain
    whole = periodic(autoencoder, True, True).decode(z)
    rows["peak MB with a decoding of the whole"] = peak()
    rows["tiled against whole decoding, largest difference in 1/255"] = float((picture - whole).abs().max()) * 255
    rows["tiled against whole decoding, mean difference in 1/255"] = float((picture - whole).abs().mean()) * 255
    for name, value in rows.items():
        print(f"{name:60} {value:8.2f}")
    if asked.picture:
        to_pil(two_by_two(picture[0])).save(asked.picture)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long a search of a folder takes: the first, which sees every picture, and those that follow.

    python benchmarks/find.py [--pictures 10000] [--side 128] [--model mini] [--json FILE]

Pictures are generated (discs and bars of chance colours, PNG), and whole commands are run in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw


def draw(path: Path, side: int, draws: random.Random) -> None:
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        corners = sorted(draws.randrange(side) for _ in range(2)) + sorted(draws.randrange(side) for _ in range(2))
        colour = (draws.randrange(256), draws.randrange(256), draws.randrange(256), 255)
        box = (corners[0], corners[2], corners[1], corners[3])
        draws.choice((pen.ellipse, pen.rectangle))(box, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)


def search(folder: Path, model: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "limner", "find", str(folder), "red fruit", "-m", model]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder, draws = Path(place), random.Random(0)
        for i in range(asked.pictures):
            draw(folder / f"{i // 1000:03}" / f"{i:06}.png", asked.side, draws)
        time.sleep(2.1)  # files that are younger than their times are exact would be read twice
        rows["first search, s"] = search(folder, asked.model)
        rows["second search, s"] = search(folder, asked.model)
        for i in range(0, asked.pictures, 100):
            draw(folder / f"{i // 1000:03}" / f"{i:06}.png", asked.side, draws)
        rows["after one picture in a hundred changed, s"] = search(folder, asked.model)
        rows["index, MB"] = (folder / ".limner-index.safetensors").stat().st_size / 1e6
    for name, value in rows.items():
        print(f"{name:55} {value:8.2f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

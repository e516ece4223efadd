"""What painting takes in memory and in time, by what is kept: every network, one at a time, or one layer.

    python benchmarks/memory.py [--family sd15|sdxl|sd35-medium] [--size 512] [--keep all one layer]
        [--precision fp32|bf16|int8]

A checkpoint of the full size is written in fp16, with random weights (or with --hole as a header whose data is a hole,
which takes no room on the disk), and deleted at the end; sd35-medium has T5. Each row comes from a fresh process: one
step without guidance, then the picture. `peak` is VmHWM, the most that was resident; `own` the most of it that was no
page of a file, and could not be taken back by a system that is short of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import loading

FAMILIES = {"sd15": ("sd15", loading.SD15), "sdxl": ("sdxl", loading.SDXL), "sd35-medium": ("sd35", loading.SD35)}
KEEPS = ("all", "one", "layer")
OFTEN = 0.01  # seconds between two looks at what is the process's own


class Watch(threading.Thread):
    """Remembers the most that was the process's own, and when."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        while True:
            self.most = max(self.most, loading.memory("RssAnon"))
            time.sleep(OFTEN)


def child(path: Path, keep: str, size: int, precision: str) -> dict[str, Any]:
    """What a fresh process measures while it paints."""
    import torch

    from limner import load
    from limner.errors import BadInput
    from limner.place import find_place
    from limner.types import Cond
    from limner.words import Reading

    watch = Watch()
    watch.start()
    found: dict[str, Any] = {"before": loading.memory("VmHWM")}
    begun = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal begun
        found[name], found[f"peak after {name}"] = time.perf_counter() - begun, loading.memory("VmHWM")
        found[f"own after {name}"], watch.most = watch.most, loading.memory("RssAnon")
        begun = time.perf_counter()

    try:
        model = load(str(path), find_place("cpu", keep=keep).precisely(precision))  # type: ignore[arg-type]
        lap("load")
        cond: Cond = model.encode(["a red apple on a table"], how=Reading(size=(size, size)))
        lap("text")
        x = torch.randn(1, *model.latent_shape(size, size), generator=torch.Generator().manual_seed(0))
        x0 = model.denoiser(cond)(x, 0.5)
        lap("step")
        picture = model.to_image(x0)
        lap("decode")
    except BadInput as refused:
        return {"refused": str(refused)}
    found["own"] = max(value for name, value in found.items() if name.startswith("own after"))
    return found | {"peak": loading.memory("VmHWM"), "finite": bool(torch.isfinite(picture).all())}


def fresh(path: Path, keep: str, size: int, precision: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(path), keep, str(size), precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"refused": f"ended with {done.returncode}" + (f": {said[-1][:100]}" if said else "")}
    return json.loads(done.stdout.splitlines()[-1])


def pieces() -> str:
    """A tokenizer in the form of T5's, so that its network is asked to read."""
    words = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", -9.0], ["▁", -5.0], *[[chr(c), -6.0] for c in range(97, 123)]]
    return json.dumps({"version": "1.0", "model": {"type": "Unigram", "unk_id": 2, "vocab": words}, "added_tokens": []})


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="sd15", choices=FAMILIES)
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--keep", nargs="+", default=KEEPS, choices=KEEPS)
    parser.add_argument("--precision", default="", help="fp32, bf16 or int8; else what the machine is fast in")
    parser.add_argument("--folder", type=Path, help="where the file is written for the while (2, 7 or 16 GB)")
    parser.add_argument("--hole", action="store_true", help="weights are zeros that take no room on the disk")
    parser.add_argument("--tiny", action="store_true", help="a small file of sd15, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.child:
        path, keep, size, precision = asked.child
        print(json.dumps(row := child(Path(path), keep, int(size), precision)))
        return [row]
    rows = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as home:
        family, configs = FAMILIES[asked.family]
        shapes = loading.names_of(family, loading.SMALL if asked.tiny else configs)
        write = loading.write_hole if asked.hole else loading.write_random
        path = write(Path(home) / f"{family}.safetensors", shapes)
        if "text_3" in configs:
            (Path(home) / "tokenizer_3").mkdir()
            (Path(home) / "tokenizer_3" / "tokenizer.json").write_text(pieces(), encoding="utf-8")
        print(f"{asked.family} {asked.size}x{asked.size}, file {path.stat().st_size / 2**20:.0f} MB")
        print(f"{'keep':8}{'peak MB':>9}{'own MB':>9}{'load s':>9}{'text s':>9}{'step s':>9}{'decode s':>9}")
        for keep in asked.keep:
            row = {"keep": keep} | fresh(path, keep, asked.size, asked.precision)
            rows.append(row)
            told = [row.get(name) for name in ("peak", "own", "load", "text", "step", "decode")]
            print(f"{keep:8}" + (row.get("refused") or "".join(f"{value:9.1f}" for value in told)), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()

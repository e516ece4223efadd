"""How fast a published checkpoint of Stable Diffusion 1.5 opens, and how much memory that takes.

    python benchmarks/loading.py [--runs 5] [--folder FOLDER] [--tiny] [--json FILE]

A single file of the full size is written with random weights in fp16 (2.1 GB) and deleted at the end; so is one of
Stable Diffusion XL (7 GB) whose header is real and whose data is a hole. Each figure comes from a fresh process, after
its imports and with the file in the disk's cache; medians are printed, and nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

SD15: dict[str, dict[str, Any]] = {"denoiser": {}, "autoencoder": {}, "text": {}}  # our configs say sd15 by themselves
SDXL: dict[str, dict[str, Any]] = {
    "denoiser": {
        "multiples": (1, 2, 4), "depths": (0, 2, 10), "middle": 10, "context": 2048, "heads": 0, "linear": True,
        "vector": 2816,
    },
    "autoencoder": {},
    "text": {},
    "text_2": {"width": 1280, "layers": 32, "heads": 20, "hidden": 5120, "projection": 1280, "quick": False},
}  # fmt: skip
SD35: dict[str, dict[str, Any]] = {  # medium, with T5
    "denoiser": {"positions": 384, "qk_norm": "rms", "dual": 13},
    "autoencoder": {"channels": 16, "quant": False},
    "text": {"projection": 768},
    "text_2": SDXL["text_2"],
    "text_3": {},
}
SMALL: dict[str, dict[str, Any]] = {
    "denoiser": {"width": 64, "multiples": (1, 2), "blocks": 1, "depths": (1, 0), "context": 64},
    "autoencoder": {"width": 32, "multiples": (1, 1, 1, 1), "blocks": 1},
    "text": {"width": 64, "layers": 2, "heads": 1, "hidden": 96},
}
SMALL_XL: dict[str, dict[str, Any]] = {
    "denoiser": SMALL["denoiser"] | {
        "multiples": (1, 2, 2), "depths": (0, 1, 2), "middle": 2, "context": 192, "heads": 0, "linear": True,
        "vector": 48 + 6 * 256,
    },
    "autoencoder": SMALL["autoencoder"],
    "text": SMALL["text"],
    "text_2": {"width": 128, "layers": 2, "heads": 2, "hidden": 96, "projection": 48, "quick": False},
}  # fmt: skip
HALF = 2  # bytes of a weight in fp16


def names_of(family: str, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a family's single file; nothing is allocated."""
    import torch

    from limner.families import FAMILIES
    from limner.families.recognise import recognise  # noqa: F401  registers the families
    from limner.models.clip import ClipConfig
    from limner.models.mmdit import MMDiTConfig
    from limner.models.t5 import T5Config
    from limner.models.unet import UnetConfig
    from limner.models.vae import VaeConfig
    from limner.weights.layout import reshaped

    kinds = {
        "denoiser": MMDiTConfig if family.startswith("sd3") else UnetConfig, "autoencoder": VaeConfig,
        "text": ClipConfig, "text_2": ClipConfig, "text_3": T5Config,
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {}
    for net, more in configs.items():
        config = kinds[net](**more)
        with torch.device("meta"):
            ours = FAMILIES[family].nets[net].build(config).state_dict()
        prefix, naming = FAMILIES[family].single[net]
        rules = FAMILIES[family].nets[net].naming(naming).writes(config)
        theirs = reshaped({name: tuple(value.shape) for name, value in ours.items()}, rules, back=True)
        found |= {prefix + name: shape for name, shape in theirs.items()}
    return found


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Begins a safetensors file in fp16; gives the size that it will have."""
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + HALF * prod(shape)]}
        at += HALF * prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return 8 + len(text) + at


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Path:
    """A file of normal weights that keep the size of signals, written one tensor at a time."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    size = write_header(path, shapes)
    with path.open("ab") as file:
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=rng)
            if len(shape) > 1:
                value *= (1 if "embedding" in name else prod(shape[1:])) ** -0.5
            else:
                value = 0.1 * value + float(name.endswith("weight"))  # of a norm
            file.write(value.half().numpy().data)
    assert path.stat().st_size == size
    return path


def write_hole(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A file whose header is whole and whose data takes no room on the disk."""
    os.truncate(path, write_header(path, shapes))
    return path


def memory(what: str) -> float:
    """Megabytes of this process: VmHWM, the most that it has held; RssAnon, what is not a page of a file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split(f"{what}:")[1].split()[0]) / 1024


def child(work: str, *paths: Path) -> dict[str, float]:
    """What a fresh process measures: `recognise` of each path, or `load` of one and then its networks placed."""
    import torch

    from limner import load
    from limner.families.recognise import recognise
    from limner.place import find_place

    place = find_place("cpu", torch.float16)  # the file's own type
    found, start = {"before": memory("VmHWM")}, time.perf_counter()
    if work == "recognise":
        for path in paths:
            start = time.perf_counter()
            recognise(path)
            found[path.stem] = time.perf_counter() - start
        return found
    model = load(str(paths[0]), place)
    found |= {"loaded": time.perf_counter() - start, "peak": memory("VmHWM")}
    for net in model.nets:
        model.nets[net]
    return found | {"placed": time.perf_counter() - start, "most": memory("VmHWM"), "own": memory("RssAnon")}


def fresh(runs: int, work: str, *paths: Path) -> dict[str, float]:
    """Medians over fresh processes."""
    command = [sys.executable, __file__, "--child", work, *map(str, paths)]
    found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(runs)]
    return {name: statistics.median(row[name] for row in found) for name in found[0]}


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the files are written for the while (9 GB, 7 of them a hole)"
    )
    parser.add_argument("--tiny", action="store_true", help="small files of the same kinds, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.child:
        print(json.dumps(rows := child(asked.child[0], *map(Path, asked.child[1:]))))
        return rows
    with tempfile.TemporaryDirectory(dir=asked.folder) as home:
        real = write_random(Path(home) / "sd15.safetensors", names_of("sd15", SMALL if asked.tiny else SD15))
        hole = write_hole(Path(home) / "sdxl.safetensors", names_of("sdxl", SMALL_XL if asked.tiny else SDXL))
        known, loaded = fresh(asked.runs, "recognise", hole, real), fresh(asked.runs, "load", real)
        rows = {
            "sd15 file, MB": real.stat().st_size / 2**20,
            "recognise it, s": known["sd15"],
            "load it, s": loaded["loaded"],
            "peak of loading, MB": loaded["peak"],
            "of that there after the imports, MB": loaded["before"],
            "load it and bring every network to its place in fp16, s": loaded["placed"],
            "peak of that, mapped pages of the file among it, MB": loaded["most"],
            "what is not mapped after that, MB": loaded["own"],
            "sdxl file, data a hole, MB": hole.stat().st_size / 2**20,
            "recognise that, s": known["sdxl"],
        }
    for name, value in rows.items():
        print(f"{name:60} {value:9.2f}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()

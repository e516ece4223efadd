"""What each setting that is not exact costs in fidelity, and what it saves: PSNR and seconds against our own fp32.

    python benchmarks/fidelity.py [--model mini|sd15|FILE] [--settings int8 ...] [--pictures 4] [--steps N]
        [--sampler NAME] [--size PIXELS] [--rounds 1] [--taesd FILE] [--emulated] [--tiny] [--json FILE]
        [--sheet SHEET.png]

A setting is a row of data: how the model is loaded, what the recipe says, and how the picture is decoded. Every one
paints the same prompts and seeds as fp32 with everything kept in memory. `mini` has the weights that ship; `sd15` is a
random checkpoint of the published size (2 GB, deleted at the end), whose pictures are noise: its PSNR says how far
rounding carries, not how a trained model looks. What cannot be measured is named with its reason. `effort.py` has the
curve of the steps that are not computed whole.

Seconds are of one picture, from recipe to pixels, medians of the rounds; `time` is their share of fp32's, in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))
import loading

PROMPTS = (
    "a red apple", "a cat", "pixel art sword", "smiling face with a hat", "a house at night", "a blue car", "a tree",
    "a slice of pizza",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way of painting."""

    name: str
    place: Mapping[str, str] = field(default_factory=dict)  # precision, engine and keep
    recipe: Mapping[str, Any] = field(default_factory=dict)
    tiled: bool = False  # decode in tiles, as where memory is short


EXACT = Setting("fp32", {"precision": "fp32"})
SETTINGS = (
    EXACT,
    Setting("bf16", {"precision": "bf16"}),
    Setting("fp16", {"precision": "fp16"}),
    Setting("int8", {"precision": "int8"}),
    Setting("fp8", {"precision": "fp8"}),
    Setting("recorded", {"engine": "recorded"}),
    Setting("compiled bf16", {"precision": "bf16", "engine": "compiled"}),
    Setting("openvino fp32", {"engine": "openvino"}),
    Setting("openvino bf16", {"precision": "bf16", "engine": "openvino"}),
    Setting("openvino int8", {"precision": "int8", "engine": "openvino"}),
    Setting("keep one", {"keep": "one"}),
    Setting("keep layer", {"keep": "layer"}),
    Setting("tiled decode", tiled=True),
    Setting("tiny decoder", recipe={"fast_decode": True}),
    Setting("effort balanced", recipe={"effort": "balanced"}),
    Setting("effort fast", recipe={"effort": "fast"}),
    Setting("bf16, effort balanced", {"precision": "bf16"}, {"effort": "balanced"}),
    Setting("int8, effort balanced", {"precision": "int8"}, {"effort": "balanced"}),
    Setting("openvino int8, effort balanced", {"precision": "int8", "engine": "openvino"}, {"effort": "balanced"}),
)


@contextlib.contextmanager
def tiles(wanted: bool) -> Iterator[None]:
    """Decoding in tiles at any size, where it is wanted."""
    with patch("limner.pipeline.TILED", 0) if wanted else contextlib.nullcontext():
        yield


def side_of(model: Any, asked: argparse.Namespace) -> int:
    """Pixels of a side: as asked, or as the model likes."""
    return int(asked.size or model.defaults.size[0])


def opened(setting: Setting, asked: argparse.Namespace, file: str) -> Any:
    """The model as the setting wants it; precision is fp32 where it says nothing."""
    from limner import load
    from limner.place import find_place

    place = find_place(asked.device, keep=setting.place.get("keep", "all"))  # type: ignore[arg-type]
    precision = setting.place.get("precision", "fp32")
    if precision == "fp8" and asked.emulated:
        place = replace(place.precisely("bf16"), small="fp8")  # torch multiplies in it on the CPU, too, slowly
    else:
        place = place.precisely(precision)  # type: ignore[arg-type]
    place = place.driven(setting.place.get("engine", ""))  # type: ignore[arg-type]
    return load(file, place, parts=[str(asked.taesd)] if asked.taesd else ())


def paint(model: Any, setting: Setting, asked: Any) -> tuple[Any, float]:
    """The pictures, B 4 H W, and the seconds of one of them."""
    import torch

    from limner.tasks.run import begin, painting

    wishes = dict(setting.recipe)
    wishes |= {name: getattr(asked, name) for name in ("steps", "sampler") if getattr(asked, name)}
    wishes |= dict.fromkeys(("width", "height"), side_of(model, asked))
    found, begun = [], time.perf_counter()
    with tiles(setting.tiled):
        for seed in range(asked.pictures):  # one by one, as people ask for them
            recipe = begin(model, prompt=PROMPTS[seed % len(PROMPTS)], seed=seed, **wishes)
            found += [one.picture for event in painting(model, recipe) if isinstance(event, list) for one in event]
    return torch.stack(found), (time.perf_counter() - begun) / asked.pictures


def why_not(setting: Setting, asked: argparse.Namespace, model: Any) -> str:
    """Why a setting is not measured, in words; "" where it is."""
    from limner.memory import TILE
    from limner.place import engines, precisions

    wanted = setting.place.get("precision", "fp32")
    if wanted not in precisions(asked.device) and not (wanted == "fp8" and asked.emulated):
        return f"{asked.device} does not compute in {wanted} here"
    if (engine := setting.place.get("engine", "torch")) not in engines(asked.device):
        return f"{engine} is not installed, or does not serve {asked.device}"
    if setting.recipe.get("fast_decode") and "tiny" not in model.nets:
        return "no tiny decoder beside the model (--taesd FILE)" if "tiny" in model.family.nets else "it has none"
    side = side_of(model, asked)
    if setting.tiled and side <= TILE:
        return f"a picture of {side} pixels is no larger than a tile of {TILE} (--size {TILE + 128})"
    return ""


def measure(
    asked: Any, file: str, open_: Callable[[Setting, Any, str], Any] = opened
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each setting, and the pictures of those that were painted."""
    from limner.evaluate.metrics import psnr_on_white

    exact = open_(EXACT, asked, file)
    whole, _ = paint(exact, EXACT, asked)  # warm
    whole = whole.mul(255).round() / 255
    rows: list[dict[str, Any]] = []
    pictures = {}
    for setting in SETTINGS:
        if setting.name not in asked.settings:
            continue
        if why := why_not(setting, asked, exact):
            rows.append({"setting": setting.name, "why": why})
            continue
        model = exact if not setting.place or setting is EXACT else open_(setting, asked, file)
        found, _ = paint(model, setting, asked) if model is not exact else (whole, 0.0)  # warm
        times, ratios = [], []
        for _ in range(asked.rounds):
            _, beside = paint(exact, EXACT, asked)
            found, seconds = paint(model, setting, asked)
            times.append(seconds)
            ratios.append(seconds / beside)
        near = psnr_on_white(found, whole)
        rows.append({
            "setting": setting.name, "seconds": statistics.median(times), "ratio": statistics.median(ratios),
            "mean": float(near.mean()), "least": float(near.min()), "largest": float((found - whole).abs().max() * 255),
        })  # fmt: skip
        pictures[setting.name] = found
        print(line(rows[-1]), file=sys.stderr, flush=True)
    return rows, pictures


def line(row: Mapping[str, Any]) -> str:
    return (
        f"| {row['setting']} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['mean']:.1f} | {row['least']:.1f} "
        f"| {row['largest']:.0f} |"
    )


def table(heading: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown; what was not measured stands in it with its reason."""
    lines = [heading, "", "| setting | seconds | time | mean PSNR, dB | least | largest error of 255 |"]
    lines += ["| --- |" + " --- |" * 5, *(line(row) for row in rows if "why" not in row), ""]
    return "\n".join([*lines, *(f"- {row['setting']}: {row['why']}" for row in rows if "why" in row)]) + "\n"


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--model", default="mini", help="mini, sd15 (random weights), or any model")
    parser.add_argument("--settings", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0, help="0: as many as the model likes")
    parser.add_argument("--sampler", default="", help="without it, the model's own")
    parser.add_argument("--size", type=int, default=0, help="pixels of a side; 0: what the model likes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--emulated", action="store_true", help="fp8 also on the CPU: its pictures, not its speed")
    parser.add_argument("--taesd", type=Path, help="a tiny decoder of the model's family")
    parser.add_argument("--tiny", action="store_true", help="sd15 with small networks, in seconds")
    parser.add_argument("--folder", type=Path, help="where a random checkpoint is written for the while")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--sheet", type=Path, help="where to put the pictures, a row a setting")
    asked = parser.parse_args(words)
    if min(asked.pictures, asked.rounds) < 1:
        raise SystemExit("at least one picture and one round are needed")
    with tempfile.TemporaryDirectory(dir=asked.folder) as home:
        file = asked.model
        if file == "sd15":
            shapes = loading.names_of("sd15", loading.SMALL if asked.tiny else loading.SD15)
            file = str(loading.write_random(Path(home) / "sd15.safetensors", shapes))
        rows, pictures = measure(asked, file)
    report(asked.model, rows, pictures, asked)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def report(model: str, rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, Any], asked: Any) -> None:
    """The table, printed, and the sheet where one is asked for."""
    heading = f"{model}, {asked.pictures} pictures, {asked.rounds} rounds"
    print(table(heading, rows))
    if asked.sheet:
        from limner.evaluate.sheet import Strip, Tile, draw_sheet

        heads = [PROMPTS[seed % len(PROMPTS)] for seed in range(asked.pictures)]
        strips = [Strip(name, [Tile(picture) for picture in found]) for name, found in pictures.items()]
        draw_sheet(heading, heads, strips).save(asked.sheet)


if __name__ == "__main__":
    main()

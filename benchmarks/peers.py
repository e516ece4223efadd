"""Limner beside diffusers, OpenVINO and stable-diffusion.cpp: the same random weights, shapes, inputs and threads.

    python benchmarks/peers.py [--models sd15 sdxl sd35-medium mini] [--peers limner diffusers ...] [--runs 3]
        [--threads N] [--size PIXELS] [--pictures 1 ...] [--device cpu|cuda] [--emulated] [--tiny] [--json FILE]
        [--chart FILE.svg]

A random checkpoint in fp16 is written once as a single file and as a folder of diffusers (sd15 4, sdxl 13, sd35-medium
without T5 13 GB together) and deleted at the end. Every peer is a process of its own, so that its peak memory is its
own. All stay open and are asked in turn, A B A B; where memory would not hold them all, each is opened anew for every
round, which the heading says. A step is one guided evaluation of the network, two rows a picture; three are asked in
each round, one at 1024 pixels, after a first one that is not counted. A picture of 20 steps is reckoned from its parts;
what does not compute each step whole paints it. `agrees` is how near the guided answer comes to Limner's in fp32, in dB
below the span of the answer; of a program that only paints whole pictures, how near a picture of one step from the same
noise. With more pictures at once, seconds are of all of them. On a card seconds end when it has done its work.

The peers are in `rivals.py`. What is not installed is named with its reason. To have them all, in an environment apart:

    pip install torch==2.13.0 && pip install -c constraints.txt -e . diffusers transformers accelerate
    pip install openvino nncf
    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" pip install stable-diffusion-cpp-python
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from math import prod
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np

import loading
import rivals
from rivals import PEERS, STEPS, Job

MEDIUM = {net: config for net, config in loading.SD35.items() if net != "text_3"}  # T5 is no part of a step
SMALL_MEDIUM = {
    "denoiser": {"width": 128, "depth": 3, "heads": 2, "positions": 32, "qk_norm": "rms", "dual": 2, "pooled": 112,
                 "context": 192},
    "autoencoder": loading.SMALL["autoencoder"] | {"channels": 16, "quant": False},
    "text": loading.SMALL["text"] | {"projection": 64},
    "text_2": loading.SMALL_XL["text_2"],
}  # fmt: skip
MODELS: dict[str, tuple[str, Any, Any, int]] = {  # family, published and tiny configs, size in pixels
    "sd15": ("sd15", loading.SD15, loading.SMALL, 512),
    "sdxl": ("sdxl", loading.SDXL, loading.SMALL_XL, 1024),
    "sd35-medium": ("sd35", MEDIUM, SMALL_MEDIUM, 1024),
    "mini": ("mini", {}, {}, 128),
}
ASKED, LARGE = 3, 1024  # steps in each round; one where a side has so many pixels
ROOM = 1.6  # times its weights in fp32 that a peer may take
SHARE = 0.8  # of free memory that all may take together
GB = 1e9


@dataclass
class Worker:
    """A peer in a process of its own, which is asked in lines and answers in lines."""

    name: str
    job: Job
    log: Path
    process: subprocess.Popen[str] | None = None
    found: dict[str, list[float]] = field(default_factory=dict)
    peak: float = 0.0  # MB
    card: float = 0.0  # MB of a card's own memory, at the most
    gone: str = ""  # why it is not asked any more

    def ask(self, verb: str, save: str = "") -> bool:
        """Asks, keeps the seconds, and tells whether there was an answer."""
        if self.process is None:
            command = [sys.executable, __file__, "--worker", self.name, json.dumps(vars(self.job))]
            threads = {"OMP_NUM_THREADS": str(self.job.threads), "HF_HUB_OFFLINE": "1"}
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    env=os.environ | threads,
                )  # fmt: skip
            if not self._read():
                return False
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([verb, save]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> bool:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            self.gone = f"ended with {status}" + (f": {said[-1].strip()[:120]}" if said else "")
            self.close()
            return False
        told = json.loads(line)
        self.peak, self.card = max(self.peak, told.pop("peak")), max(self.card, told.pop("card"))
        for name, seconds in told.items():
            print(f"{self.name}: {name} {seconds:.2f} s", file=sys.stderr, flush=True)
            self.found.setdefault(name, []).append(seconds)
        return True

    def close(self) -> None:
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()
            self.process.wait()
            self.process = None


def worker(name: str, job: Job) -> None:
    """The other side: opens the peer and answers until nobody asks. A library's own prints go to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    begun = time.perf_counter()
    verbs = PEERS[name].open(job)

    def tell(seconds: Mapping[str, float]) -> None:
        answers.write(json.dumps({**seconds, "peak": loading.memory("VmHWM"), "card": card_memory(job)}) + "\n")
        answers.flush()

    awaited(job)
    tell({"load": time.perf_counter() - begun})
    for line in sys.stdin:
        verb, save = json.loads(line)
        whole, begun = verb not in verbs and "whole" in verbs, time.perf_counter()
        if not whole and verb.removeprefix("first ") not in verbs:
            tell({})
            continue
        answer = verbs["whole" if whole else verb.removeprefix("first ")]()
        awaited(job)
        seconds = {verb: time.perf_counter() - begun}
        if whole:
            seconds, answer = answer
            seconds = {"first step": seconds["step"]} if verb.startswith("first") else seconds
        if save:
            np.save(Path(job.work) / save, answer)
        tell(seconds)


def awaited(job: Job) -> None:
    """Waits until a card has done what it was told."""
    if job.device == "cuda":
        import torch

        torch.cuda.synchronize()


def card_memory(job: Job) -> float:
    """MB of a card's own memory that this process held at the most."""
    import torch

    return torch.cuda.max_memory_reserved() / 1e6 if job.device == "cuda" else 0.0


def inputs(model: str, asked: argparse.Namespace, home: Path, pictures: int = 1) -> Job:
    """Writes a model's checkpoint and inputs, where they fit on the disk."""
    from limner.families import FAMILIES
    from limner.families.recognise import recognise
    from limner.families.write import write_checkpoint

    name, published, small, size = MODELS[model]
    size = asked.size or (min(size, 128) if asked.tiny else size)
    family, file, folder = FAMILIES[name], model, home / "folder"
    if published:
        shapes = loading.names_of(name, small if asked.tiny else published)
        wanted, free = 2 * loading.HALF * sum(map(prod, shapes.values())), shutil.disk_usage(home).free
        if wanted * 2 > free:  # OpenVINO's copies beside ours
            raise SystemExit(f"{model} wants {2 * wanted / GB:.1f} GB in {home}, where {free / GB:.1f} GB are free")
        file = str(loading.write_random(home / f"{name}.safetensors", shapes))
        write_checkpoint(recognise(Path(file)), folder, "diffusers")
    draw, sides = np.random.default_rng(0), [size // family.latent.factor] * 2
    for each in "xz":
        np.save(
            home / f"{each}.npy", draw.standard_normal((pictures, family.latent.channels, *sides)).astype(np.float32)
        )
    path = family.path
    first = path.sigmas[1] if hasattr(path, "stations") else 0.0
    return Job(
        name, file, str(folder), str(home), size, t=0.5, clock=path.clock(0.5), first=first, device=asked.device,
        threads=asked.threads, tiny=asked.tiny, emulated=asked.emulated, pictures=pictures,
    )  # fmt: skip


def prepared(name: str, job: Job, log: Path) -> str:
    """Lets a peer do what it does once; "" or why it could not."""
    if PEERS[name].prepare is None:
        return ""
    command = [sys.executable, __file__, "--prepare", name, json.dumps(vars(job))]
    with log.open("a") as file:
        status = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"could not be prepared: {said[-1].strip()[:120] if said else status}" if status else ""


def measure(
    model: str, names: Sequence[str], asked: argparse.Namespace, home: Path, pictures: int = 1
) -> dict[str, Any]:
    """A table's rows of one model: every peer asked, or why it was not."""
    job = inputs(model, asked, home, pictures)
    open_, rows = [], []
    for name in names:
        log, begun = home / f"{name.replace(' ', '-')}.log", time.perf_counter()
        alone = "" if MODELS[model][1] or name.startswith("limner") else "reads no model of this kind"
        why = alone or rivals.why_not(PEERS[name], job) or prepared(name, job, log)
        one = Worker(name, job, log, gone=why)
        if not why and PEERS[name].prepare:
            one.found["prepare"] = [time.perf_counter() - begun]
        open_.append(one)
    here = [one for one in open_ if not one.gone]
    weights = 2 * Path(job.file).stat().st_size if Path(job.file).exists() else 0
    apart = len(here) * ROOM * weights > SHARE * free_memory(job.device)
    load = os.getloadavg()[0]
    for number in range(asked.runs):
        for one in here:
            if (apart or not number) and not one.gone:
                one.ask("first step", f"{one.name}.npy" if not number else "")
                if one.name.endswith("balanced") and not one.gone:
                    one.ask("first painted")
                if apart:
                    ask_all([one])
                    if not number and "limner" in one.name and not one.gone:
                        one.ask("picture", f"{one.name} picture.npy")
                    one.close()
        if not apart:
            if not number:
                for one in here:
                    if one.name.startswith("limner") and not one.gone:
                        one.ask("picture", f"{one.name} picture.npy")
            ask_all(here)
    for one in open_:
        one.close()
        rows.append(row_of(one, open_, home))
    return {
        "size": job.size, "pictures": pictures, "apart": apart, "load average": load, "runs": asked.runs,
        "card": job.device == "cuda", "rows": rows,
    }  # fmt: skip


def ask_all(workers: Sequence[Worker]) -> None:
    """One round: each verb, of each in turn, and several steps; whole programs are asked once."""
    for verb in ("text", *["step"] * (ASKED if workers[0].job.size < LARGE else 1), "decode", "painted"):
        for one in workers:
            whole = one.name.startswith("sd.cpp")
            if not one.gone and (not whole or verb == "text"):
                one.ask("step" if whole else verb)


def free_memory(device: str) -> int:
    """Bytes that peers can take: the machine's, or the card's where that has fewer."""
    from limner.memory import free
    from limner.place import find_place

    there = free()
    return min(there, find_place(device).memory_left or there)  # type: ignore[arg-type]


def row_of(one: Worker, others: Sequence[Worker], home: Path) -> dict[str, Any]:
    """Medians, ratios to Limner's own choice in the same round, and agreement with Limner in fp32."""
    if one.gone:
        return {"peer": one.name, "why": one.gone}
    row: dict[str, Any] = {"peer": one.name, "peak": one.peak / 1e3} | ({"card": one.card / 1e3} if one.card else {})
    row |= {name: statistics.median(values) for name, values in one.found.items() if name != "picture"}
    row["each step"] = one.found["step"]
    if ours := next((w.found["step"] for w in others if w.name == "limner" and "step" in w.found), []):
        alike = len(ours) == len(row["each step"])
        pairs = zip(row["each step"], ours, strict=True) if alike else [(row["step"], statistics.median(ours))]
        row["ratio"] = statistics.median(a / b for a, b in pairs)
    row["total"] = row.get("painted", row.get("text", 0.0) + STEPS * row["step"] + row["decode"])
    exact = next((name for name in ("limner fp32", "limner") if (home / f"{name}.npy").exists()), "")
    if exact and exact != one.name:
        own, picture = home / f"{one.name}.npy", one.name.startswith("sd.cpp")
        row["agrees"] = psnr(np.load(own), np.load(home / f"{exact} picture.npy" if picture else home / f"{exact}.npy"))
    return row


def psnr(found: Any, exact: Any) -> float:
    """Decibels of the error below the span of what is exact; 150 at most."""
    span, error = np.ptp(exact), np.square(found.astype(np.float64) - exact).mean()
    return float(min(150.0, 10 * np.log10(span**2 / max(error, 1e-30))))


def machine(device: str) -> dict[str, Any]:
    """What was measured on, in words, and the versions of what is installed."""
    import torch

    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = [line.split(":")[1].strip() for line in about.splitlines() if line.startswith("model name")]
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f" {flag} " in about]
    versions = {}
    for package in ("torch", "diffusers", "transformers", "openvino", "nncf", "stable-diffusion-cpp-python"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = ""
    return {
        "processor": named[0] if named else platform.processor(), "cores": os.cpu_count(), "has": flags,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB,
        "card": torch.cuda.get_device_name() if device == "cuda" else "", "versions": versions,
    }  # fmt: skip


COLUMNS = {  # heading -> field and decimals
    "load s": ("load", 1), "text s": ("text", 2), "first s": ("first step", 2), "step s": ("step", 2),
    "of limner": ("ratio", 2), "decode s": ("decode", 2), f"{STEPS} steps s": ("total", 1), "peak GB": ("peak", 1),
    "card GB": ("card", 1),
    "agrees dB": ("agrees", 0),
}  # fmt: skip


def table(model: str, found: Mapping[str, Any]) -> str:
    """In Markdown; a peer that was not measured stands in it with its reason."""
    how = "each opened anew for every round" if found["apart"] else "all open at once"
    columns = {head: what for head, what in COLUMNS.items() if what[0] != "card" or found["card"]}
    lines = [f"{model}, {found['size']} x {found['size']}, {found['runs']} rounds, {how}", ""]
    lines += ["| peer | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for row in found["rows"]:
        if "why" not in row:
            said = (f"{row[name]:.{places}f}" if name in row else "-" for name, places in columns.values())
            lines.append(f"| {row['peer']} | " + " | ".join(said) + " |")
    lines += ["", *(f"- {row['peer']}: {row['why']}" for row in found["rows"] if "why" in row)]
    return "\n".join(lines) + "\n"


def chart(models: Mapping[str, Any]) -> str:
    """Seconds of a guided step as bars, the fastest first, in SVG."""
    wide, bar, left, y = 720, 22, 190, 12
    parts = []
    for model, found in models.items():
        rows = sorted((row for row in found["rows"] if "step" in row), key=lambda row: row["step"])
        most = max((row["step"] for row in rows), default=1.0)
        parts.append(f'<text x="12" y="{y + 16}" font-weight="bold">{model}, one guided step</text>')
        y += 28
        for row in rows:
            long = (wide - left - 90) * row["step"] / most
            shade = "#c2410c" if row["peer"].startswith("limner") else "#94a3b8"
            parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(row["peer"])}</text>')
            parts.append(f'<rect x="{left}" y="{y + 2}" width="{long:.1f}" height="{bar - 4}" rx="2" fill="{shade}"/>')
            parts.append(f'<text x="{left + long + 6:.1f}" y="{y + 15}">{row["step"]:.3g} s</text>')
            y += bar
        y += 16
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {y}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="{wide}" height="{y}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def chosen(words: Sequence[str]) -> list[str]:
    """Peers of these names; where a word is none, those whose names begin with it."""
    for word in words:
        if not any(name.startswith(word) for name in PEERS):
            raise SystemExit(f"{word!r} begins no peer's name; there are {', '.join(PEERS)}")
    return [
        name for name in PEERS if any(name == word or (word not in PEERS and name.startswith(word)) for word in words)
    ]


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument(
        "--peers", nargs="+", default=[""], metavar="NAME", help="a peer, or the beginning of several names"
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds that count")
    parser.add_argument("--threads", type=int, default=rivals.THREADS)
    parser.add_argument("--size", type=int, default=0, help="pixels of a side; 0: what the model likes")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1], metavar="N", help="in one batch, a table each")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--emulated", action="store_true", help="bf16 also where the processor has none")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds, in seconds")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written for the while")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if told := asked.worker or asked.prepare:
        name, job = told[0], Job(**json.loads(told[1]))
        if asked.worker:
            worker(name, job)
        else:
            PEERS[name].prepare(job)  # type: ignore[misc]
        return {}
    names, models = chosen(asked.peers), {}
    if min(asked.runs, *asked.pictures) < 1:
        raise SystemExit("less than one round, or than one picture, measures nothing")
    for model, pictures in product(asked.models, asked.pictures):
        named = model if pictures == 1 else f"{model}, {pictures} pictures at once"
        with tempfile.TemporaryDirectory(dir=asked.folder) as home:
            models[named] = measure(model, names, asked, Path(home), pictures)
        print(table(named, models[named]), flush=True)
    found = {"machine": machine(asked.device), "device": asked.device, "threads": asked.threads, "models": models}
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.chart:
        asked.chart.write_text(chart(models), encoding="utf-8")
    return found


if __name__ == "__main__":
    main()

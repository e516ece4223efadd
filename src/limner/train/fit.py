"""The training loop, for every network and objective: one flat generator in the order of nanoGPT.

Each step seeds its own random numbers from (seed, step), so a resumed run equals the uninterrupted one bit for bit
on the same machine, as long as its length is given in steps; a length in time depends on the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limner.errors import LimnerError
from limner.place import Place
from limner.rng import generator, seed_of
from limner.train import checkpoint
from limner.train.muon import Muon

Batch = TypeVar("Batch")
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained; what it is, its own config says."""

    steps: int = 10_000  # length of the run; where `seconds` is given, that decides
    seconds: float = 0.0  # length of the run by the clock, over all its resumptions; 0: by steps
    batch: int = 64
    lr: float = 4e-4  # AdamW, for vectors, embeddings and what Muon does not take
    muon_lr: float = 0.0  # Muon, for the matrices of the blocks; 0: AdamW takes them too
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient
    warmup: int = 300  # steps
    decay: float = 0.2  # share of the run, at its end, over which the rate falls
    shape: str = "linear"  # of that fall: "linear" to zero (WSD) or "cosine" to a tenth
    compile: bool = False  # fuse each block with torch.compile: twice as fast in fp32; needs a C++ compiler
    ema: float = 0.999  # of the moving average that is kept as the result; it warms up from 0
    log_every: int = 50  # steps
    save_every: float = 240.0  # seconds
    sample_every: float = 900.0  # seconds
    seed: int = 0


@dataclass(frozen=True)
class Logged:
    step: int
    progress: float  # 0 to 1
    losses: dict[str, float]  # means since the last
    rate: float  # samples per second
    lr: float
    seconds: float


@dataclass(frozen=True)
class Sampled:
    step: int
    ema: dict[str, Tensor]


@dataclass(frozen=True)
class Saved:
    step: int
    path: Path
    ema: dict[str, Tensor]
    done: bool


def learning_rate(progress: float, step: int, config: FitConfig) -> float:
    """The factor on the base rates: warm-up, plateau, fall (the WSD of MiniCPM, arXiv 2404.06395)."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    left = min(1.0, (1 - progress) / config.decay) if config.decay > 0 else 1.0
    if config.shape == "cosine":
        return warm * (0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * left)))
    return warm * left


def optimisers(
    model: nn.Module, config: FitConfig, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.optim.Optimizer]:
    """Muon, computing in dtype, for the matrices inside blocks where it is asked for, AdamW for everything else."""
    muon = [p for name, p in model.named_parameters() if config.muon_lr and p.ndim == 2 and "blocks." in name]
    taken = {id(p) for p in muon}
    rest = [p for p in model.parameters() if id(p) not in taken and p.requires_grad]
    made: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(rest, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
    }
    if muon:
        made["muon"] = Muon(muon, config.muon_lr, config.weight_decay, dtype=dtype)
    return made


def fit(
    model: nn.Module,
    objective: Callable[[nn.Module, Batch, torch.Generator], Losses],
    batches: Callable[[torch.Generator, int], Batch],
    config: FitConfig,
    out: Path,
    place: Place,
    note: dict[str, Any],
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Logged | Sampled | Saved]:
    """Train to the end that the config sets, resuming what OUT holds; the sum of the losses is minimised.

    Between two steps `stopping` is asked, and closing the generator works: both save, so nothing is lost. `note` says
    what is trained and travels in the checkpoint; a checkpoint of something else is refused.
    """
    if config.compile:
        for block in getattr(model, "blocks", [model]):
            block.compile(dynamic=False)
    made = optimisers(model, config, place.dtype)
    base = {kind: [group["lr"] for group in o.param_groups] for kind, o in made.items()}
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    before = checkpoint.load(out, model, ema, made, note) or {"step": 0, "seconds": 0.0}
    step, spent, started = before["step"], before["seconds"], time.monotonic()
    live = dict(model.state_dict(keep_vars=True))
    sums: dict[str, Tensor] = {}
    seen, since, saved, sampled = 0, time.monotonic(), time.monotonic(), time.monotonic()

    def elapsed() -> float:
        return float(spent + time.monotonic() - started)

    def save(done: bool) -> Saved:
        state = note | {"step": step, "seconds": elapsed(), "fit": asdict(config), "done": done}
        return Saved(step, checkpoint.save(out, model, ema, made, state), ema, done)

    try:
        while (progress := elapsed() / config.seconds if config.seconds else step / config.steps) < 1:
            factor = learning_rate(progress, step, config)
            for kind, optimiser in made.items():
                for group, lr in zip(optimiser.param_groups, base[kind], strict=True):
                    group["lr"] = lr * factor

            rng = generator(config.seed, "step", step)
            torch.manual_seed(seed_of(config.seed, "dropout", step))
            batch = batches(rng, config.batch)
            with place.autocast():
                losses = objective(model, batch, rng)
            total = torch.stack(list(losses.values())).sum()
            total.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise LimnerError(
                    f"the gradient is not finite at step {step} (losses: "
                    + ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
                    + "); the last checkpoint is whole: lower the rate and resume"
                )
            for optimiser in made.values():
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)

            keep = min(config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, value in live.items():
                    if value.is_floating_point():
                        ema[name].lerp_(value.detach().to(ema[name].device), 1 - keep)
                    else:
                        ema[name].copy_(value)

            step, seen = step + 1, seen + config.batch
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach().cpu()
            now = time.monotonic()
            if step % config.log_every == 0:
                means = {name: value.item() / config.log_every for name, value in sums.items()}
                yield Logged(step, progress, means, seen / (now - since), config.lr * factor, elapsed())
                sums, seen, since = {}, 0, time.monotonic()
            if now - sampled > config.sample_every:
                yield Sampled(step, ema)
                sampled = time.monotonic()
            if now - saved > config.save_every:
                yield save(done=False)
                saved = time.monotonic()
            if stopping():
                yield save(done=False)
                return
    except GeneratorExit:
        save(done=False)
        raise
    yield save(done=True)

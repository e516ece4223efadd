"""A small UNet that has learnt to paint, and what efforts and 8 bits cost on it.

    python benchmarks/small_unet.py --data SHARDS --out OUT [--minutes 40] [--styles noto blob ...] [--tiny]

Random weights say how far rounding carries, and nothing of what a step left out does to a picture; published ones are
not at hand everywhere. So a UNet of the build of Stable Diffusion 1 (Rombach et al. 2022, arXiv 2112.10752), of 96
channels and three levels, is trained here between mini's autoencoder and text encoder, on pictures of 128 pixels and
plain captions, to predict the noise along Stable Diffusion's own path. The same command goes on where it was stopped.
Then it is painted with, by Stable Diffusion's defaults, and measured as `effort.py` and `fidelity.py` measure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from torch import Tensor, nn

import effort
import fidelity
from limner import load
from limner.families.mini import MINI
from limner.families.nets import UNET
from limner.families.sd import SD15
from limner.memory import hold_freed
from limner.models.unet import ResBlock, SpatialTransformer, Unet, UnetConfig
from limner.nets import Nets
from limner.pipeline import EXACT, Model
from limner.place import Place, find_place
from limner.train import latents
from limner.train.data import pack
from limner.train.denoiser import Batch, DenoiserLoss, batches
from limner.train.fit import FitConfig, Logged, Losses, Saved, fit
from limner.train.ship import ship_net
from limner.types import Cond
from limner.weights.io import read_tensors

SIZE = 128  # pixels
CONFIG = UnetConfig(channels=8, out=8, width=96, multiples=(1, 2, 4), depths=(1, 1, 0), context=384)
TINY = UnetConfig(channels=8, out=8, width=32, multiples=(1, 2), blocks=1, depths=(1, 0), context=384)
FAMILY = replace(
    MINI, name="small unet", nets={**MINI.nets, "denoiser": UNET}, path=SD15.path,
    defaults=replace(SD15.defaults, size=(SIZE, SIZE)),
)  # fmt: skip
RUN = FitConfig(batch=32, lr=5e-4, warmup=200, decay=0.3, ema=0.998, weight_decay=1e-3)


def drawn(config: UnetConfig) -> Unet:
    """A new UNet whose branches begin as nothing, as published ones did."""
    torch.manual_seed(0)
    net = Unet(config)
    ends: list[Any] = [net.out[-1]]
    for layer in net.modules():
        match layer:
            case ResBlock():
                ends.append(layer.out_layers[-1])
            case SpatialTransformer():
                ends.append(layer.proj_out)
    for end in ends:
        nn.init.zeros_(end.weight)
        nn.init.zeros_(end.bias)
    return net


def between(net: nn.Module, place: Place, files: Sequence[Path] = ()) -> Model:
    """The UNet as the denoiser of a model whose other networks are mini's."""
    mini = load("mini", place)
    bare = {name: mini.nets.bare(name) for name in ("autoencoder", "text")}
    nets = Nets({**bare, "denoiser": net}, place, EXACT, {"denoiser": files})
    return replace(mini, family=FAMILY, nets=nets, diffusion=None, likes=None)


def predict(net: nn.Module, batch: Batch, rng: torch.Generator) -> Losses:
    """Which noise is in it (Ho et al. 2020, arXiv 2006.11239, equation 14)."""
    path, x0 = FAMILY.path, batch.x0
    t, eps = path.draw(len(x0), rng), torch.randn(x0.shape, generator=rng)
    clock = torch.tensor([path.clock(one) for one in t.tolist()])
    words = Cond(batch.cond.tokens.clone())  # what was read without gradients can be learnt from as a copy
    answer: Tensor = net(path.noisy(x0, eps, t), clock, words)
    return {"noise": (answer.float() - path.target(x0, eps, t)).square().mean()}


def train(asked: argparse.Namespace) -> Path:
    """OUT/unet.safetensors, the moving average at the end of the run."""
    place, wide = find_place("cpu"), find_place("cpu", torch.float32)
    pictures = pack(asked.data, asked.out / "cache", SIZE)
    rows = pictures.only(lambda of: of.split == "train" and (not asked.styles or of.style in asked.styles))
    if not len(rows):
        raise SystemExit(f"{asked.data} has no pictures of {' or '.join(asked.styles)} to train on")
    model = between(net := drawn(TINY if asked.tiny else CONFIG), wide)
    cache, coder = asked.out / "latents.safetensors", model.nets["autoencoder"]
    if not cache.exists():
        plain = latents.ComposeConfig(mirror=100, recolour=0, ground=0, night=0, count=0, pair=0, hat=0)
        latents.encode(coder, pictures, rows, plain, cache, wide)
    draw = batches(latents.load(cache, coder, pictures), pictures.words, model, DenoiserLoss())
    run = replace(RUN, steps=5, batch=2, log_every=1) if asked.tiny else replace(RUN, seconds=60 * asked.minutes)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for event in fit(net, predict, draw, run, asked.out, place, {"net": repr(net.config)}):
        if isinstance(event, Logged) and event.step % (2 * run.log_every) == 0:
            minutes, error = event.seconds / 60, event.losses["noise"]
            print(f"step {event.step}, {minutes:.1f} min, {event.rate:.0f}/s, error {error:.4f}", flush=True)
        elif isinstance(event, Saved) and event.done:
            ship_net(asked.out, "unet", net, event.ema)
            print(f"{event.step} steps of {run.batch}, of {len(rows)} pictures", flush=True)
    return asked.out / "unet.safetensors"


def opened(file: Path, tiny: bool) -> Callable[..., Model]:
    """As `fidelity.opened`, of what was trained."""

    def at(setting: Any, *_: Any) -> Model:
        place = find_place("cpu").precisely(setting.place.get("precision", "fp32"))
        place = place.driven(setting.place.get("engine", ""))
        net = Unet(TINY if tiny else CONFIG)
        net.load_state_dict({name: value.float() for name, value in read_tensors(file).items()})
        return between(net.eval().requires_grad_(False), place, [file])

    return at


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="as for `limner train`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0, help="of training")
    parser.add_argument("--styles", nargs="*", default=[], help="train on these alone; without it, on all")
    parser.add_argument("--steps", type=int, default=30, help="of the pictures that are measured")
    names = [setting.name for setting in fidelity.SETTINGS]
    numbers = ["bf16", "int8", "openvino bf16", "openvino int8"]
    parser.add_argument("--settings", nargs="+", default=numbers, choices=names, metavar="NAME")
    parser.add_argument("--tiny", action="store_true", help="a smaller network, a few steps")
    asked = parser.parse_args(words)
    hold_freed()
    file = train(asked)
    open_ = opened(file, asked.tiny)
    told = SimpleNamespace(
        samplers=["dpmpp_2m", "euler_ancestral"], steps=asked.steps, size=SIZE, rounds=1,
        sheet=asked.out / "effort.png",
    )  # fmt: skip
    effort.measure(open_(fidelity.EXACT), told)
    told = SimpleNamespace(
        device="cpu", taesd=None, pictures=len(fidelity.PROMPTS), steps=asked.steps, sampler="", size=SIZE, rounds=1,
        settings=asked.settings, sheet=asked.out / "fidelity.png",
    )  # fmt: skip
    fidelity.report("the small UNet", *fidelity.measure(told, str(file), open_), told)


if __name__ == "__main__":
    main()

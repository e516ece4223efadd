"""The four stages of a mini model, each ready to `fit`: networks, objective, batches, what to look at, what to ship.

A stage keeps its checkpoint, its sheets and its log in OUT/STAGE and, when it ends, puts OUT/NET.safetensors beside
what the other stages left there; what a stage needs and OUT does not have comes from `base`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from limner.config import set_values
from limner.errors import BadData, BadInput, UnknownName
from limner.families.mini import MINI
from limner.models.bert import Bert, BertConfig, student_of
from limner.models.eye import Eye, EyeConfig
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.models.mini_transformer import MiniTransformerConfig
from limner.models.tokenizer import Pieces
from limner.pipeline import Model, find_model, load_part
from limner.place import Place
from limner.rng import seed_of
from limner.train import autoencoder, denoiser, eye, latents, sheet, text
from limner.train.data import OnBad, Pictures, pack
from limner.train.fit import FitConfig, Logged, Losses, Sampled, Saved, fit
from limner.train.ship import ship_net, write_sums
from limner.train.splits import splits

SIZE = 128  # pixels; the side of the training pictures


@dataclass(frozen=True)
class Setup:
    """What a person asks of a stage."""

    data: Path
    out: Path
    place: Place
    config: str = "default"
    settings: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # 0: as many steps as the config says
    base: str = "mini"  # a model whose other networks are used where OUT has none
    start: Path | None = None  # a network of this stage's kind to go on from
    on_bad: OnBad = "skip"
    teacher: Path | None = None
    phrases: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Stage:
    net: str
    model: nn.Module
    objective: Callable[[nn.Module, Any, torch.Generator], Losses]
    batches: Callable[[torch.Generator, int], Any]
    fit: FitConfig
    note: dict[str, Any]
    look: Callable[[nn.Module], Image.Image] | None  # a sheet made by the moving average
    measure: Callable[[nn.Module], dict[str, float]]  # figures on what was held out
    finish: Callable[[nn.Module], None] = lambda _: None  # last touches before shipping
    skipped: tuple[str, ...] = ()


def run(stage: Stage, setup: Setup, stopping: Callable[[], bool] = lambda: False) -> Iterator[Logged | Sampled | Saved]:
    """Fit a stage and, when it is done, ship its network into OUT."""
    out = folder(stage, setup)
    for event in fit(stage.model, stage.objective, stage.batches, stage.fit, out, setup.place, stage.note, stopping):
        if isinstance(event, Saved) and event.done:
            net = averaged(stage, event.ema)
            stage.finish(net)
            ship_net(setup.out, stage.net, net)
            complete(setup)
        yield event


def folder(stage: Stage, setup: Setup) -> Path:
    return setup.out / stage.net


def averaged(stage: Stage, ema: dict[str, Tensor]) -> nn.Module:
    """A network of the stage's kind with the averaged weights."""
    net = MINI.nets[stage.net].build(stage.model.config)
    net.load_state_dict(ema)
    net.eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def complete(setup: Setup) -> None:
    """Bring what OUT still lacks from `base`, so that OUT is a model to paint with."""
    base = find_model(setup.base)
    wanted = [f"{net}.safetensors" for net in MINI.nets] + ["tokenizer.json", "names.txt"]
    for name in wanted if base.is_dir() else []:
        if not (setup.out / name).exists() and (base / name).exists():
            shutil.copyfile(base / name, setup.out / name)
    write_sums(setup.out)


def gather(setup: Setup, cache: Path | None = None) -> tuple[Pictures, Tensor, Tensor]:
    """The pictures, the rows for training and the rows held out."""
    pictures = pack(setup.data, cache or setup.out / "cache", SIZE, setup.on_bad)
    split = splits(pictures.words)
    chosen = [
        torch.tensor([i for i, s in enumerate(split) if (s == "train") == yes], dtype=torch.int64)
        for yes in (True, False)
    ]
    if not len(chosen[0]):
        raise BadData(f"{setup.data} holds only pictures that are set aside; nothing is left to train on")
    return pictures, chosen[0], chosen[1] if len(chosen[1]) else chosen[0][:64]


def configured(setup: Setup, run: FitConfig, *parts: Any) -> tuple[Any, ...]:
    """The run and its parts with the settings that name their fields."""
    known = {f.name for part in (run, *parts) for f in fields(part)}
    for name in setup.settings:
        if name not in known:
            raise UnknownName("setting", name, known)
    run = replace(run, seconds=setup.seconds)
    chosen = [{n: v for n, v in setup.settings.items() if n in {f.name for f in fields(p)}} for p in (run, *parts)]
    return tuple(set_values(part, own) for part, own in zip((run, *parts), chosen, strict=True))


def named(runs: Mapping[str, Any], name: str) -> Any:
    if name not in runs:
        raise UnknownName("config", name, runs)
    return runs[name]


def part(setup: Setup, net: str) -> nn.Module:
    """A finished network that this stage builds on: from OUT, or from the base."""
    for where in (setup.out, find_model(setup.base)):
        if (where / f"{net}.safetensors").exists():
            return load_part(where / f"{net}.safetensors", MINI, net).to(setup.place.device)
    raise BadInput(f"this stage needs a trained {net}: {setup.out} has none, and neither has {setup.base!r}")


def reader(setup: Setup) -> Model:
    """A model that reads words: its text encoder and tokenizer."""
    found = [w / "tokenizer.json" for w in (setup.out, find_model(setup.base)) if (w / "tokenizer.json").exists()]
    if not found:
        raise BadInput(f"this stage needs a tokenizer.json: {setup.out} has none, and neither has {setup.base!r}")
    return Model(MINI, setup.place, {"text": part(setup, "text")}, Pieces(found[0].read_text(encoding="utf-8")))


def begin(setup: Setup, net: str, config: Any) -> nn.Module:
    """A new network, its first weights drawn by its name, or the one to go on from."""
    torch.manual_seed(seed_of(net, "init"))
    model = MINI.nets[net].build(config)
    if setup.start is not None:
        model.load_state_dict(load_part(setup.start, MINI, net).state_dict())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(setup.place.device)


def train_autoencoder(setup: Setup) -> Stage:
    pictures, rows, held = gather(setup)
    tiny = MiniAutoencoderConfig(encoder=(16, 32, 64), decoder=(64, 32, 16))
    run, loss = named(autoencoder.RUNS, setup.config)
    run, loss, config = configured(setup, run, loss, tiny if setup.config == "tiny" else MiniAutoencoderConfig())

    def finish(net: nn.Module) -> None:
        if not loss.frozen_encoder:
            with setup.place.autocast():
                autoencoder.measure_latents(cast(MiniAutoencoder, net), pictures, rows)

    def measure(net: nn.Module) -> dict[str, float]:
        with setup.place.autocast():
            psnr, alpha = autoencoder.reconstruction(cast(MiniAutoencoder, net), pictures, held[:256])
        return {"psnr": psnr.mean().item(), "alpha error": alpha.mean().item()}

    return Stage(
        "autoencoder", begin(setup, "autoencoder", config), autoencoder.autoencoder_loss(loss),
        autoencoder.crops(pictures, rows, loss), run, {"net": asdict(config), "loss": asdict(loss)},
        lambda net: sheet.reconstructions(cast(MiniAutoencoder, net), pictures, held, setup.place),
        measure, finish, pictures.skipped,
    )  # fmt: skip


def train_text(setup: Setup) -> Stage:
    pictures, rows, held = gather(setup)
    words = tuple(pictures.words[i] for i in rows.tolist())
    teacher, pieces, tokenizer = text.find_teacher(setup.teacher)
    tiny = BertConfig(layers=1, width=384, hidden=96, embedding=16)
    run, config = configured(setup, named(text.RUNS, setup.config), tiny if setup.config == "tiny" else BertConfig())
    others = [phrase for path in setup.phrases for phrase in text.read_phrases(path)]
    unseen = [phrase for phrase in sorted(set(others)) if text.held_out(phrase)][::7]
    fresh = {pictures.words[i].name for i in held.tolist()} - {w.name for w in words}
    model = begin(setup, "text", config)
    if setup.start is None and config.hidden == text.TEACHER.hidden:
        chosen = tuple(round(i * (text.TEACHER.layers - 1) / max(1, config.layers - 1)) for i in range(config.layers))
        model.load_state_dict(student_of(teacher.state_dict(), config, chosen))

    def measure(net: nn.Module) -> dict[str, float]:
        texts = {"phrases": unseen[:1000], "names": sorted(fresh)[:500]}
        return {
            f"cosine, unseen {kind}": text.agreement(cast(Bert, net), teacher, pieces, some).mean().item()
            for kind, some in texts.items()
            if some
        }

    def finish(_: nn.Module) -> None:
        setup.out.mkdir(parents=True, exist_ok=True)
        (setup.out / "tokenizer.json").write_text(tokenizer, encoding="utf-8")

    return Stage("text", model, text.distil(teacher), text.phrases(words, others, pieces), run,
                 {"net": asdict(config), "phrases": len(others)}, None, measure, finish, pictures.skipped)  # fmt: skip


def train_eye(setup: Setup, net: str = "eye") -> Stage:
    pictures, rows, held = gather(setup)
    tiny = EyeConfig(widths=(8, 16, 16, 32), blocks=(1, 1, 1, 1))
    run, config = configured(setup, named(eye.RUNS, setup.config), tiny if setup.config == "tiny" else EyeConfig())
    run = replace(run, seed=run.seed + (net == "judge"))  # the judge sees other draws than the eye
    model = reader(setup)

    def measure(net: nn.Module) -> dict[str, float]:
        return eye.retrieval(cast(Eye, net), model, pictures, held)

    def finish(_: nn.Module) -> None:
        names = sorted({w.name.split(":")[0] for w in pictures.words if w.name})
        (setup.out / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")

    return Stage(net, begin(setup, net, config), eye.contrast, eye.batches(pictures, rows, model, config.pixels), run,
                 {"net": asdict(config)}, None, measure, finish, pictures.skipped)  # fmt: skip


def train_denoiser(setup: Setup) -> Stage:
    pictures, rows, held = gather(setup)
    tiny = MiniTransformerConfig(width=64, depth=2, heads=1, hidden=96)
    run, loss = named(denoiser.RUNS, setup.config)
    run, loss, config = configured(setup, run, loss, tiny if setup.config == "tiny" else MiniTransformerConfig())
    coder = cast(MiniAutoencoder, part(setup, "autoencoder"))
    cache = setup.out / "denoiser" / "latents.safetensors"
    if not cache.exists():
        latents.encode(coder, pictures, rows, latents.ComposeConfig(), cache, setup.place)
    stored = latents.load(cache, coder, pictures)
    model = reader(setup)
    model = replace(model, nets={**model.nets, "autoencoder": coder})
    some = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:128]]
    real = model.to_latent(pictures.batch(some))
    words = [pictures.words[i] for i in some.tolist()]
    cond = model.encode([w.name for w in words], [w.style if w.style in MINI.styles else None for w in words])

    def measure(net: nn.Module) -> dict[str, float]:
        with setup.place.autocast():
            return {"held-out velocity error": denoiser.held_out_loss(net, real, cond)}

    return Stage(
        "denoiser", begin(setup, "denoiser", config), denoiser.denoiser_loss(loss),
        denoiser.batches(stored, pictures.words, model, loss), run, {"net": asdict(config), "loss": asdict(loss)},
        lambda net: sheet.samples(replace(model, nets={**model.nets, "denoiser": net})), measure,
        skipped=pictures.skipped,
    )  # fmt: skip


STAGES: dict[str, Callable[[Setup], Stage]] = {
    "autoencoder": train_autoencoder,
    "text": train_text,
    "eye": train_eye,
    "judge": lambda setup: train_eye(setup, "judge"),
    "denoiser": train_denoiser,
}

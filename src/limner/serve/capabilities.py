"""What a worker can do, told once when it starts: models, networks beside them, samplers, and what is not checked.

For the worker process alone: it imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from limner import __version__
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import SCHEDULES
from limner.errors import LimnerError
from limner.families.recognise import Checkpoint, recognise
from limner.pipeline import SHIPPED, find_model
from limner.place import Place, engines, precisions
from limner.provenance.metadata import MADE, PARTLY
from limner.recipe import EFFORTS, VERSION
from limner.registry import Registry
from limner.store import entries, scanned
from limner.tasks.task import TASKS

CHECKS = {"safety": "none", "note": "nothing is checked: no classifier looks at prompts or pictures"}
MARKS = (
    {"where": "PNG text limner", "what": "the recipe, the digests of the weights and the version, as JSON"},
    {"where": "PNG text parameters", "what": "the prompt and settings, as other tools read them"},
    {"where": "XMP Iptc4xmpExt:DigitalSourceType", "what": MADE},
    {"where": "the same, of a picture that began as another", "what": PARTLY},
)


def capabilities(place: Place, default: str, beside: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """Of this process, on a place; `default` is the model of jobs that name none, `beside` what `networks` found."""
    found = {name: checkpoint for name, path in named(default) if (checkpoint := _read(path))}
    parts = {name for name, checkpoint in found.items() if "denoiser" not in checkpoint.parts}
    return {
        "limner": __version__,
        "recipe": VERSION,
        "default": default,
        "models": [_facts(name, checkpoint) for name, checkpoint in found.items() if name not in parts],
        "networks": {kind: sorted(names) for kind, names in beside.items()}
        | ({"part": sorted(parts)} if parts else {}),
        "samplers": _names(SAMPLERS),
        "schedules": _names(SCHEDULES),
        "device": str(place.device),
        "dtype": str(place.dtype).removeprefix("torch."),
        "efforts": EFFORTS,
        "precisions": precisions(place.device.type),
        "engines": engines(place.device.type),
        "keep": place.keep,
        "threads": torch.get_num_threads(),
        **({"memory": place.memory} if place.memory else {}),
        "watch": True,  # a job can be painted with every step shown
        "checks": CHECKS,
        "marks": MARKS,
    }


def _names(registry: Registry[Any]) -> list[dict[str, Any]]:
    return [{"name": name, "aliases": registry.aliases(name)} for name in registry]


def named(default: str) -> Iterator[tuple[str, Path]]:
    """Where models come from, by name: the default, what ships, what was added, what lies in $LIMNER_MODELS."""
    found: dict[str, Path] = {}
    for name in dict.fromkeys((default, *SHIPPED)):
        try:
            found[name] = find_model(name)
        except LimnerError:  # told where a job asks for it
            continue
    found |= {name: Path(entry.path) for name, entry in entries().items() if name not in found}
    for kind, path in scanned():
        if kind == "model" and path.suffix not in (".ckpt", ".pt", ".pth"):
            found.setdefault(_stem(path), path)
    yield from found.items()


def networks() -> dict[str, dict[str, Path]]:
    """What lies in $LIMNER_MODELS beside models, by kind (upscaler, control, embedding, ...) and by name."""
    found: dict[str, dict[str, Path]] = {}
    for kind, path in scanned():
        if kind != "model":
            found.setdefault(kind, {}).setdefault(_stem(path), path)
    return found


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _read(path: Path) -> Checkpoint | None:
    """What the headers of its files tell; nothing of what cannot be read, which hides no other."""
    try:
        return recognise(path)
    except (LimnerError, OSError):
        return None


def _facts(name: str, found: Checkpoint) -> dict[str, Any]:
    family, likes = found.family, found.defaults
    width, height = likes.size
    return {
        "name": name,
        "family": family.name,
        "variant": found.variant,
        "styles": list(family.styles),
        "sizes": list(family.sizes),
        "multiple": family.latent.multiple,
        "factor": family.latent.factor,
        "channels": family.latent.channels,
        "alpha": family.latent.pixels == 4,
        "eye": "eye" in found.parts,
        "tiny": "tiny" in found.parts,
        "parameters": sum(part.parameters for part in found.parts.values()),
        "largest": max(part.parameters for part in found.parts.values()),
        "bytes": sum(file.stat().st_size for file in {f for part in found.parts.values() for f in part.files}),
        "missing": list(found.missing),
        "tasks": ["edit"] if found.variant == "edit" else list(TASKS),
        "defaults": {
            "width": width,
            "height": height,
            "steps": likes.steps,
            "sampler": likes.sampler,
            "schedule": likes.schedule,
            "cfg_scale": likes.cfg_scale,
            "cfg_interval": list(likes.cfg_interval),
            "pag_scale": likes.pag_scale,
            "pag_interval": list(likes.pag_interval),
        },
    }

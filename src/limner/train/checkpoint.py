"""The state of a run in one file: weights, their moving average, optimiser, step. Written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import BadWeights
from limner.weights.io import read_header, read_tensors, write_tensors

NAME = "checkpoint.safetensors"


def save(
    folder: Path,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimisers: dict[str, torch.optim.Optimizer],
    note: dict[str, Any],
) -> Path:
    """Write FOLDER/checkpoint.safetensors under a temporary name, sync, rename; the last one is kept as `previous`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.items()}
    for kind, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{kind}.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    path = folder / NAME
    if path.exists():
        os.replace(path, folder / f"previous-{NAME}")
    write_tensors(path, tensors, {"limner.run": json.dumps(note)})
    return path


def load(
    folder: Path, model: nn.Module, ema: dict[str, Tensor], optimisers: dict[str, torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Put the newest checkpoint of a folder back into place and return its note; None when there is none."""
    path = next((p for p in (folder / NAME, folder / f"previous-{NAME}") if p.exists()), None)
    if path is None:
        return None
    header = read_header(path)
    if "limner.run" not in header.metadata:
        raise BadWeights(f"{path} is a weight file, not a checkpoint of a run")
    tensors = read_tensors(path)
    model.load_state_dict(_under(tensors, "model."))
    ema.update({name: value.clone() for name, value in _under(tensors, "ema.").items()})
    for kind, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, f"{kind}.").items():
            index, _, field = name.partition(".")
            state.setdefault(int(index), {})[field] = value.clone()
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    note: dict[str, Any] = json.loads(header.metadata["limner.run"])
    return note


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

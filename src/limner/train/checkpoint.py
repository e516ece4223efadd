"""The state of a run in one file: weights, their moving average, optimiser, step. Written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limner.errors import BadInput, BadWeights
from limner.weights.io import read_header, read_tensors, write_tensors
from limner.weights.layout import account

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
    if path.exists():  # by a link: at no moment is there no checkpoint under its name
        spare = folder / f".spare-{NAME}"
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:  # a file system without links
            shutil.copyfile(path, spare)
        os.replace(spare, folder / f"previous-{NAME}")
        spare.unlink(missing_ok=True)  # renaming between two names of one file leaves both
    write_tensors(path, tensors, {"limner.run": json.dumps(note)})
    return path


def load(
    folder: Path,
    model: nn.Module,
    ema: dict[str, Tensor],
    optimisers: dict[str, torch.optim.Optimizer],
    note: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Put the newest checkpoint of a folder back into place and return its note; None when there is none.

    Raises BadInput where the checkpoint's note disagrees with `note`, before anything is changed.
    """
    path = next((p for p in (folder / NAME, folder / f"previous-{NAME}") if p.exists()), None)
    if path is None:
        return None
    header = read_header(path)
    if "limner.run" not in header.metadata:
        raise BadWeights(f"{path} is a weight file, not a checkpoint of a run")
    try:
        found: dict[str, Any] = json.loads(header.metadata["limner.run"])
        if not isinstance(found, dict) or not {"step", "seconds"} <= set(found):
            raise ValueError("its note does not say how far it went")
    except ValueError as error:
        raise BadWeights(f"{path} is not a checkpoint of a run: {error}") from error
    for name, value in (note or {}).items():
        if name in found and found[name] != json.loads(json.dumps(value)):
            raise BadInput(f"{path} was made with another {name} ({found[name]}, not {value}); take another --out")
    tensors = read_tensors(path, header)
    for prefix, wanted in (("model.", model.state_dict()), ("ema.", ema)):
        shapes = {name: value.shape for name, value in _under(tensors, prefix).items()}
        account(shapes, {name: value.shape for name, value in wanted.items()}, str(path))
    kinds = {name.partition(".")[0] for name in tensors} - {"model", "ema"}
    if not kinds <= set(optimisers):
        raise BadWeights(f"{path} was saved under {', '.join(sorted(kinds))}, and this run has {', '.join(optimisers)}")
    try:
        states = {kind: _state(_under(tensors, f"{kind}."), optimiser) for kind, optimiser in optimisers.items()}
    except (ValueError, IndexError) as error:
        raise BadWeights(f"{path} is not a checkpoint of this run: {error}") from error
    model.load_state_dict(_under(tensors, "model."))
    for name, value in _under(tensors, "ema.").items():
        ema[name].copy_(value)
    for kind, optimiser in optimisers.items():
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": states[kind], "param_groups": groups})
    return found


def _state(tensors: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """What an optimiser remembers of each parameter, by its number, of the parameter's own shape."""
    params = [param for group in optimiser.param_groups for param in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        param = params[int(index)]
        if value.ndim and value.shape != param.shape:
            raise ValueError(f"the optimiser's {field} is {list(value.shape)} and the parameter {list(param.shape)}")
        # in the parameter's own order in memory: the fused AdamW walks both as flat memory and mixes them up otherwise
        kept = torch.empty_like(param, dtype=value.dtype).copy_(value) if value.ndim else value.clone()
        state.setdefault(int(index), {})[field] = kept
    return state


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

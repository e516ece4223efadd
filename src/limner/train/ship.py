"""From a finished run to a folder that `limner.load` opens: one safetensors file a network, and their digests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from limner.config import to_json
from limner.weights.io import sha256, write_tensors


def ship_net(
    folder: Path, net: str, module: nn.Module, state: dict[str, Tensor] | None = None, half: bool = True
) -> Path:
    """Write FOLDER/NET.safetensors with its config inside: matrices in fp16 where `half`, vectors in fp32."""
    state = state or module.state_dict()
    stored = {n: v.half() if half and v.ndim > 1 and v.is_floating_point() else v for n, v in state.items()}
    for name, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} of the {net} has values that fp16 cannot hold")
    path = folder / f"{net}.safetensors"
    write_tensors(path, stored, {"limner.net": net, "limner.config": to_json(module.config)})
    return path


def write_sums(folder: Path) -> None:
    """FOLDER/SHA256SUMS over every weight file, the tokenizer and the names, in the form of sha256sum."""
    files = sorted(
        f for f in folder.iterdir() if f.suffix in (".safetensors", ".json", ".txt") and not f.name.startswith(".")
    )
    lines = [f"{sha256(file)}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")

"""Networks of no family, in files or folders of their own: those that steer a UNet by a picture, see, or enlarge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Any

from limner.errors import BadWeights
from limner.families import FAMILIES, Kind, Naming, Shapes
from limner.families.nets import KINDS, always
from limner.families.recognise import IGNORED, Part, component_files, kind_of, part_of, read_json, words_of
from limner.families.seeing import SEEING
from limner.models import controlnet, t2i_adapter
from limner.weights.io import Entry, read_header, refuse_link
from limner.weights.layout import Rule
from limner.weights.names import controlnet as control_names
from limner.weights.names import t2i_adapter as adapter_names

PREFIXES = ("control_model.", "adapter.")  # of names in files
REFUSED = {  # a name that only such a file has -> what it is
    "task_embedding": "a ControlNet of many kinds (Union)",
    "controlnet_blocks.0.weight": "a ControlNet of a transformer (SD3, FLUX)",
    "lora_controlnet": "a Control-LoRA",
    "style_embedding": "a T2I-Adapter for styles",
}


def _control_rules(shapes: Shapes) -> list[Rule]:
    levels, steps = _numbers(shapes, "down_blocks."), _numbers(shapes, "down_blocks.0.resnets.")
    depths = [len(_numbers(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks.")) for i in sorted(levels)]
    widenings = len(_numbers(shapes, "controlnet_cond_embedding.blocks.")) // 2
    return control_names.diffusers(len(steps), depths, widenings)


def _adapter_rules(shapes: Shapes) -> list[Rule]:
    levels, blocks = _numbers(shapes, "body."), _numbers(shapes, "body.0.resnets.")
    return adapter_names.diffusers(len(levels), len(blocks), "body.0.out_conv.weight" in shapes)


def _numbers(names: Iterable[str], start: str) -> set[str]:
    return {name.removeprefix(start).split(".")[0] for name in names if name.startswith(start)}


CONTROLNET = Kind(
    "ControlNet",
    controlnet.ControlNet,
    lambda shapes, _: controlnet.config_of(shapes),
    (
        always("original", "input_hint_block.0.weight", "zero_convs.0.0.weight"),
        Naming(
            "diffusers",
            ("controlnet_cond_embedding.conv_in.weight", "controlnet_down_blocks.0.weight"),
            _control_rules,
            lambda config: control_names.diffusers(config.blocks, config.depths, len(config.hint) - 1),
        ),
    ),
    net="control",
)
T2I_ADAPTER = Kind(
    "T2I-Adapter",
    t2i_adapter.T2iAdapter,
    lambda shapes, _: t2i_adapter.config_of(shapes),
    (
        always("original", "conv_in.weight", "body.0.block1.weight"),
        always("original, light", "body.0.in_conv.weight", "body.0.body.0.block1.weight"),
        Naming(
            "diffusers",
            ("body.0.resnets.0.block1.weight",),
            _adapter_rules,
            lambda config: adapter_names.diffusers(len(config.widths), config.blocks, config.light),
        ),
    ),
    net="adapter",
)
ADDONS: list[Kind] = [CONTROLNET, T2I_ADAPTER, *SEEING]


def read_addon(path: FilePath, *kinds: Kind) -> Part:
    """The network in a safetensors file, or in a folder with a config.json, that is of one of some kinds, or of any.

    In a whole checkpoint that holds such a network beside its own, the others are passed over.
    Raises BadWeights where it is of another kind, of none, or cannot be read.
    """
    if not path.exists():
        raise BadWeights(f"{path} does not exist")
    files = component_files(path, "") if path.is_dir() else [path]
    if path.is_dir():
        for file in files:
            refuse_link(file, path)
    headers = {file: read_header(file) for file in files}
    told = read_json(path / "config.json") if (path / "config.json").exists() else {}
    groups: dict[str, dict[str, Entry]] = {}
    for header in headers.values():
        for name, entry in header.entries.items():
            prefix = next((p for p in PREFIXES if name.startswith(p)), "")
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = entry
    for prefix, entries in groups.items():
        if refused := next((what for mark, what in REFUSED.items() if mark in entries), None):
            raise BadWeights(f"{path} is {refused}, which is not built here")
        if found := kind_of(entries, kinds or ADDONS):
            _check_alone(path, [name for other, group in groups.items() if other != prefix for name in group])
            _check_hint(path, found[0], told)
            return part_of(headers, prefix, entries, *found, found[0].net, json.dumps(told))
    wanted = " or ".join(kind.name for kind in kinds or ADDONS)
    other = next((found[0].name for group in groups.values() if (found := kind_of(group, [*ADDONS, *KINDS]))), "")
    first = ", ".join(name for group in groups.values() for name in list(group)[:3])
    raise BadWeights(f"{path} is no {wanted}; it " + (f"is of the kind {other}" if other else f"begins with {first}"))


def _check_alone(path: FilePath, others: list[str]) -> None:
    """Refuse names beside the network that are not of the checkpoint it lies in."""
    known = tuple(prefix for family in FAMILIES.values() for prefix, _ in family.single.values() if prefix)
    if strange := [name for name in others if not (name.startswith(known) or IGNORED.fullmatch(name))]:
        raise BadWeights(f"{path}: {len(strange)} tensors are of no network known here, the first: {strange[0]}")


def _check_hint(path: FilePath, kind: Kind, told: Mapping[str, Any]) -> None:
    """Refuse the few ControlNets that want their picture, or what they give, in another form than all others."""
    if kind is CONTROLNET and (told.get("global_pool_conditions") or "shuffle" in words_of(path.stem)):
        raise BadWeights(f"{path} gives averages over the picture (shuffle), which is not built here")
    if kind is CONTROLNET and told.get("controlnet_conditioning_channel_order", "rgb") != "rgb":
        raise BadWeights(f"{path} wants its picture as {told['controlnet_conditioning_channel_order']!r}, and not RGB")

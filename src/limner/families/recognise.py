"""What a file or folder of weights is, from names, shapes and a few words of JSON: no tensor is read, no class is made.

Configs are derived from shapes, and then the family is named; so pruned and tiny kin of a family are known as well.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor

import limner.families.mini
import limner.families.sd
import limner.families.sd3  # noqa: F401  their imports register them
from limner.diffusion.path import Discrete, Path
from limner.errors import BadWeights
from limner.families import FAMILIES, Defaults, Family, Kind, Naming
from limner.families.nets import CLIP, KINDS
from limner.weights.forms import SUFFIXES, weights_header, weights_of
from limner.weights.io import NAMES, Entry, Header, refuse_link
from limner.weights.layout import reshaped, translate

IGNORED = re.compile(
    r"model_ema\..*|betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_.*|posterior_.*|logvar|denoiser\.sigmas|v_pred|ztsnr"
    r"|.*\.logit_scale|lora_.*|first_stage_model\.loss\..*|cond_stage_model\.(transformer\.)?logit_scale"
)  # what training left in published files, and marks that are not weights
CLASSES = {  # the closed table of what a diffusers folder may name
    "UNet2DConditionModel": "unet", "SD3Transformer2DModel": "mmdit", "AutoencoderKL": "vae",
    "AutoencoderTiny": "tiny autoencoder", "CLIPTextModel": "clip", "CLIPTextModelWithProjection": "clip",
    "T5EncoderModel": "t5",
}  # fmt: skip
LAYERS = {"layers", "depth", "depths", "middle", "blocks", "dual"}  # fields of configs that count them
MOST_LEVELS, MOST_LAYERS, MOST_WIDTH = 16, 100, 2**18  # the most that is known: 5, 38 (SD3.5 large), 49,408 (words)
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "v": "v", "sample": "x0"}  # their words and ours
COMPONENTS = {
    "unet": "denoiser", "transformer": "denoiser", "vae": "autoencoder", "text_encoder": "text",
    "text_encoder_2": "text_2", "text_encoder_3": "text_3",
}  # fmt: skip
ELSEWHERE = {"cond_stage_model.1.transformer.": "text_2", "vae.": "autoencoder"}  # prefixes of stable-diffusion.cpp
ASIDE = {"scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "safety_checker", "feature_extractor", "image_encoder"}


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint, as it lies in files."""

    net: str
    kind: Kind
    naming: Naming
    prefix: str  # of its names in the files
    files: tuple[FilePath, ...]
    entries: Mapping[str, Entry]  # by the file's names, without the prefix
    config: Any

    @property
    def layout(self) -> str:
        return self.naming.name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def parameters(self) -> int:
        return sum(prod(entry.shape) for entry in self.entries.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """How many parameters are kept in each type."""
        counts: Counter[str] = Counter()
        for entry in self.entries.values():
            counts[(entry.kind or NAMES[entry.dtype]).lower()] += prod(entry.shape)
        return dict(counts.most_common())

    def tensors(self) -> dict[str, Tensor]:
        """The weights under our names, mapped from the files where they need be neither turned nor unpacked."""
        found: dict[str, Tensor] = {}
        for file in self.files:
            inside = weights_header(file).entries
            mine = [n for name in self.entries if (n := self.prefix + name) in inside]
            found |= {n.removeprefix(self.prefix): v for n, v in weights_of(file, mine).items()}
        return translate(found, self.naming.reads(self.shapes))


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder that was recognised."""

    path: FilePath
    family: Family
    variant: str
    layout: str
    parts: Mapping[str, Part]
    metadata: Mapping[str, str]
    diffusion: Path  # the path that its denoiser was trained on, as far as the files tell

    @property
    def missing(self) -> tuple[str, ...]:
        """Nets that the family needs and that are not here."""
        return tuple(net for net in self.family.needs if net not in self.parts)

    @cached_property
    def defaults(self) -> Defaults:
        """Those of the family, or of the few-step kind that the name or title says this is."""
        inside = any(getattr(part.config, "guidance", 0) for part in self.parts.values())
        if inside and "lcm" in self.family.few:
            return replace(self.family.few["lcm"], cfg_scale=8.0)  # guidance built in (arXiv 2310.04378, section 4.3)
        said = words_of(self.path.stem) | words_of(self.metadata.get("modelspec.title", ""))
        return next((few for word, few in self.family.few.items() if word in said), self.family.defaults)


def words_of(name: str) -> set[str]:
    """The words of a file's name: sd_xl_turbo-1.0 is sd, xl, turbo, 1, 0."""
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def recognise(path: FilePath, variant: str = "") -> Checkpoint:
    """The checkpoint at a path: a safetensors or GGUF file, a diffusers folder, or a folder of networks' own files.

    variant: of the files in a diffusers folder ("fp16"); without it the plain ones, or the only ones, are taken.
    Raises BadWeights where something is of no known kind or family, or cannot be read.
    """
    if not path.exists():
        raise BadWeights(f"{path} does not exist")
    if path.is_dir() and (path / "model_index.json").exists():
        return _folder(path, variant)
    files = [path] if path.is_file() else weight_files(path)
    parts: dict[str, Part] = {}
    metadata: dict[str, str] = {}
    marks: set[str] = set()
    for file in files:
        header = weights_header(file)
        metadata |= header.metadata
        marks |= header.entries.keys() & {"v_pred", "ztsnr"}
        for part in _parts({file: header}, file.stem if path.is_dir() else ""):
            if part.net in parts:
                raise BadWeights(f"{path}: {parts[part.net].files[0].name} and {file.name} both hold a {part.net}")
            parts[part.net] = part
    if not parts:
        first = ", ".join(list(header.entries)[:3])
        raise BadWeights(f"{path} is of no family that is known here ({', '.join(FAMILIES)}); its first names: {first}")
    layout = "folder" if path.is_dir() else "single file" if any(p.prefix for p in parts.values()) else "component"
    facts = {"prediction_type": metadata.get("modelspec.prediction_type", "v" if "v_pred" in marks else "")}
    facts["rescale_betas_zero_snr"] = "true" if "ztsnr" in marks else ""
    return _named(path, layout, parts, metadata, facts)


def weight_files(path: FilePath) -> list[FilePath]:
    """The weight files that lie in a folder, at least one."""
    files = sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}"))
    files = [file for file in files if not file.name.endswith("checkpoint.safetensors")]
    if not files:
        raise BadWeights(f"{path} holds no {' or '.join(SUFFIXES)} file")
    return files


def _parts(headers: Mapping[FilePath, Header], hint: str) -> Iterator[Part]:
    """Each network in some files that belong together; `hint` is the net's name where a folder tells it."""
    known = {prefix: net for family in FAMILIES.values() for net, (prefix, _) in family.single.items()} | ELSEWHERE
    groups: dict[str, dict[str, Entry]] = {}
    note: dict[str, str] = {}
    for header in headers.values():
        note |= header.metadata
        for name, entry in header.entries.items():
            if not IGNORED.fullmatch(name):
                prefix = next((p for p in sorted(known, key=len, reverse=True) if name.startswith(p)), "")
                groups.setdefault(prefix, {})[name.removeprefix(prefix)] = entry
    where = str(next(iter(headers)))
    for prefix, entries in groups.items():
        found = kind_of(entries, KINDS)
        if found is None:
            first = ", ".join(list(entries)[:3])
            raise BadWeights(f"{where}: {len(entries)} tensors are of no network known here, the first: {first}")
        kind, naming = found
        net = known.get(prefix) or _net(kind, hint)
        said = note.get(f"limner.{net}.config") or note.get("limner.config", "{}")
        part = part_of(headers, prefix, entries, kind, naming, net, said)
        if kind is CLIP and not (prefix or hint) and part.config.width >= 1280:
            part = replace(part, net="text_2")  # bigG, in a file of its own
        yield part


def part_of(
    headers: Mapping[FilePath, Header], prefix: str, entries: Mapping[str, Entry], kind: Kind, naming: Naming,
    net: str, said: str = "{}",
) -> Part:  # fmt: skip
    """A group of entries as a network, once names and shapes are found to be whole; `said`: JSON of a config."""
    where = str(next(iter(headers)))
    files = tuple(file for file, header in headers.items() if any(prefix + n in header.entries for n in entries))
    shapes = {name: entry.shape for name, entry in entries.items()}
    try:
        if empty := next((name for name, shape in shapes.items() if 0 in shape), None):
            raise ValueError(f"{empty!r}, which is empty,")
        config = kind.config_of(reshaped(shapes, naming.reads(shapes), where=where), said)
        _plausible(config)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise BadWeights(f"{where}: this {kind.name} is not whole: {error} is missing or misshapen") from error
    return Part(net, kind, naming, prefix, files, entries, config)


def _plausible(config: Any) -> None:
    """Raise ValueError for sizes that no network has, so that no file makes one of a million layers be built."""
    for name, value in vars(config).items():
        if is_dataclass(value):
            _plausible(value)
        sizes = [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, int)]
        if len(sizes) > MOST_LEVELS or any(n > (MOST_LAYERS if name in LAYERS else MOST_WIDTH) for n in sizes):
            raise ValueError(f"a {name} of {value}, which no network has,")


def kind_of(names: Mapping[str, Any], kinds: Sequence[Kind]) -> tuple[Kind, Naming] | None:
    """The first kind whose marks are all among the names."""
    for kind in kinds:
        for naming in kind.namings:
            if all(mark in names for mark in naming.marks):
                return kind, naming
    return None


def _net(kind: Kind, hint: str) -> str:
    """What a network is called: by its kind, unless its file's or folder's name says more."""
    called = {net for family in FAMILIES.values() for net, of in family.nets.items() if of is kind}
    return hint if hint in called else kind.net


def _folder(path: FilePath, variant: str) -> Checkpoint:
    index = read_json(path / "model_index.json")
    parts: dict[str, Part] = {}
    metadata: dict[str, str] = {}
    for component, said in index.items():
        if component.startswith("_") or not isinstance(said, list) or component in ASIDE or said[:1] == [None]:
            continue
        if component not in COMPONENTS:
            raise BadWeights(f"{path}: component {component!r} is not known here; known are {', '.join(COMPONENTS)}")
        if len(said) != 2 or str(said[1]) not in CLASSES:
            raise BadWeights(f"{path}: {component} is to be a {said[1:]}, and only {', '.join(CLASSES)} are built here")
        files = component_files(path / component, variant)
        headers = {}
        for file in files:
            refuse_link(file, path)
            headers[file] = weights_header(file)
            metadata |= headers[file].metadata
        for part in _parts(headers, COMPONENTS[component]):
            if part.kind.name != CLASSES[said[1]]:
                raise BadWeights(f"{path}: {component} is to be a {said[1]}, and its weights are a {part.kind.name}'s")
            parts[part.net] = part
    if not parts:
        raise BadWeights(f"{path}: model_index.json names no component that is known here ({', '.join(COMPONENTS)})")
    scheduler = path / "scheduler" / "scheduler_config.json"
    facts = {name: str(value).lower() for name, value in (read_json(scheduler) if scheduler.exists() else {}).items()}
    return _named(path, "diffusers", parts, metadata, facts)


def component_files(folder: FilePath, variant: str) -> list[FilePath]:
    """The files of one component, whole or in shards: of the variant asked for, else the plain ones, else fp16's."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index*.json")])
    files = [file for file in files if not re.search(r"-\d{5}-of-\d{5}", file.name)]
    tags = {file: "".join(set(file.name.split(".")[1:-1]) - {"safetensors", "index"}) for file in files}
    chosen = [file for file in files if tags[file] == variant]
    chosen = chosen or sorted(files, key=lambda file: tags[file] != "fp16") * (not variant)
    if not chosen:
        there = ", ".join(f.name for f in sorted(folder.glob("*"))[:5]) if folder.exists() else "no such folder"
        kind = f" of variant {variant}" if variant else ""
        raise BadWeights(f"{folder} holds no .safetensors file{kind}; there: {there}")
    if chosen[0].suffix == ".safetensors":
        return chosen[:1]
    told = read_json(chosen[0]).get("weight_map")
    named = list(told.values()) if isinstance(told, dict) else []
    if bad := [name for name in named if not isinstance(name, str) or FilePath(name).name != name] or not named:
        raise BadWeights(f"{chosen[0]} names {str(bad)[:80]}; shards lie beside their index")
    if gone := [name for name in named if not (folder / name).exists()]:
        raise BadWeights(f"{folder} lacks {gone[0]}, which its index names")
    return [folder / name for name in sorted(set(named))]


def read_json(path: FilePath) -> dict[str, Any]:
    """A small JSON object of a folder."""
    try:
        if path.stat().st_size > 64 * 2**20:
            raise BadWeights(f"{path} is larger than any index is")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadWeights(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{path} is not JSON: {str(error)[:100]}") from error
    if not isinstance(found, dict):
        raise BadWeights(f"{path} is no JSON object")
    return found


def _named(
    path: FilePath, layout: str, parts: Mapping[str, Part], metadata: Mapping[str, str], facts: Mapping[str, str]
) -> Checkpoint:
    """The family and variant that parts make together."""
    if "denoiser" in parts:
        denoiser = parts["denoiser"]
        claims = ((family, family.claims(denoiser.kind, denoiser.config)) for family in FAMILIES.values())
        found = next(((family, variant) for family, variant in claims if variant), None)
        if found is None:
            raise BadWeights(f"{path}: its {denoiser.kind.name} is of no family that is known here ({denoiser.config})")
        family, variant = found
    else:
        latents = {p.config.channels for net, p in parts.items() if net in ("autoencoder", "tiny")}
        fit = [f for f in FAMILIES.values() if not latents or f.latent.channels in latents]
        holds = (f for f in fit if all(f.nets.get(net) is part.kind for net, part in parts.items()))
        family, variant = next(holds, FAMILIES["sd15"]), "part"
    return Checkpoint(
        path, family, variant, layout, dict(parts), dict(metadata), _diffusion(path, family, variant, facts)
    )


def _diffusion(path: FilePath, family: Family, variant: str, facts: Mapping[str, str]) -> Path:
    """The family's path, with the prediction and the noise that the files, or at least their name, speak of."""
    if not isinstance(family.path, Discrete):
        return family.path
    hints = [variant, *sorted(words_of(path.stem))]
    hinted = next((family.predictions[word] for word in hints if word in family.predictions), None)
    said: Any = PREDICTIONS.get(facts.get("prediction_type", "")) or hinted
    zero = facts.get("rescale_betas_zero_snr") == "true"
    return replace(family.path, prediction=said or family.path.prediction, zero_snr=zero)

"""Floor 3: a page of facts a family, and a way to recognise it (`recognise.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from limner.diffusion.path import Path
from limner.registry import Registry
from limner.types import LatentSpec
from limner.weights.layout import Rule

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Naming:
    """One way in which files name a network's weights."""

    name: str  # "original", "diffusers", ...
    marks: tuple[str, ...]  # names, without a prefix, that only such a file has
    reads: Callable[[Shapes], Sequence[Rule]]  # the rules for a file of these names and shapes
    writes: Callable[[Any], Sequence[Rule]]  # the same rules, for a network of this config


@dataclass(frozen=True)
class Kind:
    """A kind of network: what it is built from, and by which names it is known."""

    name: str
    build: Callable[[Any], nn.Module]
    config_of: Callable[[Shapes, str], Any]  # from our names and shapes, and what the file's metadata says of a config
    namings: tuple[Naming, ...]
    net: str  # what a family calls it where nothing else says

    def naming(self, name: str) -> Naming:
        return next(naming for naming in self.namings if naming.name == name)


@dataclass(frozen=True)
class Tower:
    """A text encoder's part in what the denoiser is told."""

    net: str
    skip: int = 0  # layers from the top that are left out of its states
    normed: bool = False  # whether the last norm is laid over them
    pad: int = 49407  # what fills a chunk
    quick: bool = True  # OpenAI's activation
    cut: bool = False  # diffusers' folders leave the unused last layer out, so that an odd number is left


@dataclass(frozen=True)
class Defaults:
    """What a picture is painted with where nobody says otherwise."""

    size: tuple[int, int]  # width, height
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    pag_scale: float = 0.0
    pag_interval: tuple[float, float] = (0.0, 1.0)
    late: float = 0.75  # the time after which layout stands: for wide latents early (arXiv 2403.03206, section 5.3.2)


@dataclass(frozen=True)
class Family:
    """Facts, no tensors."""

    name: str
    nets: Mapping[str, Kind]
    needs: tuple[str, ...]  # nets without which it cannot paint
    single: Mapping[str, tuple[str, str]]  # net -> prefix and naming in a single file
    path: Path
    latent: LatentSpec
    sizes: tuple[int, int]  # the least and the greatest side that it paints well
    defaults: Defaults
    claims: Callable[[Kind, Any], str | None]  # the variant that a denoiser of this config is, if it is one
    folders: Mapping[str, str] = field(default_factory=dict)  # net -> its folder in diffusers' layout
    few: Mapping[str, Defaults] = field(default_factory=dict)  # a word in a file's name -> defaults of its kind
    predictions: Mapping[str, str] = field(default_factory=dict)  # variant or word in a file's name -> prediction
    towers: tuple[Tower, ...] = ()  # in the order in which their states are laid side by side
    zero_negative: bool = False  # an empty negative prompt is zeros, not the encoding of "" (sgm, diffusers)
    pieces: int = 77  # the longest prompt in word pieces, or the length of a chunk
    styles: tuple[str, ...] = ()


FAMILIES: Registry[Family] = Registry("family")

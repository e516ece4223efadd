"""Floor 3: a page of facts a family, and a way to recognise it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from limner.diffusion.path import Path
from limner.errors import BadWeights
from limner.registry import Registry
from limner.types import LatentSpec
from limner.weights.layout import Rule

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Net:
    """One network of a family: its config's class and how it is built from one."""

    config: type[Any]
    build: Callable[[Any], nn.Module]
    mark: str  # a weight that only this network has


@dataclass(frozen=True)
class Layout:
    """One way in which people have the weights: the rules that name them, for each network."""

    name: str
    rules: Mapping[str, Sequence[Rule]]


@dataclass(frozen=True)
class Defaults:
    """What a picture is painted with where nobody says otherwise."""

    size: tuple[int, int]  # width, height
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    cfg_interval: tuple[float, float]


@dataclass(frozen=True)
class Family:
    """Facts, no tensors."""

    name: str
    nets: Mapping[str, Net]
    layouts: tuple[Layout, ...]
    path: Path
    latent: LatentSpec
    sizes: tuple[int, int]  # the least and the greatest side that it paints well
    pieces: int  # the longest prompt, in word pieces
    styles: tuple[str, ...]
    defaults: Defaults

    def detect(self, shapes: Shapes) -> tuple[Layout, str] | None:
        """The layout and network that a file of these names and shapes is, if it is of this family."""
        for layout in self.layouts:
            for net, rules in layout.rules.items():
                mark = self.nets[net].mark
                if any(rule.ours == "{}" and rule.theirs.replace("{}", mark) in shapes for rule in rules):
                    return layout, net
        return None


FAMILIES: Registry[Family] = Registry("family")


def detect(shapes: Shapes, where: str) -> tuple[Family, Layout, str]:
    """The family, layout and network of a file, from names and shapes alone."""
    from limner.families import mini  # noqa: F401  its import registers it

    for family in FAMILIES.values():
        if found := family.detect(shapes):
            return family, *found
    first = ", ".join(list(shapes)[:3])
    raise BadWeights(f"{where} is of no family that is known here ({', '.join(FAMILIES)}); its first names: {first}")

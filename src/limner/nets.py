"""The networks of a model in memory: built around their files, brought to their place, and let go to make room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from limner.families.recognise import Part
from limner.memory import trim
from limner.nn import fp8, int8
from limner.nn.driven import Driven
from limner.nn.fused import fusing
from limner.nn.narrow import narrowed
from limner.nn.packed import packed
from limner.nn.recorded import Recorded
from limner.nn.streamed import copied, is_table, streamed, tabled
from limner.nn.upsample import Upsample, folding
from limner.place import Place
from limner.store import home
from limner.weights.io import known_sha256, release
from limner.weights.layout import account

LARGE = 64 * 2**20  # bytes in the file from which on a network makes room for others: mini's, and tiny ones, do not
FP32 = 4  # bytes
EIGHT = {"int8": int8, "fp8": fp8}  # who knows which layers multiply in 8 bits
Net = TypeVar("Net", bound=nn.Module)


class Nets(Mapping[str, nn.Module]):
    """Networks as they were mapped from files, each brought to its place when it is first asked for.

    Where one is kept at a time, the large one that was there goes, whichever model it belongs to: who holds a network
    longer than he uses it keeps it in memory. What the layout of a file made us turn or join is a copy in memory, in
    the file's type, and stays with the mapped network.
    """

    _all: ClassVar[WeakValueDictionary[int, Nets]] = WeakValueDictionary()

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        place: Place,
        exact: Sequence[str] = (),
        files: Mapping[str, Sequence[Path]] | None = None,
    ) -> None:
        """exact: networks that stay in fp32. files: of each network's weights, by which an engine knows its graphs."""
        self._bare, self._place, self._exact, self._files = dict(nets), place, tuple(exact), files or {}
        self._ready: dict[str, nn.Module] = {}
        self._all[id(self)] = self

    def __getitem__(self, net: str) -> nn.Module:
        if net not in self._ready:
            bare = self._bare[net]
            if self._place.keep == "one" and size(bare) >= LARGE:
                for each in list(self._all.values()):
                    each.drop()
                trim()
            self._ready[net] = self._made(net)
        return self._ready[net]

    def _made(self, net: str) -> nn.Module:
        """A network ready to be asked."""
        bare, engine = self._bare[net], self._place.engine if net == "denoiser" else "torch"
        if engine == "openvino":
            return self._driven(bare)
        mine = bare if self._place.keep == "all" else copied(bare)
        there = placed(mine, self._place_of(net), pack=net == "denoiser")
        if engine == "torch":
            return there
        return Recorded(there, self._place, home() / "compiled" if engine == "compiled" else None)

    def _driven(self, bare: nn.Module) -> Driven:
        """The denoiser whose arithmetic another engine does."""
        files, place, folder = self._files.get("denoiser", ()), self._place, home() / "graphs"
        digest = lambda: " ".join(known_sha256(file, folder) for file in files)  # noqa: E731
        ours = replace(place, engine="torch")  # who rehearses
        lay = (lambda net: ours.settle(packed(net, ours.dtype, lambda _: None))) if ours.packs else None
        return Driven(bare, place.dtype, digest, folder if files else None, place.small == "int8", lay)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bare)

    def __len__(self) -> int:
        return len(self._bare)

    def bare(self, net: str) -> nn.Module:
        """A network for who looks at its kind and config alone: nothing is brought anywhere."""
        return self._bare[net]

    def exactly(self, net: str) -> nn.Module:
        """A network in fp32 for once, where its own type was not enough."""
        return placed(copied(self._bare[net]), replace(self._place, dtype=torch.float32, small=""))

    def undriven(self, net: str) -> nn.Module:
        """A network whose arithmetic is our own, in the machine's own type where it would have been the engine's."""
        if net == "denoiser" and self._place.engine == "openvino":
            return placed(copied(self._bare[net]), replace(self._place, small="", engine="torch"), pack=True)
        ready = self[net]
        return ready.net if isinstance(ready, Recorded) else ready

    @property
    def untouched(self) -> bool:
        """Whether there are large ones, and nothing was asked for yet."""
        return not self._ready and any(size(net) >= LARGE for net in self._bare.values())

    def at(self, place: Place) -> Nets:
        """The same networks for another place; before any of them was asked for."""
        return Nets(self._bare, place, self._exact, self._files)

    def drop(self) -> None:
        """Let the large ones go, back to their files, where one is kept at a time."""
        if self._place.keep == "one":
            self._ready = {net: there for net, there in self._ready.items() if size(self._bare[net]) < LARGE}

    def weight(self, net: str) -> int:
        """Bytes that a network will take when it is brought to its place; 0: it is there."""
        bare, place = self._bare[net], self._place_of(net)
        return 0 if net in self._ready else sum((*_sizes(bare, place, False), *_sizes(bare, place, True)))

    def layer(self, net: str) -> int:
        """Bytes that the largest layer of a network will take, with all that is not streamed."""
        if net in self._ready:
            return 0
        bare, place = self._bare[net], self._place_of(net)
        if size(bare) < LARGE:
            return self.weight(net)
        there, streamed = (list(_sizes(bare, place, kind)) for kind in (False, True))
        return sum(there) + max(streamed, default=0) * (2 if place.fetches else 1)  # one computes, one is brought

    def _place_of(self, net: str) -> Place:
        wide = torch.float32 if net in self._exact else self._place.dtype
        return replace(self._place, dtype=wide, small=self._place.small if net == "denoiser" else "")


class Undrawn(TorchFunctionMode):
    """Layers draw no first weights: files bring them, and a draw on meta imports torch's compiler, which takes 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        return told["tensor"] if func in (init.normal_, init.uniform_, init.kaiming_uniform_) else func(*args, **told)


def build(part: Part, partial: bool = False, quick: bool | None = None) -> nn.Module:
    """A network with the weights of its files, mapped where they need not be turned; nothing is settled yet."""
    config = part.config if quick is None or not hasattr(part.config, "quick") else replace(part.config, quick=quick)
    where = str(part.files[0])
    with torch.device("meta"), Undrawn():
        built = part.kind.build(config)
    wanted = {name: tuple(value.shape) for name, value in built.state_dict().items()}
    tensors = part.tensors()
    missing = account({name: tuple(value.shape) for name, value in tensors.items()}, wanted, where, partial)
    for name in missing:
        norm = name.endswith(".weight") and "norm" in name
        tensors[name] = torch.ones(wanted[name]) if norm else torch.zeros(wanted[name])
    built.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
    return built.eval().requires_grad_(False)


def size(net: nn.Module) -> int:
    """Bytes of its weights, as they are now."""
    return sum(value.numel() * value.element_size() for value in net.parameters())


STREAMED = (nn.Linear, nn.Conv2d, nn.Embedding)


def _sizes(net: nn.Module, place: Place, streamed: bool) -> Iterator[int]:
    """Bytes of each layer at its place, of those that can be streamed or of the others.

    Weights of products are in the place's type, all others in fp32; layers of 8 bits are packed once and stay, and
    tables stay in their file.
    """
    more = {id(each.conv): each.values for each in net.modules() if isinstance(each, Upsample)} if place.folds else {}
    for name, layer in net.named_modules():
        small = place.small and EIGHT[place.small].eligible(name, layer)
        if place.looks_up and is_table(layer):
            continue
        if streamed == (isinstance(layer, STREAMED) and not small):
            wide = place.dtype.itemsize if isinstance(layer, (nn.Linear, nn.Conv2d)) else FP32
            values = more.get(id(layer)) or sum(value.numel() for value in layer.parameters(recurse=False))
            yield (1 if small else wide) * values


def bare(nets: Mapping[str, nn.Module], net: str) -> nn.Module:
    """A network for who looks at its kind and config alone."""
    return nets.bare(net) if isinstance(nets, Nets) else nets[net]


def undriven(nets: Mapping[str, nn.Module], net: str) -> nn.Module:
    """A network whose arithmetic is our own, whoever does it else."""
    return nets.undriven(net) if isinstance(nets, Nets) else nets[net]


def placed(net: Net, place: Place, pack: bool = False) -> Net:
    """A network at its place: layer by layer, so that no more than a layer is there twice; or streamed, where it is
    large and the place keeps a layer at a time.

    The pages of what was cast are given back, and read again by who still needs them. pack: whether what it computes
    is worth packing its weights for, or rounding them to 8 bits: a denoiser's is.
    """
    large = size(net) >= LARGE
    if place.folds:
        folding(net, place.keep != "layer" or bool(place.small) or not large, release)
    if place.narrows:
        narrowed(net)
    if place.fuses:
        fusing(net)
    if pack and place.small == "int8":
        int8.in_int8(net, place.dtype, release)
    if pack and place.small == "fp8":
        fp8.in_fp8(net, place.dtype, place.device, release)
    if pack and place.packs:
        packed(net, place.dtype, release)
    if place.looks_up:
        tabled(net, release)
    if not large:
        return place.settle(net)  # type: ignore[return-value]
    if place.keep == "layer":
        return streamed(net, place.settle, release, place if place.fetches else None)
    for layer in net.modules():
        if not list(layer.children()):
            before = [(value, value.data) for value in layer.parameters()]
            place.settle(layer)
            for value, data in before:
                if value.data_ptr() != data.data_ptr():
                    release(data)
    return place.settle(net)  # type: ignore[return-value]

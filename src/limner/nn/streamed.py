"""Networks whose weights are in memory only while their layer runs: what lies in a file stays there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from limner.nn.packed import exchanged
from limner.nn.upsample import FoldedUpsample

TABLE = 2**22  # values of an embedding from which on it is not copied; places and buckets have fewer
Net = TypeVar("Net", bound=nn.Module)


def copied(net: Net) -> Net:
    """A network of its own modules around the same values: to cast it leaves the other as it was."""
    own: dict[int, Any] = {id(value): nn.Parameter(value.data, requires_grad=False) for value in net.parameters()}
    own |= {id(value): value.detach() for value in net.buffers()}
    return copy.deepcopy(net, own)


def streamed(
    net: Net,
    settle: Callable[[nn.Module], object],
    release: Callable[[Tensor], object],
    carrier: Carrier | None = None,
) -> Net:
    """The network itself, with linear layers and convolutions brought to their place at each call and no longer.

    settle: brings a layer to its place. release: gives the pages of a tensor back to the system. carrier: of a place
    that has a memory of its own; then the layer that comes next is brought while one computes. What else there is is
    settled for good. Layers may not be called by two threads at once.
    """
    bring = Ahead(carrier).bring if carrier else settle
    for layer in net.modules():
        if isinstance(layer, FoldedUpsample) and layer.empty:
            _fill(layer, release)
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            _stream(layer, bring, release)
        else:
            settle(_alone(layer))
    return net


def _alone(layer: nn.Module) -> nn.Module:
    """What a module has itself, without the layers inside it."""
    alone = copy.copy(layer)
    alone._modules = {}
    return alone


def _fill(layer: FoldedUpsample, release: Callable[[Tensor], object]) -> None:
    def before(called: FoldedUpsample, _: object) -> None:
        release(called.fill())

    layer.register_forward_pre_hook(before)


def _stream(layer: nn.Module, settle: Callable[[nn.Module], object], release: Callable[[Tensor], object]) -> None:
    kept = [(value, value.data) for value in layer.parameters(recurse=False)]

    def before(called: nn.Module, _: object) -> None:
        settle(called)

    def after(*_: object) -> None:
        for value, data in kept:
            value.data = data
            release(data)

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after, always_call=True)  # also where the layer failed


class Carrier(Protocol):
    """Brings weights to a place of its own memory, beside what it computes."""

    def told(self) -> Any:
        """A mark of what it was told to compute until now."""

    def fetch(self, values: Sequence[Tensor], after: Any) -> Callable[[], Sequence[Tensor]]:
        """Begins to bring them when it has computed until the mark; what is returned has it wait for them."""


class Ahead:
    """Brings layers, and meanwhile the one that came next the last time: a thread reads its pages, the device copies.

    So two are there at once. Where another comes than the last time, what was begun for nothing is let go.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier, self._thread = carrier, ThreadPoolExecutor(1, "ahead")
        self._after: dict[nn.Module, nn.Module] = {}
        self._last: nn.Module | None = None
        self._coming: tuple[nn.Module, Future[Callable[[], Sequence[Tensor]]]] | None = None

    def bring(self, layer: nn.Module) -> None:
        """Has the weights of a layer, as they lie in their file, at their place."""
        begun, self._coming = self._coming, None
        before = self._carrier.told()  # the layers before this one
        there = begun[1].result() if begun and begun[0] is layer else self._carrier.fetch(_weights(layer), before)
        if self._last is not None:
            self._after[self._last] = layer
        self._last = layer
        if (following := self._after.get(layer)) is not None and following is not layer:
            self._coming = following, self._thread.submit(self._carrier.fetch, _weights(following), before)
        for value, brought in zip(layer.parameters(recurse=False), there(), strict=True):
            value.data = brought


def _weights(layer: nn.Module) -> list[Tensor]:
    return [value.data for value in layer.parameters(recurse=False)]


class Table(nn.Module):
    """A large embedding whose values stay in their file: the rows that are looked up become fp32, the same bits."""

    def __init__(self, values: Tensor, release: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._values, self._release = [values], release  # in a list: nobody brings them to another place

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self._values[0]).float()
        self._release(self._values[0])
        return rows

    def __deepcopy__(self, _: Any) -> Table:
        return Table(self._values[0], self._release)


def is_table(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding) and layer.weight.numel() >= TABLE


def tabled(net: Net, release: Callable[[Tensor], object]) -> Net:
    """The network itself, its large embeddings looked up where they lie.

    release: gives the pages of a tensor back to the system.
    """

    def table(_: str, layer: nn.Module) -> Table | None:
        return Table(cast(Tensor, layer.weight).data, release) if is_table(layer) else None

    return exchanged(net, table, release)

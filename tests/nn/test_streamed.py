"""What lies in a file stays there."""

import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limner.nn import streamed
from limner.nn.streamed import Table, tabled
from limner.place import Place

PLACE = Place(torch.device("cpu"), torch.float32, "a test")


@torch.inference_mode()
def test_a_table_is_looked_up_where_it_lies(monkeypatch):
    monkeypatch.setattr(streamed, "TABLE", 100)
    plain = nn.ModuleDict({"large": nn.Embedding(50, 8), "small": nn.Embedding(5, 8)}).half()
    values, given = plain["large"].weight.data, []
    net = tabled(plain, lambda tensor: given.append(tensor.data_ptr()))
    assert [type(layer) for layer in net.values()] == [Table, nn.Embedding]
    ids = torch.tensor([[3, 0], [49, 3]])
    for each in (net, deepcopy(net)):
        rows = each.float()["large"](ids)
        assert rows.dtype == torch.float32 and torch.equal(rows, values.float()[ids])
    assert given == [values.data_ptr()] * 3  # no copy was made, and its pages were given back


class Brought:
    """A place of its own memory: notes which weights are brought there, by which thread, and when they are awaited."""

    def __init__(self) -> None:
        self.marks: list[int] = []
        self.here: list[bool] = []
        self.first: list[float] = []
        self.awaited: list[float] = []

    def told(self) -> int:
        return len(self.awaited)

    def fetch(self, values: Sequence[Tensor], after: int) -> Callable[[], list[Tensor]]:
        mark = float(values[0].flatten()[0])
        self.marks.append(after)
        self.here.append(threading.current_thread() is threading.main_thread())
        self.first.append(mark)
        there = [value.float() for value in values]

        def wait() -> list[Tensor]:
            self.awaited.append(mark)
            return there

        return wait


class Walk(nn.Module):
    """Layers that are called in the order that is asked for."""

    @torch.inference_mode(False)  # as networks are built
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)])
        for i, layer in enumerate(self.layers):
            layer.weight.data.flatten()[0] = i

    def forward(self, x: Tensor, order: Sequence[int]) -> Tensor:
        for i in order:
            x = self.layers[i](x[..., None, None])[..., 0, 0] if i == 2 else self.layers[i](x)
        return x


@torch.inference_mode(False)
def twin(net: nn.Module) -> nn.Module:
    return deepcopy(net).float()


@torch.inference_mode()
def test_while_a_layer_computes_the_next_is_brought():
    plain, place, released = Walk().half().requires_grad_(False), Brought(), []
    lies = [value.data for value in plain.parameters()]
    want, x = twin(plain), torch.randn(3, 4)
    net = streamed.streamed(plain, PLACE.settle, released.append, place)
    order = [0, 1, 2, 3]
    assert torch.equal(net(x, order), want(x, order))
    assert place.here == [True] * 4  # nobody knew what would come
    assert place.marks == [0, 1, 2, 3]  # behind what was asked for before
    assert torch.equal(net(x, order), want(x, order))
    assert torch.equal(net(x, order), want(x, order))
    assert place.awaited == [0.0, 1, 2, 3] * 3  # each as it was asked for
    assert place.marks[4:12] == [4, *range(4, 11)]  # each behind those before the one that computes meanwhile
    assert sum(place.here) == 5  # the first of the second walk: only then was it known what follows the last
    assert all(value.data is not None and value.dtype == torch.float16 for value in plain.parameters())
    assert [value.data_ptr() for value in plain.parameters()] == [value.data_ptr() for value in lies]
    assert len(released) == 3 * len(lies)


@torch.inference_mode()
def test_where_another_layer_comes_than_the_last_time_it_is_brought_anew():
    plain, place = Walk().half().requires_grad_(False), Brought()
    want, x = twin(plain), torch.randn(3, 4)
    net = streamed.streamed(plain, PLACE.settle, lambda _: None, place)
    for order in ([0, 1, 2, 3], [0, 3], [0, 2, 0, 1, 2, 3], [1, 1, 1], [3, 2, 1, 0]):
        before = len(place.awaited)
        assert torch.equal(net(x, order), want(x, order))
        assert place.awaited[before:] == order


@torch.inference_mode()
def test_what_fails_while_it_is_brought_is_told_where_it_is_needed():
    plain, broken = Walk().requires_grad_(False), []

    class Breaking(Brought):
        def fetch(self, values: Sequence[Tensor], after: int) -> Any:
            if broken and float(values[0].flatten()[0]) == 2:
                raise OSError("the disk is gone")
            return super().fetch(values, after)

    net = streamed.streamed(plain, PLACE.settle, lambda _: None, Breaking())
    net(torch.randn(1, 4), [0, 1, 2])
    broken.append(True)
    with pytest.raises(OSError, match="the disk is gone"):
        net(torch.randn(1, 4), [0, 1, 2])


class Positions(nn.Module):
    """A module with a table, a buffer and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.table + self.shift)


def test_what_a_module_has_beside_its_layers_is_settled_for_good():
    plain, x = nn.Sequential(Positions(), Positions()).half().requires_grad_(False), torch.randn(4, 4)
    want = twin(plain)
    net = streamed.streamed(plain, PLACE.settle, lambda _: None)
    assert {name for name, value in net.state_dict().items() if value.dtype == torch.float32} == {
        f"{i}.{name}" for i in range(2) for name in ("table", "shift")
    }
    with torch.inference_mode():
        assert torch.equal(net(x), want(x))


@torch.inference_mode()
def test_a_card_waits_for_what_is_brought_to_it(monkeypatch):
    """Torch's verbs for a card, played on the CPU."""
    said: list[str] = []

    class Event:
        def __init__(self, name: str) -> None:
            self.name = name

        def synchronize(self) -> None:
            said.append(f"awaited {self.name}")

    class Stream:
        def wait_event(self, event: Event) -> None:
            said.append(f"waits for {event.name}")

        def record_event(self) -> str:
            said.append("marked")
            return Event("the copy" if "aside" in said else "the work")

        def __enter__(self) -> None:
            said.append("aside")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(Tensor, "pin_memory", lambda value: said.append("pinned") or value)
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: said.append("held"))
    monkeypatch.setattr("limner.place._aside", Stream)
    values = [torch.randn(3, 4, 3, 3).half(), torch.randn(3).half()]
    wait = PLACE.fetch(values, PLACE.told())
    assert said == ["marked", "awaited the work", "aside", "pinned", "pinned", "marked"]
    weight, bias = wait()
    assert said[6:] == ["waits for the copy", "held", "held"]
    assert torch.equal(weight, values[0].float()) and torch.equal(bias, values[1].float())
    assert weight.is_contiguous(memory_format=torch.channels_last)

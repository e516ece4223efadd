"""Work that a card plays again by itself: what may be recorded, what is given back, and compiled blocks."""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tests.conftest import tiny_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.models.unet import TransformerBlock
from limner.nn import forms
from limner.nn.fp8 import in_fp8
from limner.nn.narrow import narrowed
from limner.nn.recorded import CACHE, Recorded, blocks
from limner.place import Place, Recording
from limner.types import Cond

HERE = Place(torch.device("cpu"), torch.float32, "a test")
CARD = Place(torch.device("cuda"), torch.bfloat16, "a test")
MINI = MiniTransformerConfig(channels=4, width=32, depth=4, heads=2, hidden=48, text=12, styles=3)


def told_of(net: nn.Module, rows: int, words: int = 16, size: int = 8) -> tuple[Tensor, Tensor, Cond]:
    """Numbers for a network, by its config."""
    rng = torch.Generator().manual_seed(rows + words)
    draw = partial(torch.randn, generator=rng)
    config: Any = net.config
    if isinstance(net, MiniTransformer):
        cond = Cond(draw(rows, words, config.text), draw(rows, config.text), torch.ones(rows, words, dtype=torch.bool))
        cond = replace(cond, style=torch.arange(rows) % 4)
    else:
        cond = Cond(draw(rows, words, config.context))
        if pooled := getattr(config, "pooled", 0) or (getattr(config, "vector", 0) and config.vector - 6 * 256):
            cond = replace(cond, pooled=draw(rows, pooled))
        if getattr(config, "vector", 0):
            cond = replace(cond, sizes=torch.full((rows, 6), 512.0))
    return draw(1, config.channels, size, size), torch.tensor([0.5]), cond


def net_of(name: str) -> nn.Module:
    if name == "mini":
        torch.manual_seed(0)
        net: nn.Module = MiniTransformer(MINI)
        with torch.no_grad():
            for value in net.parameters():
                value.add_(torch.randn_like(value) * 0.1)
        return net.eval().requires_grad_(False)
    return tiny_net(name, "denoiser").requires_grad_(False)


class Watching(TorchDispatchMode):
    """Notes what touches another device than the one that is watched."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.strange = device, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, answer)) if isinstance(each, Tensor)]
        if {each.device.type for each in tensors} - {self.device}:
            self.strange.add(str(func))
        return answer


WISHES: list[tuple[str, dict[str, Any]]] = [
    ("mini", {}), ("mini", {"perturbed": True}), ("sd15", {}), ("sd15", {"few": 2}), ("sd2", {}), ("sdxl", {}),
    ("sdxl", {"perturbed": True}), ("sd3", {}), ("sd35", {"skip": (1,)}),
]  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize(("name", "wishes"), WISHES, ids=str)
def test_a_denoiser_never_leaves_its_device(name: str, wishes: dict[str, Any]):
    """What came from the machine's memory could not be recorded, and what went there would be waited for."""
    net = net_of(name)
    x, t, cond = told_of(net, 2, size=48 if "few" in wishes else 8)
    hollow = type(net)(net.config).to("meta").requires_grad_(False)
    there = (x.to("meta"), t.to("meta"), cond.to(torch.device("meta")))
    for deep in ({}, {"deep": lambda inner: inner()}):
        with Watching("meta") as watched:
            hollow(*there, **wishes, **deep)
        assert not watched.strange


def test_what_leaves_its_device_is_seen():
    with Watching("meta") as watched:
        torch.arange(3).to("meta")
    assert "aten.arange.default" in watched.strange


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mini", "sdxl"])
def test_what_is_recorded_answers_as_the_network(name: str):
    net = net_of(name)
    both = Recorded(net, HERE)
    for rows in (1, 2):
        x, t, cond = told_of(net, rows)
        assert torch.equal(both(x, t, cond), net(x, t, cond))
    gave: list[Tensor] = []

    def remember(inner: Callable[[], Tensor]) -> Tensor:
        gave.append(inner())
        return gave[-1]

    assert torch.equal(both(x, t, cond, deep=remember), net(x, t, cond))
    want = net(x + 0.1, t, cond, deep=lambda _: gave[0])
    assert torch.equal(both(x + 0.1, t, cond, deep=lambda _: gave[0]), want)


class Graph:
    """A CUDA graph as the CPU can play one: the same work again, on the same tensors."""

    def __init__(self) -> None:
        self.work: Callable[[], Any] | None = None
        self.gave: Any = None

    def pool(self) -> str:
        return "a pool"

    def replay(self) -> None:
        assert self.work is not None
        for mine, value in zip(self.gave, self.work(), strict=True):
            mine.copy_(value)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Torch's verbs for a card, played on the CPU; what was told to each recording."""
    recordings: list[dict[str, Any]] = []

    class Stream:
        def wait_stream(self, _: "Stream") -> None: ...

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def capture(_: Graph, **told: Any) -> Stream:
        recordings.append(told)
        return Stream()

    monkeypatch.setattr("limner.place._aside", Stream)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    fakes = {
        "set_stream": lambda _: None,
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda s: s,
        "graph": capture,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    begin = Recording.__init__

    def recorded(self: Recording, work: Any, told: list[Tensor], others: Any = ()) -> None:
        begin(self, work, told, others)
        graph: Any = self._graph
        graph.work, graph.gave = lambda: work(self._told), self._gave

    monkeypatch.setattr(Recording, "__init__", recorded)
    return recordings


@torch.inference_mode()
def test_a_recording_is_played_with_other_numbers_and_its_answers_stay(card: list[dict[str, Any]]):
    net = net_of("sd15")
    both = Recorded(net, CARD)
    cases = [told_of(net, rows, words) for rows, words in ((1, 16), (2, 16), (1, 16), (1, 32))]
    cases[2] = (cases[2][0] + 1, cases[2][1] * 2, cases[2][2])
    answers = [both(*case) for case in cases]
    for case, answer in zip(cases, answers, strict=True):
        assert torch.equal(answer, net(*case))
    assert [told["pool"] for told in card] == [None, "a pool", "a pool"]  # one for each form; the first makes room


@torch.inference_mode()
def test_the_form_that_was_asked_longest_ago_goes(card: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forms, "MOST", 2)
    net = net_of("sd15")
    both = Recorded(net, CARD)
    for words in (16, 32, 48, 32, 16):
        both(*told_of(net, 1, words))
    assert len(card) == 4 and len(both._ways) == 2


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's compiler up to the graph: code takes half a minute to generate. What it has learnt is forgotten."""
    monkeypatch.setenv(CACHE, "")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler, on what it looks through
@pytest.mark.parametrize(("name", "wishes"), [WISHES[i] for i in (1, 3, 6, 8)], ids=str)
def test_blocks_compile_whole(name: str, wishes: dict[str, Any], tmp_path, compiler):
    net = net_of(name)
    x, t, cond = told_of(net, 2)
    assert torch.equal(Recorded(net, HERE, tmp_path)(x, t, cond, **wishes), net(x, t, cond, **wishes))


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_blocks_of_a_card_compile_whole(tmp_path, compiler, monkeypatch):
    """With norms as narrow as what they read, in products of 8 bits."""
    net = in_fp8(narrowed(deepcopy(net_of("sdxl"))), torch.bfloat16, torch.device("cpu"), lambda _: None)
    x, t, cond = told_of(net, 2)
    place = replace(HERE, dtype=torch.bfloat16)
    monkeypatch.setattr("limner.nn.attention.fuses_attention", lambda _: True)  # as a card does
    with place.autocast():
        assert torch.equal(Recorded(net, place, tmp_path)(x, t, cond), net(x, t, cond))


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_whose_blocks_are_compiled_stays_as_it_is_for_others(tmp_path, compiler, monkeypatch):
    net = net_of("sd15")
    x, t, cond = told_of(net, 1)
    asked: list[nn.Module] = []
    forward = TransformerBlock.forward
    monkeypatch.setattr(TransformerBlock, "forward", lambda self, *told: asked.append(self) or forward(self, *told))
    Recorded(net, HERE, tmp_path)(x, t, cond)
    assert not any("forward" in vars(each) for each in net.modules())
    asked.clear()
    net(x, t, cond)
    assert asked


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_blocks_compile_for_as_many_forms_as_are_asked_for(tmp_path, compiler, monkeypatch):
    """By itself torch's compiler gives up after eight."""
    net = net_of("mini")
    both = Recorded(net, HERE, tmp_path)
    for size in range(4, 24, 2):
        told = told_of(net, 1, size=size)
        assert torch.equal(both(*told), net(*told))


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_who_waits_for_the_compiler_is_told(tmp_path, compiler, monkeypatch):
    net = net_of("mini")
    Recorded(net, HERE, tmp_path)(*told_of(net, 1))  # small ones are not worth a word
    monkeypatch.setattr(forms, "LARGE", 1)
    with pytest.warns(UserWarning, match="blocks are compiled, for pictures of this form"):
        Recorded(net, HERE, tmp_path)(*told_of(net, 1))


def test_the_blocks_of_a_network_are_what_it_repeats():
    kinds = {name: {type(block).__name__ for block in blocks(net_of(name))} for name in ("mini", "sdxl", "sd3")}
    assert kinds["mini"] == {"Block"} and kinds["sd3"] == {"JointBlock"}
    assert {"ResBlock", "TransformerBlock"} <= kinds["sdxl"] and "SpatialTransformer" not in kinds["sdxl"]


def test_compiled_blocks_are_kept_where_we_say_unless_the_user_did(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv(CACHE, "theirs")
    Recorded(net_of("mini"), HERE, tmp_path)
    assert os.environ[CACHE].endswith("theirs")  # torch makes it a whole path
    monkeypatch.delenv(CACHE)
    Recorded(net_of("mini"), HERE, tmp_path)
    assert os.environ[CACHE] == str(tmp_path)

"""What is asked at once says what it says alone, as far as a batch of other size allows."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import tiny_net
from torch import Tensor, nn

from limner.denoiser import Conditioned
from limner.diffusion.guide import guided
from limner.diffusion.path import Discrete
from limner.diffusion.thrift import Memory, Thrift
from limner.place import Place
from limner.types import Cond, again

NARROW = Place(torch.device("cpu"), torch.bfloat16, "asked for")
WIDE = Place(torch.device("cpu"), torch.float32, "asked for")


class Counting(nn.Module):
    """A small network that notes how many rows it is asked for at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond, deep=None, few: int = 1) -> Tensor:
        self.asked.append(len(cond))
        assert len(x) == len(t)
        x, t = again(x, len(cond)), again(t, len(cond))
        mask = torch.ones(cond.tokens.shape[:2], dtype=torch.bool) if cond.mask is None else cond.mask
        inner = lambda: (cond.tokens * mask[..., None]).sum((1, 2))[:, None, None, None] * few  # noqa: E731
        return x * t[:, None, None, None] / 1000 + (deep(inner) if deep else inner())


def told(
    net: nn.Module, value: float, place: Place = NARROW, words: int = 3, rows: int = 1, **more: object
) -> Conditioned:
    cond = Cond(torch.full((rows, words, 2), value), mask=torch.ones(rows, words, dtype=torch.bool))
    return Conditioned(shared(net), place, Discrete(), cond, **more)  # type: ignore[arg-type]


def shared(net: nn.Module, kept: dict[int, object] = {}):  # noqa: B006
    return kept.setdefault(id(net), lambda: net)


def drawn(rows: int) -> Tensor:
    return torch.randn(rows, 4, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("words", [3, 5], ids=["as many words", "more words"])
def test_a_pair_is_asked_at_once_for_each_picture(words: int):
    net, x = Counting(), drawn(3)
    wanted, unwanted = told(net, 0.5), told(net, -0.25, words=words)
    both = wanted.paired(unwanted)
    assert both
    found = both(x, 0.5)
    assert net.asked == [2, 2, 2]
    for one, want in zip(found, (wanted(x, 0.5), unwanted(x, 0.5)), strict=True):
        assert torch.equal(one, want)
    assert torch.equal(both(x[1:2], 0.5)[0], found[0][1:2])


def test_rows_of_conditions_go_with_their_pictures():
    net, x = Counting(), drawn(2)
    cond = Cond(torch.tensor([1.0, 2.0])[:, None, None].expand(2, 3, 2))
    first = Conditioned(shared(net), NARROW, Discrete(), cond)
    for tokens in (-cond.tokens, -cond.tokens[:1]):  # a negative for each, or one for all
        second = Conditioned(shared(net), NARROW, Discrete(), Cond(tokens))
        both = first.paired(second)
        assert both
        for found, each in zip(both(x, 0.5), (first, second), strict=True):
            assert torch.equal(found, each(x, 0.5))


@pytest.mark.parametrize("case", ["fp32", "wishes", "network", "fields", "no mask", "no denoiser of a model"])
def test_what_is_not_alike_is_asked_one_after_another(case: str):
    net = Counting()
    one, other = told(net, 0.5), told(net, -0.25)
    bare = Cond(torch.zeros(1, 5, 2))
    others = {
        "wishes": replace(other, wishes={"few": 2}),
        "network": told(Counting(), 0.5),
        "fields": replace(other, cond=replace(other.cond, pooled=torch.zeros(1, 2))),
        "no mask": replace(other, cond=bare),
        "no denoiser of a model": lambda x, _: x,
    }
    if case == "fp32":
        one, other = told(net, 0.5, WIDE), told(net, -0.25, WIDE)
    if case == "no mask":
        one = replace(one, cond=Cond(torch.zeros(1, 3, 2)))
    assert one.paired(others.get(case, other)) is None


@pytest.mark.parametrize("rows", [1, 2])
def test_guidance_asks_at_once_and_each_remembers_its_own(rows: int):
    """The walk with pairs is the one without, also where deep layers and guidance are carried over."""
    stations = [0.9, 0.7, 0.5, 0.3, 0.1]
    found: dict[bool, list[Tensor]] = {}
    for pairs in (True, False):
        net = Counting()
        thrift = Thrift.over(stations, 2, 0.8)
        assert thrift
        parts = [told(net, value, memory=Memory(thrift)) for value in (0.5, -0.25)]
        negative = parts[1] if pairs else lambda x, t, part=parts[1]: part(x, t)
        walk = replace(guided(parts[0], negative, 5.0), memory=Memory(thrift))  # type: ignore[arg-type]
        found[pairs] = [walk(drawn(rows), t) for t in stations]
        assert (2 in net.asked) == pairs
    assert all(torch.equal(a, b) for a, b in zip(found[True], found[False], strict=True))


@torch.inference_mode()
def test_a_real_network_answers_a_pair_as_it_answers_each():
    net = tiny_net("sd15", "denoiser").eval()
    width = net.config.context
    conds = [Cond(torch.randn(1, 5, width, generator=torch.Generator().manual_seed(i))) for i in (0, 1)]
    one, other = (Conditioned(shared(net), NARROW, Discrete(), cond) for cond in conds)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    both = one.paired(other)
    assert both
    for found, each in zip(both(x, 0.5), (one, other), strict=True):
        want = each(x, 0.5)
        assert (found - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("rows", [1, 3], ids=["one for all", "a negative for each"])
def test_a_card_is_asked_for_both_sides_of_a_whole_batch(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Place, "pairs", property(lambda _: True))
    net, x = Counting(), drawn(3)
    wanted, unwanted = told(net, 0.5, WIDE, rows=3), told(net, -0.25, WIDE, rows=rows)
    both = wanted.paired(unwanted)
    assert both
    found = both(x, 0.5)
    assert net.asked == [6]
    for one, want in zip(found, (wanted(x, 0.5), unwanted(x, 0.5)), strict=True):
        assert torch.equal(one, want)


@torch.inference_mode()
def test_a_card_carries_over_what_both_sides_of_a_whole_batch_gave(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Place, "pairs", property(lambda _: True))
    net = tiny_net("sd15", "denoiser").requires_grad_(False)
    conds = [Cond(torch.randn(1, 5, net.config.context, generator=torch.Generator().manual_seed(i))) for i in range(2)]
    walks = []
    for pairs in (True, False):
        thrift = Thrift((0.9, 0.8, 0.7, 0.6), every=2, late=0.85)
        sides = [Conditioned(shared(net), WIDE, Discrete(), cond, memory=Memory(thrift)) for cond in conds]
        both = sides[0].paired(sides[1])
        assert both
        x, seen = drawn(2).repeat(1, 1, 2, 2), []
        for t in (0.9, 0.8, 0.7, 0.6):
            seen += both(x, t) if pairs else [side(x, t) for side in sides]
            x = x * 0.9
        walks.append(seen)
    assert len(walks[0]) == len(walks[1]) == 8
    assert all((one - other).abs().max() < 1e-4 * other.abs().max() for one, other in zip(*walks, strict=True))

"""Linear layers with what is done with their answers, against the two apart."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from tests.conftest import tiny_net
from torch import Tensor, nn

from limner.nets import placed
from limner.nn.fused import FusedGated, FusedLinear, GatedLinear, fusing
from limner.nn.packed import PackedFused, packed
from limner.nn.streamed import streamed
from limner.place import Place, find_place
from limner.types import Cond

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
NETS = {
    "gate": lambda: nn.Sequential(GatedLinear(96, 160)),
    "gelu": lambda: nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 96)),
    "gelu by tanh": lambda: nn.Sequential(OrderedDict(a=nn.Linear(96, 160, bias=False), b=nn.GELU("tanh"))),
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]().bfloat16().requires_grad_(False)


def bf16() -> Place:
    return find_place("cpu", torch.bfloat16)


@pytest.mark.parametrize("name", NETS)
@torch.inference_mode()
def test_it_is_the_two_apart(name: str):
    """And nearer to them in fp32 than they are themselves, for what lies between is not rounded."""
    plain = made(name)
    net, x, exact = fusing(deepcopy(plain)), drawn(2, 50, 96), deepcopy(plain).float()
    assert any(isinstance(layer, FusedLinear) for layer in net.modules())
    assert not any(isinstance(layer, (GatedLinear, nn.GELU)) for layer in net.modules())
    want = exact(x.float())
    error, apart = ((each(x).float() - want).square().mean().sqrt() for each in (net, plain))
    assert net(x).dtype == torch.bfloat16 and net(x).shape == want.shape
    assert 0 < error < apart < 0.01 * want.square().mean().sqrt()


@pytest.mark.parametrize("name", NETS)
@torch.inference_mode()
def test_packed_and_streamed_it_is_the_same_to_the_bit(name: str):
    x = drawn(2, 50, 96)
    want = fusing(made(name))(x)
    tight = packed(fusing(made(name)), torch.bfloat16, lambda _: None)
    assert any(isinstance(layer, PackedFused) for layer in tight.modules())
    assert torch.equal(tight(x), want)
    loose = streamed(fusing(made(name)), bf16().settle, lambda _: None)
    assert torch.equal(loose(x), want)


def test_its_weights_are_those_of_the_plain_layer():
    plain = GatedLinear(8, 6)
    net = FusedGated(plain)
    for part, rows in ((net.value, slice(6)), (net.gate, slice(6, None))):
        assert part.weight.data_ptr() == plain.proj.weight[rows].data_ptr()
        assert torch.equal(part.bias, plain.proj.bias[rows])


def test_what_no_gelu_follows_stays_as_it_is():
    net = fusing(nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.GELU()))
    assert [type(layer) for layer in net] == [nn.Linear, nn.SiLU, nn.Conv2d, nn.GELU]


@torch.inference_mode()
def test_networks_are_fused_where_they_compute_in_bf16():
    def fused(place: Place) -> int:
        net = placed(deepcopy(plain), place)
        return sum(isinstance(layer, FusedLinear | PackedFused) for layer in net.modules())

    plain = tiny_net("sd15", "denoiser")
    gates = sum(isinstance(layer, GatedLinear) for layer in plain.modules())
    assert fused(bf16()) == 2 * gates > 0
    assert fused(find_place("cpu", torch.float32)) == 0
    if "int8" in (able := find_place("cpu").precisely("int8")).precision:
        assert fused(able) == 0


@torch.inference_mode()
def test_a_fused_network_answers_as_the_plain_one():
    plain = tiny_net("sd15", "denoiser").eval().requires_grad_(False)
    told = Cond(drawn(1, 7, plain.config.context).float())
    x, t, place = drawn(1, 4, 16, 16).float(), torch.tensor([500.0]), bf16()
    want = plain(x, t, told)
    net = placed(deepcopy(plain), place)
    with place.autocast():
        assert (net(x, t, told) - want).abs().max() < 0.02 * want.abs().max()

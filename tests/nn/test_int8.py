"""Products in 8 bits: what the layers compute is held to whole numbers, and what they cost to the wide layers."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import randomised, tiny_net
from torch import Tensor, nn

import limner.nn.int8
from limner.nn.int8 import Int8Conv2d, Int8Linear, eligible, in_int8, rounded, small_weight, weight_reach
from limner.nn.periodic import PeriodicInt8Conv2d, periodic
from limner.place import computes_int8
from limner.types import Cond

pytestmark = pytest.mark.skipif(not computes_int8(), reason="oneDNN has no products of 8 bits here")

LAYERS = {
    "linear": (nn.Linear(320, 96), (2, 50, 320)),
    "linear without bias": (nn.Linear(64, 40, bias=False), (7, 64)),
    "3x3": (nn.Conv2d(64, 96, 3, padding=1), (2, 64, 9, 13)),
    "3x3, stride 2": (nn.Conv2d(32, 48, 3, stride=2, padding=1), (2, 32, 8, 8)),
    "1x1 without bias": (nn.Conv2d(48, 32, 1, bias=False), (3, 48, 5, 5)),
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def small(layer: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return Int8Linear(layer, dtype) if isinstance(layer, nn.Linear) else Int8Conv2d(layer, dtype)


def reckoned(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """The same by whole numbers in double precision, in which no sum is rounded."""
    weight, scales = small_weight(layer.weight.data)
    is_linear = isinstance(layer, nn.Linear)
    each, scale = rounded(x, (-1,) if is_linear else (1, 2, 3))
    whole = each.double() - 128
    if is_linear:
        y = F.linear(whole, weight.double()) * scale * scales
    else:
        y = F.conv2d(whole, weight.double(), None, layer.stride, layer.padding) * scale * scales[:, None, None]
    bias = 0 if layer.bias is None else layer.bias if is_linear else layer.bias[:, None, None]
    return y + bias


@pytest.mark.parametrize("name", LAYERS)
@torch.inference_mode()
def test_a_layer_is_exact_in_whole_numbers(name: str):
    layer, shape = LAYERS[name]
    x = drawn(*shape)
    y = small(layer)(x)
    want = reckoned(layer, x)
    assert y.shape == want.shape
    assert (y - want).abs().max() < 1e-6 * want.abs().max()
    assert (y - layer(x)).norm() < 0.02 * layer(x).norm()


@torch.inference_mode()
def test_the_largest_sums_do_not_saturate():
    """All at the end of its range: pairs of products that a processor may add in 16 bits."""
    layer = nn.Linear(256, 32, bias=False)
    layer.weight.data.fill_(1.0)
    assert torch.allclose(small(layer)(torch.ones(1, 256)), torch.full((1, 32), 256.0), rtol=1e-5)
    layer.weight.data.fill_(-1.0)
    assert torch.allclose(small(layer)(torch.ones(1, 256)), torch.full((1, 32), -256.0), rtol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@torch.inference_mode()
def test_a_row_is_the_same_in_every_company(name: str, monkeypatch: pytest.MonkeyPatch):
    layer, shape = LAYERS[name]
    x = drawn(*shape) * torch.logspace(0, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    net = small(layer)
    whole = net(x)
    assert torch.equal(torch.cat([net(row) for row in x.split(1)]), whole)
    monkeypatch.setattr(limner.nn.int8, "PART", 100)  # rounded in other parts
    assert torch.equal(net(x), whole)


@torch.inference_mode()
def test_what_is_no_number_stays_none():
    x = drawn(3, 64)
    x[1, 5], x[2, 7] = float("nan"), float("inf")
    y = small(nn.Linear(64, 32))(x)
    assert y[0].isfinite().all()
    assert not y[1:].isfinite().any()


@torch.inference_mode()
def test_nothing_gives_the_bias():
    layer = nn.Linear(64, 32)
    assert torch.equal(small(layer)(torch.zeros(2, 64)), layer.bias.expand(2, -1))


@torch.inference_mode()
def test_the_answer_is_in_the_wide_type():
    assert small(LAYERS["linear"][0], torch.bfloat16)(drawn(4, 320).bfloat16()).dtype == torch.bfloat16
    assert small(LAYERS["3x3"][0], torch.bfloat16)(drawn(1, 64, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize(("vnni", "reach"), [(True, 127), (False, 64)])
def test_weights_have_seven_bits_where_sums_would_saturate(vnni: bool, reach: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limner.nn.int8, "has_vnni", lambda: vnni)
    weight, scales = small_weight(drawn(40, 64, 3, 3))
    assert weight.abs().amax() == weight_reach() == reach
    assert weight.dtype == torch.int8
    assert scales.shape == (40,)
    assert vnni or 2 * 255 * reach < 2**15


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@torch.inference_mode()
def test_a_unet_comes_near(family: str):
    net = deepcopy(tiny_net(family, "denoiser"))
    pooled = torch.ones(2, net.config.vector - 6 * 256) * 0.3 if net.config.vector else None
    sizes = torch.full((2, 6), 64.0) if net.config.vector else None
    cond = Cond(torch.linspace(-1, 1, 10 * net.config.context).view(2, 5, -1), pooled=pooled, sizes=sizes)
    x, t = drawn(2, 4, 16, 16), torch.tensor([500.0, 500.0])
    want = net(x, t, cond)
    freed: list[Tensor] = []
    in_int8(net, torch.float32, freed.append)
    exchanged = [layer for layer in net.modules() if isinstance(layer, (Int8Linear, Int8Conv2d))]
    assert len(exchanged) == len(freed) > 20
    got = net(x, t, cond)
    assert 0 < (got - want).norm() < 0.1 * want.norm()
    assert torch.equal(net(x, t, cond), got)


def test_what_reads_times_and_the_ends_stay_wide():
    net = tiny_net("sd15", "denoiser")
    kept = {name for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    kept -= {name for name, layer in net.named_modules() if eligible(name, layer)}
    assert {"time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"} <= kept
    assert all("emb" in name or name in ("input_blocks.0.0", "out.2") for name in kept)
    assert not eligible("feed.conv", nn.Conv2d(64, 64, 3, groups=64))
    assert not eligible("conv", nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"))


@torch.inference_mode()
def test_what_is_rolled_comes_out_rolled():
    net = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 5, padding=2)).eval()
    around = periodic(in_int8(randomised(net), torch.float32, lambda _: None), True, False)
    assert isinstance(around[0], PeriodicInt8Conv2d)
    assert type(net[0]) is Int8Conv2d  # the network itself keeps its borders
    x = drawn(1, 32, 8, 12)
    assert torch.equal(around(x.roll(5, 3)), around(x).roll(5, 3))
    assert not torch.allclose(net(x.roll(5, 3)), net(x).roll(5, 3), atol=1e-3)

"""Packed layers: the products of plain ones, also where a picture goes around."""

from copy import deepcopy

import pytest
import torch
from tests.conftest import tiny_net
from torch import Tensor, nn

from limner.nn.packed import PackedConv2d, PackedLinear, PackedPointwise, packed
from limner.nn.periodic import PeriodicPackedConv2d, periodic

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")

LAYERS = {  # each with its input, and what it becomes
    "linear": (nn.Linear(320, 96), (2, 50, 320), PackedLinear),
    "linear without bias": (nn.Linear(128, 64, bias=False), (7, 128), PackedLinear),
    "3x3": (nn.Conv2d(64, 96, 3, padding=1), (2, 64, 9, 13), PackedConv2d),
    "3x3, stride 2": (nn.Conv2d(64, 48, 3, stride=2, padding=1), (2, 64, 8, 8), PackedConv2d),
    "1x1": (nn.Conv2d(96, 320, 1), (1, 96, 7, 5), PackedPointwise),
    "1x1 without bias": (nn.Conv2d(48, 64, 1, bias=False), (3, 48, 5, 5), PackedPointwise),
    "1x1, stride 2": (nn.Conv2d(64, 64, 1, stride=2), (1, 64, 8, 8), PackedConv2d),
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
@torch.inference_mode()
def test_a_packed_layer_is_the_plain_one(name: str, dtype: torch.dtype):
    layer, shape, kind = LAYERS[name]
    layer = deepcopy(layer).to(dtype)
    x = drawn(*shape).to(dtype)
    gone: list[Tensor] = []
    net = packed(nn.Sequential(layer), dtype, gone.append)
    assert type(net[0]) is kind
    assert [each.data_ptr() for each in gone] == [layer.weight.data_ptr()]
    found, want = net(x), layer(x)
    assert found.dtype == dtype and found.shape == want.shape
    near = 5e-6 if dtype == torch.float32 else 0.008  # in fp32 another kernel may be taken
    assert (found - want).abs().max() <= near * want.abs().max()


def test_small_and_grouped_layers_stay_as_they_are():
    net = nn.Sequential(
        nn.Conv2d(4, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 3, padding_mode="circular"),
        nn.Linear(64, 8), nn.Linear(32, 32),
    )  # fmt: skip
    assert [type(layer) for layer in packed(net, torch.bfloat16, lambda _: None)] == [nn.Conv2d] * 3 + [nn.Linear] * 2


@torch.inference_mode()
def test_a_packed_network_goes_around():
    """What is rolled comes out rolled, and the packed network itself stays as it is."""
    plain = tiny_net("sd15", "autoencoder").decoder.eval()
    net = packed(deepcopy(plain), torch.float32, lambda _: None)
    assert any(isinstance(layer, PackedConv2d) for layer in net.modules())
    around, want = periodic(net, True, False), periodic(plain, True, False)
    assert any(isinstance(layer, PeriodicPackedConv2d) for layer in around.modules())
    assert not any(isinstance(layer, PeriodicPackedConv2d) for layer in net.modules())
    z = drawn(1, 4, 8, 8)
    made = around(z)
    assert (made - want(z)).abs().max() < 1e-4
    assert (around(z.roll(2, 3)) - made.roll(2 * made.shape[3] // z.shape[3], 3)).abs().max() < 1e-4

"""Doubling the sides and a convolution, folded into one of the small picture."""

from copy import deepcopy

import pytest
import torch
from tests.conftest import tiny_net
from torch import nn

from limner.nn.packed import PackedConv2d, packed
from limner.nn.periodic import periodic
from limner.nn.streamed import streamed
from limner.nn.upsample import FoldedUpsample, Upsample, folding
from limner.types import Cond


def pair(channels: int = 24, fill: bool = True) -> tuple[nn.Sequential, nn.Sequential]:
    """As it is and folded."""
    torch.manual_seed(0)
    plain = nn.Sequential(Upsample(channels)).requires_grad_(False)
    return plain, folding(deepcopy(plain), fill, lambda _: None)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("around", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("size", [None, (10, 14), (9, 14), (10, 13), (9, 13)])
@torch.inference_mode()
def test_it_is_the_same(size, around):
    plain, net = (periodic(each, *around)[0] for each in pair())
    assert isinstance(net, FoldedUpsample)
    torch.testing.assert_close(net(drawn(2, 24, 5, 7), size), plain(drawn(2, 24, 5, 7), size), rtol=0, atol=2e-6)


@torch.inference_mode()
def test_it_is_one_convolution_of_the_small_picture():
    _, net = pair()
    seen = []
    net[0].conv.register_forward_hook(lambda _, told, answer: seen.append((told[0].shape, answer.shape)))
    answer = net(drawn(2, 24, 5, 7))
    assert seen == [((2, 24, 5, 7), (2, 96, 6, 8))] and answer.shape == (2, 24, 10, 14)
    assert net[0].conv.weight.shape == (96, 24, 2, 2)


@torch.inference_mode()
def test_its_layout_is_channels_last():
    """What comes after would bring it there, a copy of a large picture."""
    assert pair()[1](drawn(1, 24, 5, 7)).is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_what_is_streamed_sums_its_weights_at_each_call():
    _, want = pair()
    plain, net = pair(fill=False)
    half = [plain[0].conv.half(), net[0]._plain[0].half()]
    given = []
    streamed(net, lambda layer: layer.float(), lambda value: given.append(value.data_ptr()))
    x = drawn(1, 24, 5, 7)
    for _ in range(2):
        answer = net(x)
        assert not net[0].conv.weight.numel()
        assert half[1].weight.data_ptr() in given
    assert (answer - want(x)).abs().max() < 2e-3  # what lies in the file is in fp16
    assert torch.equal(answer, folding(nn.Sequential(deepcopy(plain[0])), True, lambda _: None).float()(x))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN here")
@torch.inference_mode()
def test_it_is_packed_as_other_convolutions_are():
    plain, net = pair(64)
    net = packed(net, torch.float32, lambda _: None)
    assert isinstance(net[0].conv, PackedConv2d)
    x = drawn(1, 64, 6, 5)
    for around in ((False, False), (False, True)):
        torch.testing.assert_close(periodic(net, *around)(x), periodic(plain, *around)(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@torch.inference_mode()
def test_networks_answer_as_they_did(family: str):
    unet = tiny_net(family, "denoiser")
    pooled = torch.ones(1, unet.config.vector - 6 * 256) if unet.config.vector else None
    sizes = torch.full((1, 6), 64.0) if unet.config.vector else None
    cond = Cond(drawn(1, 5, unet.config.context), pooled=pooled, sizes=sizes)
    coder = tiny_net(family, "autoencoder")
    for net, call in (
        (unet, lambda net: net(drawn(1, 4, 16, 24), torch.tensor([500.0]), cond)),
        (unet, lambda net: net(drawn(1, 4, 15, 18), torch.tensor([500.0]), cond)),
        (coder, lambda net: net.decode(drawn(1, 4, 6, 8))),
    ):
        other = folding(deepcopy(net), True, lambda _: None)
        assert any(isinstance(layer, FoldedUpsample) for layer in other.modules())
        assert not any(isinstance(layer, Upsample) for layer in other.modules())
        want = call(net)
        assert (call(other) - want).abs().max() < 2e-5 * want.abs().max()

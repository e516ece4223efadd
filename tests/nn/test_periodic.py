"""Networks on a torus: what is rolled comes out rolled, and the network that shares its weights stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import randomised, tiny_net
from torch import nn

from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.models.tiny_vae import TinyVAE, TinyVAEConfig
from limner.nn.periodic import PeriodicConv2d, periodic
from limner.types import Cond

MINI = MiniAutoencoderConfig(4, (8, 8, 8), (1, 1, 1), (8, 8, 8), (1, 1, 1))


def unet(family):
    net = tiny_net(family, "denoiser")
    pooled = torch.ones(1, net.config.vector - 6 * 256) * 0.3 if net.config.vector else None
    sizes = torch.full((1, 6), 64.0) if net.config.vector else None
    cond = Cond(torch.linspace(-1, 1, 5 * net.config.context).view(1, 5, -1), pooled=pooled, sizes=sizes)
    return net, lambda net, x: net(x, torch.tensor([500.0]), cond)


def autoencoder(net, side):
    return net, lambda net, x: net.decode(x) if side == "decode" else net.encode(x)


CASES = {  # a network and its call, the input's shape, the shift, the factor of the output
    "unet sd15": (lambda: unet("sd15"), (1, 4, 16, 24), (4, 6), 1),
    "unet sdxl": (lambda: unet("sdxl"), (1, 4, 16, 24), (4, 8), 1),
    "vae decoder": (lambda: autoencoder(tiny_net("sd15", "autoencoder"), "decode"), (1, 4, 6, 8), (1, 3), 8),
    "vae encoder": (
        lambda: (tiny_net("sd15", "autoencoder"), lambda n, x: n.encode(x)[0]), (1, 3, 48, 64), (8, 24), 1 / 8
    ),
    "taesd decoder": (
        lambda: autoencoder(randomised(TinyVAE(TinyVAEConfig(width=8))), "decode"), (1, 4, 6, 8), (1, 3), 8
    ),
    "mini decoder": (lambda: autoencoder(randomised(MiniAutoencoder(MINI)), "decode"), (1, 4, 6, 8), (1, 3), 8),
    "mini encoder": (
        lambda: autoencoder(randomised(MiniAutoencoder(MINI)), "encode"), (1, 4, 48, 64), (8, 24), 1 / 8
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_what_is_rolled_comes_out_rolled(case):
    make, shape, shift, factor = CASES[case]
    net, call = make()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    far = tuple(round(cells * factor) for cells in shift)
    around, plain = periodic(net, True, True), call(net, x)

    def missed(one):
        return float((call(one, x.roll(shift, (2, 3))) - call(one, x).roll(far, (2, 3))).abs().max())

    size = float(plain.abs().max())
    assert missed(around) < 1e-5 * max(size, 1)
    assert missed(net) > 1e-3 * size  # a network with borders does not
    assert torch.equal(call(net, x), plain)


@pytest.mark.parametrize(("x", "y"), [(True, False), (False, True)])
@torch.inference_mode()
def test_one_axis_goes_around_and_the_other_keeps_its_border(x, y):
    make, shape, shift, _ = CASES["vae encoder"]
    net, call = make()
    one = periodic(net, x, y)
    picture = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for axis, goes in ((3, x), (2, y)):
        got = call(one, picture.roll(shift[1], axis))
        same = torch.allclose(got, call(one, picture).roll(shift[1] // 8, axis), atol=1e-5)
        assert same == goes


def test_a_convolution_is_that_of_the_picture_laid_around_itself():
    conv = nn.Conv2d(2, 3, (3, 5), padding=(1, 2), stride=(1, 2)).requires_grad_(False)
    picture = torch.randn(1, 2, 6, 8)
    whole = F.pad(F.pad(picture, (2, 2, 0, 0), mode="circular"), (0, 0, 1, 1))
    want = F.conv2d(whole, conv.weight, conv.bias, stride=(1, 2))
    torch.testing.assert_close(periodic(conv, True, False)(picture), want, rtol=0, atol=1e-6)


def test_weights_and_names_are_shared_and_two_settings_live_side_by_side():
    net = MiniTransformer(MiniTransformerConfig(width=64, depth=2, heads=1, hidden=96, text=48)).eval()
    one, other = periodic(net, True, False), periodic(net, False, True)
    for (name, mine), (theirs, value) in zip(net.named_parameters(), one.named_parameters(), strict=True):
        assert name == theirs and mine is value
    assert type(net.blocks[0].feed.conv) is nn.Conv2d
    assert isinstance(one.blocks[0].feed.conv, PeriodicConv2d)
    assert (one.blocks[0].feed.conv.around, other.blocks[0].feed.conv.around) == ((True, False), (False, True))
    assert periodic(net, False, False) is net

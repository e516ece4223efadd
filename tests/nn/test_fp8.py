"""Products in floats of 8 bits, as torch computes them on the CPU: what layers say, and which are exchanged."""

import pytest
import torch
from tests.conftest import tiny_net
from torch import Tensor, nn

from limner.nets import placed
from limner.nn.fp8 import KIND, REACH, Fp8Linear, eligible, in_fp8, rounded
from limner.place import Place
from limner.types import Cond

CPU = torch.device("cpu")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1e-20, 0.0, 1e-3, 1.0, 1e4], ids=str)
def test_rows_are_rounded_by_their_largest_value(size: float):
    x = drawn(5, 64) * torch.tensor([[1.0], [10], [0], [0.1], [3]]) * size
    small, scale = rounded(x)
    assert small.dtype == KIND and scale.shape == (5, 1)
    assert small.float().abs().amax(1).max() <= REACH
    if size >= 1e-3:
        assert ((small.float() * scale - x).abs() <= x.abs() / 16 + x.abs().amax(1, keepdim=True) * 2e-6).all()


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_says_what_its_rounded_numbers_come_to(bias: bool, dtype: torch.dtype):
    layer, x = nn.Linear(96, 64, bias=bias), drawn(2, 7, 96)
    y = Fp8Linear(layer, torch.bfloat16, CPU)(x.to(dtype))
    (mine, scale), (weight, scales) = rounded(x.to(dtype).flatten(0, 1)), rounded(layer.weight.data)
    want = (mine.double() * scale) @ (weight.double() * scales).t() + (layer.bias.double() if bias else 0)
    assert y.shape == (2, 7, 64) and y.dtype == torch.bfloat16
    assert (y.flatten(0, 1) - want).abs().max() < 0.01 * want.abs().max()
    assert (y - layer(x)).norm() < 0.06 * layer(x).norm()


@torch.inference_mode()
def test_a_row_of_a_batch_is_the_one_that_it_is_alone():
    layer, x = Fp8Linear(nn.Linear(64, 64), torch.bfloat16, CPU), drawn(3, 5, 64)
    assert torch.equal(layer(x)[1:2], layer(x[1:2]))


@torch.inference_mode()
def test_rows_lie_one_after_another_whatever_came_in():
    """As torch's own rules for a card want it, which it knows without one."""
    hollow = Fp8Linear(nn.Linear(64, 32), torch.bfloat16, torch.device("meta"))
    x = torch.empty(1, 64, 16, 16, device="meta")  # as a card's norms give it: places beside one another
    assert hollow(x.permute(0, 2, 3, 1).flatten(1, 2)).shape == (1, 256, 32)


def test_what_a_card_cannot_multiply_and_what_reads_times_stays_wide():
    assert eligible("middle_block.1.proj_in", nn.Linear(64, 32))
    for name, layer in (
        ("time_embed.0", nn.Linear(64, 64)),
        ("proj_in", nn.Linear(40, 64)),
        ("to_k", nn.Linear(64, 8)),
    ):
        assert not eligible(name, layer)
    assert not eligible("in_layers.2", nn.Conv2d(64, 64, 3))


@torch.inference_mode()
@pytest.mark.parametrize("family", ["sdxl", "sd35"])
def test_a_network_in_fp8_answers_nearly_the_same(family: str):
    import copy

    net = tiny_net(family, "denoiser").requires_grad_(False)
    config = net.config
    cond = Cond(drawn(2, 9, config.context))
    if family == "sdxl":
        sizes = torch.full((2, 6), 512.0)
        cond = Cond(cond.tokens, pooled=drawn(2, config.vector - 6 * 256), sizes=sizes)
    else:
        cond = Cond(cond.tokens, pooled=drawn(2, config.pooled))
    x, t = drawn(2, config.channels, 8, 8), torch.full((2,), 500.0)
    place, gone = Place(CPU, torch.bfloat16, "a test", small="fp8"), []
    small = placed(copy.deepcopy(net), place, pack=True)
    assert any(isinstance(each, Fp8Linear) and each.small.dtype == KIND for each in small.modules())
    with place.autocast():
        answer, want = small(x, t, cond), net(x, t, cond)
    assert 1e-4 < (answer - want).norm() / want.norm() < 0.15
    in_fp8(copy.deepcopy(net), torch.bfloat16, CPU, lambda value: gone.append(value.numel()))
    assert len(gone) == sum(isinstance(each, Fp8Linear) for each in small.modules())

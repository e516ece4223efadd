"""Muon against PyTorch's own, which computes in bf16 only."""

import pytest
import torch
from torch import nn

from limner.train.muon import Muon, orthogonal


def steps(made, count: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(24, 16))
    optimiser = made([weight])
    for _ in range(count):
        weight.grad = torch.randn_like(weight)
        optimiser.step()
    return weight.detach()


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 2e-3), (torch.float32, 1e-2)])
def test_steps_are_those_of_the_reference(dtype: torch.dtype, most: float):
    ours = steps(lambda params: Muon(params, 0.02, weight_decay=0.1, dtype=dtype))
    theirs = steps(lambda params: torch.optim.Muon(params, 0.02, weight_decay=0.1, adjust_lr_fn="original"))
    assert (ours - theirs).abs().max() < most
    assert (ours - steps(lambda params: Muon(params, 0.0))).abs().max() > 0.02  # the steps were large


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16)])
def test_singular_values_come_near_one(shape: tuple[int, int]):
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
    assert values.min() > 0.5 and values.max() < 1.5


def test_its_momentum_is_kept_under_the_name_that_checkpoints_know():
    weight = nn.Parameter(torch.randn(4, 4))
    optimiser = Muon([weight], 0.01)
    weight.grad = torch.ones_like(weight)
    optimiser.step()
    assert list(optimiser.state[weight]) == ["momentum_buffer"]

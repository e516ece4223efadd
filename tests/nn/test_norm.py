"""Norms and gates: in strips as in one go."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limner.nn import norm
from limner.nn.norm import RMSNorm, joined, modulated


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def strips(monkeypatch) -> list[int]:
    """How many places each strip has that is cut."""
    seen = []

    def cut(x: Tensor):
        for b, here in whole(x):
            seen.append(len(range(*here.indices(x.shape[1]))))
            yield b, here

    whole = norm._strips
    monkeypatch.setattr(norm, "STRIP", 32 * 3)
    monkeypatch.setattr(norm, "_strips", cut)
    return seen


PASSES = {
    "modulated": lambda x: modulated(x, drawn(2, 1, 32, seed=2), drawn(2, 1, 32, seed=3)),
    "joined": lambda x: joined(x, drawn(2, 1, 32, seed=2), drawn(2, 7, 32, seed=3).bfloat16()),
    "rms": RMSNorm(32),
}


@pytest.mark.parametrize("name", PASSES)
def test_in_strips_it_is_the_same(name: str, strips: list[int]):
    x = drawn(2, 7, 32)
    want = PASSES[name](x)
    assert not strips  # where gradients may come back
    with torch.inference_mode():
        answer = PASSES[name](x)
    assert strips == [3, 3, 1] * 2
    torch.testing.assert_close(answer, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["modulated", "rms"])
@torch.inference_mode()
def test_a_row_is_the_same_in_every_batch(name: str, strips: list[int]):
    x = drawn(2, 7, 32)
    one = {"modulated": lambda: modulated(x[:1], drawn(2, 1, 32, seed=2)[:1], drawn(2, 1, 32, seed=3)[:1])}
    alone = one.get(name, lambda: PASSES[name](x[:1]))()
    assert torch.equal(alone[0], PASSES[name](x)[0])


@torch.inference_mode()
def test_what_products_read_is_rounded_as_they_would(strips: list[int]):
    x, shift, scale = drawn(2, 7, 32), drawn(2, 1, 32, seed=2), drawn(2, 1, 32, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        answer = modulated(x, shift, scale)
    assert answer.dtype == torch.bfloat16 and strips
    want = F.layer_norm(x, (32,), eps=1e-6) * (1 + scale) + shift
    assert (answer - want).abs().max() <= 0.004 * want.abs().max()


@pytest.mark.parametrize("shape", [(2, 7, 32), (2, 5, 3, 32)])
@torch.inference_mode()
def test_the_root_mean_square_becomes_one(shape: tuple[int, ...]):
    x = drawn(*shape) * 5
    answer = RMSNorm(32)(x)
    torch.testing.assert_close(answer.square().mean(-1), torch.ones(shape[:-1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer, x * answer.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True))
    half = RMSNorm(32)(x.bfloat16())
    assert half.dtype == torch.bfloat16 and (half - answer).abs().max() < 0.02 * answer.abs().max()

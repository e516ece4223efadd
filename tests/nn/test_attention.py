"""Attention: our own products against the reference, and heads there and back."""

import pytest
import torch
import torch.nn.functional as F

from limner.nn.attention import attend, join_heads, split_heads


def qkv(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=rng, dtype=dtype) for n in (5, 7, 7)]  # T 5, S 7


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_scaled_dot_product_attention(masked):
    q, k, v = qkv()
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]]) if masked else None
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
    torch.testing.assert_close(attend(q, k, v, mask), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("most", [1, 20, 200])
@pytest.mark.parametrize("told", ["nothing", "a mask", "a bias for all", "a bias for each"])
def test_in_blocks_it_is_the_same(monkeypatch, told: str, most: int):
    """Scores that are more than fit at once go by head and by blocks of queries."""
    q, k, v = qkv()
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]]) if told == "a mask" else None
    bias = (
        torch.randn((1, 1, 5, 7) if told.endswith("all") else (2, 3, 5, 7), dtype=torch.float64)
        if "bias" in told
        else None
    )
    want = attend(q, k, v, mask, bias, scale=0.5)
    monkeypatch.setattr("limner.nn.attention.MOST_SCORES", most)
    torch.testing.assert_close(attend(q, k, v, mask, bias, scale=0.5), want, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_reference():
    ours, theirs = ([part.requires_grad_() for part in qkv()] for _ in range(2))
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    attend(*ours, mask).square().sum().backward()
    F.scaled_dot_product_attention(*theirs, attn_mask=mask[:, None, None]).square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("most", [0, 2**26])
def test_in_bf16_gradients_come_back_through_plain_products_while_scores_are_few(monkeypatch, most: int):
    """There PyTorch's fused kernel takes its time on the way back; where scores are many it holds none of them."""
    asked = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr("limner.nn.attention.MOST_LEARNT", most)
    monkeypatch.setattr("limner.nn.attention.fuses_attention", lambda _: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: asked.append(1) or fused(*a, **k))
    ours = [part.bfloat16().requires_grad_() for part in qkv()]
    theirs = [part.detach().double().requires_grad_() for part in ours]
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    attend(*ours, mask).square().sum().backward()
    assert len(asked) == (most == 0)
    fused(*theirs, attn_mask=mask[:, None, None]).square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad - other.grad).norm() < 0.02 * other.grad.norm()


def test_what_the_mask_hides_does_not_count_whatever_it_is():
    q, k, v = qkv()
    mask = torch.tensor([[True] * 4 + [False] * 3] * 2)
    want = attend(q, k[:, :, :4], v[:, :, :4])
    k[:, :, 4:], v[:, :, 4:] = 1e6, -1e6
    torch.testing.assert_close(attend(q, k, v, mask), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_without_infinities(dtype):
    q, k, v = qkv(dtype)
    out = attend(q, k, v, torch.tensor([[True] + [False] * 6] * 2))
    assert out.dtype == dtype
    torch.testing.assert_close(out, v[:, :, :1].expand_as(out))


def test_heads_are_split_and_joined_again():
    x = torch.randn(2, 5, 12)
    assert split_heads(x, 3).shape == (2, 3, 5, 4)
    assert torch.equal(split_heads(x, 3)[:, 1], x[:, :, 4:8])
    assert torch.equal(join_heads(split_heads(x, 3)), x)


def test_gradients_come_back_through_blocks(monkeypatch):
    """Where scores are too many to be held, as without AMX in bf16."""
    monkeypatch.setattr("limner.nn.attention.MOST_SCORES", 20)
    ours, theirs = ([part.requires_grad_() for part in qkv()] for _ in range(2))
    attend(*ours).square().sum().backward()
    F.scaled_dot_product_attention(*theirs).square().sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-11)

"""The mini denoiser: words that are padded are hidden, rows do not see each other, every size is taken."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.types import Cond

TINY = MiniTransformerConfig(channels=4, width=32, depth=4, heads=2, hidden=48, text=12, styles=3)


@pytest.fixture
def model() -> MiniTransformer:
    torch.manual_seed(0)
    made = MiniTransformer(TINY)
    with torch.no_grad():  # a new head answers zero, which would make every test here true
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def cond(rows: int, words: int = 5, seed: int = 0) -> Cond:
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, words, TINY.text, generator=rng)
    lengths = torch.arange(rows)[:, None] % words + 1
    style = torch.arange(rows) % (TINY.styles + 1)
    return Cond(tokens, torch.randn(rows, TINY.text, generator=rng), torch.arange(words)[None] < lengths, style)


def noise(rows: int, h: int = 6, w: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(9)
    return torch.randn(rows, TINY.channels, h, w, generator=rng), torch.rand(rows, generator=rng)


def test_a_new_model_answers_zero():
    made = MiniTransformer(TINY)
    assert not made(*noise(2), cond(2)).any()


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(2, 2), (6, 6), (4, 10), (14, 2), (32, 24)])
def test_every_size_that_the_patch_divides_is_taken(model, h, w):
    x, t = noise(2, h, w)
    out = model(x, t, cond(2))
    assert out.shape == x.shape and out.dtype == torch.float32
    assert out.isfinite().all() and out.std() > 0


@torch.no_grad()
def test_longer_padding_changes_nothing(model):
    x, t = noise(3)
    short = cond(3)
    assert short.mask is not None
    long = replace(
        short, tokens=F.pad(short.tokens, (0, 0, 0, 4), value=9.0), mask=F.pad(short.mask, (0, 4), value=False)
    )
    torch.testing.assert_close(model(x, t, long), model(x, t, short), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_stands_in_padded_words_changes_nothing(model):
    x, t = noise(3)
    plain = cond(3)
    assert plain.mask is not None
    other = replace(plain, tokens=torch.where(plain.mask[:, :, None], plain.tokens, plain.tokens * 50 - 3))
    torch.testing.assert_close(model(x, t, other), model(x, t, plain), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_row_does_not_see_the_others(model):
    x, t = noise(3)
    whole = cond(3)
    together = model(x, t, whole)
    for k in range(3):
        torch.testing.assert_close(model(x[k : k + 1], t[k : k + 1], whole.row(k))[0], together[k], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("what", ["time", "tokens", "pooled", "style"])
def test_everything_that_it_is_told_counts(model, what):
    x, t = noise(2)
    told = cond(2)
    plain = model(x, t, told)
    if what == "time":
        other = model(x, 1 - t, told)
    else:
        old = vars(told)[what]
        other = model(x, t, replace(told, **{what: 1 + old if what == "style" else old.flip(-1)}))
    assert (other - plain).abs().amax((1, 2, 3)).min() > 1e-4


@torch.no_grad()
def test_places_are_told_apart(model):
    x, t = noise(1)
    turned = model(x.flip(3), t, cond(1)).flip(3)
    assert (turned - model(x, t, cond(1))).abs().max() > 1e-3


def test_the_gradient_reaches_every_parameter(model):
    model.train()
    x, t = noise(8)
    model(x, t, cond(8)).square().mean().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@torch.no_grad()
def test_products_in_bf16_stay_near(model):
    x, t = noise(2)
    plain = model(x, t, cond(2))
    with torch.autocast("cpu", torch.bfloat16):
        near = model(x, t, cond(2))
    assert near.dtype == torch.float32
    assert (near - plain).norm() / plain.norm() < 0.05


@pytest.mark.parametrize("missing", ["pooled", "mask", "style"])
def test_a_condition_without_its_parts_is_refused_in_words(model, missing):
    x, t = noise(1)
    with pytest.raises(ValueError, match="needs tokens, pooled, mask and style"):
        model(x, t, replace(cond(1), **{missing: None}))


def test_an_odd_depth_is_refused_where_it_is_made():
    with pytest.raises(ValueError, match="depth 3"):
        MiniTransformer(replace(TINY, depth=3))


@torch.no_grad()
def test_a_perturbed_network_sees_each_place_alone_in_its_middle(model):
    """Where the outer blocks add nothing, what one patch shows reaches no other patch."""
    x, t = noise(1)
    other = x.clone()
    other[:, :, :2, :2] += 1  # the first patch
    for i, block in enumerate(model.blocks):
        block.feed.conv.weight.zero_()[:, :, 1, 1] = 1  # nor do the convolutions look around
        if i in (0, 3):
            block.out.weight.zero_()
    moved = (model(other, t, cond(1), perturbed=True) - model(x, t, cond(1), perturbed=True)).abs().amax(1)[0]
    assert moved[:2, :2].min() > 1e-4
    moved[:2, :2] = 0
    assert moved.max() == 0
    plain = (model(other, t, cond(1)) - model(x, t, cond(1))).abs().amax(1)[0]
    assert plain[2:, 2:].min() > 1e-6


@torch.no_grad()
def test_what_deep_blocks_gave_can_stand_for_them(model):
    x, t = noise(2)
    plain, gave = model(x, t, cond(2)), []
    assert torch.equal(model(x, t, cond(2), deep=lambda inner: gave.append(inner()) or gave[0]), plain)
    calls = []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model(x, t, cond(2), deep=lambda _: gave[0]), plain)
    assert not calls
    assert not torch.equal(model(x, t, cond(2), deep=lambda _: gave[0] + 1), plain)

"""ESRGAN's networks: a plain recomputation from published names, and every naming there and back.

No reference library is at hand; `esrgan` and `compact` below say the papers' networks once more, from a dictionary of
tensors in the names that were published.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import randomised
from torch import Tensor

from limner.families.seeing import COMPACT, RRDB
from limner.models.rrdbnet import CompactConfig, CompactNet, RrdbConfig, RrdbNet, compact_config_of, config_of
from limner.weights.layout import translate

FOUR = RrdbConfig(width=12, growth=5, blocks=2)
CONFIGS = {
    "x4": FOUR,
    "x1 of the first files": replace(FOUR, doublings=0),
    "x2 of the first files": replace(FOUR, doublings=1),
    "x8": replace(FOUR, doublings=3, blocks=1),
    "x2": replace(FOUR, unshuffle=2),
    "x1": replace(FOUR, unshuffle=4),
}
SCALES = {"x4": 4, "x1 of the first files": 1, "x2 of the first files": 2, "x8": 8, "x2": 2, "x1": 1}


def esrgan(w: dict[str, Tensor], x: Tensor, blocks: int, doublings: int, unshuffle: int) -> Tensor:
    """In the names of the first files, where every layer has its number."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    b, c, height, width = x.shape
    n = unshuffle
    x = x.reshape(b, c, height // n, n, width // n, n).permute(0, 1, 3, 5, 2, 4)
    first = conv("model.0", x.reshape(b, c * n * n, height // n, width // n))
    trunk = first
    for i in range(blocks):
        inner = trunk
        for j in (1, 2, 3):
            where = f"model.1.sub.{i}.RDB{j}"
            parts = [inner]
            for k in (1, 2, 3, 4):
                made = conv(f"{where}.conv{k}.0", torch.cat(parts, 1))
                parts.append(torch.where(made > 0, made, made * 0.2))
            inner = conv(f"{where}.conv5.0", torch.cat(parts, 1)) * 0.2 + inner
        trunk = inner * 0.2 + trunk
    x, at = first + conv(f"model.1.sub.{blocks}", trunk), 3
    for _ in range(doublings):
        x = conv(f"model.{at}", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        x, at = torch.where(x > 0, x, x * 0.2), at + 3
    x = conv(f"model.{at - 1}", x)
    return conv(f"model.{at + 1}", torch.where(x > 0, x, x * 0.2))


def compact(w: dict[str, Tensor], x: Tensor, scale: int) -> Tensor:
    y, last = x, max(int(name.split(".")[1]) for name in w)
    for i in range(0, last + 1, 2):
        y = F.conv2d(y, w[f"body.{i}.weight"], w[f"body.{i}.bias"], padding=1)
        if i < last:
            y = torch.where(y > 0, y, y * w[f"body.{i + 1}.weight"][:, None, None])
    b, _, h, width = y.shape
    y = y.reshape(b, 3, scale, scale, h, width).permute(0, 1, 4, 2, 5, 3).reshape(b, 3, h * scale, width * scale)
    return y + x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def near(found: Tensor, want: Tensor) -> bool:
    return found.shape == want.shape and float((found - want).abs().max() / want.abs().max()) < 1e-5


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_it_computes_what_the_papers_say(kind):
    config = CONFIGS[kind]
    net = randomised(RrdbNet(config))
    theirs = translate(net.state_dict(), RRDB.naming("esrgan").writes(config), back=True)
    x = drawn(2, 3, 12, 8)
    found = net(x)
    assert near(found, esrgan(theirs, x, config.blocks, config.doublings, config.unshuffle))
    assert net.scale == SCALES[kind]
    assert found.shape == (2, 3, 12 * SCALES[kind], 8 * SCALES[kind])


@pytest.mark.parametrize("scale", [1, 2, 4])
@torch.no_grad()
def test_the_compact_kind_too(scale):
    net = randomised(CompactNet(CompactConfig(width=8, blocks=3, scale=scale)))
    x = drawn(2, 3, 6, 9)
    assert near(net(x), compact(net.state_dict(), x, scale))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("layout", ["real-esrgan", "esrgan", "bsrgan"])
def test_names_go_there_and_back_and_tell_the_config(layout, kind):
    config, naming = CONFIGS[kind], RRDB.naming(layout)
    state = RrdbNet(config).state_dict()
    theirs = translate(state, naming.writes(config), back=True)
    assert all(mark in theirs for mark in naming.marks)
    again = translate(theirs, naming.reads({name: tuple(value.shape) for name, value in theirs.items()}))
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert config_of({name: tuple(value.shape) for name, value in again.items()}) == config


@pytest.mark.parametrize(
    "kind,numbers", [("x4", (3, 6, 8, 10)), ("x2 of the first files", (3, 5, 7)), ("x8", (3, 6, 9, 11, 13))]
)
def test_the_first_names_are_those_that_are_published(kind, numbers):
    config = CONFIGS[kind]
    theirs = translate(RrdbNet(config).state_dict(), RRDB.naming("esrgan").writes(config), back=True)
    assert {f"model.{n}.weight" for n in (0, *numbers)} | {f"model.1.sub.{config.blocks}.weight"} == {
        name for name in theirs if name.endswith("weight") and ".RDB" not in name
    }
    assert {f"model.1.sub.0.RDB{j}.conv{k}.0.bias" for j in (1, 2, 3) for k in range(1, 6)} < theirs.keys()


def test_the_compact_kind_is_told_from_shapes():
    config = CompactConfig(width=8, blocks=3, scale=2)
    shapes = {name: tuple(value.shape) for name, value in CompactNet(config).state_dict().items()}
    assert compact_config_of(shapes) == config
    assert all(mark in shapes for mark in COMPACT.namings[0].marks)


def test_the_published_size_is_the_default():
    with torch.device("meta"):
        count = sum(value.numel() for value in RrdbNet(RrdbConfig()).parameters())
        small = sum(value.numel() for value in CompactNet(CompactConfig(blocks=32)).parameters())
    assert count == 16_697_987  # of RRDB_ESRGAN_x4 and RealESRGAN_x4plus
    assert small == 1_213_296  # of realesr-general-x4v3

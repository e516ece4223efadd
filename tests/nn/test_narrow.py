"""What autocast on a card would widen stays as wide as what came in, and says the same."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import randomised, tiny_net
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.nets import placed
from limner.nn.narrow import KINDS, narrowed
from limner.nn.upsample import Upsample
from limner.place import Place
from limner.types import Cond

WIDENED = {F.group_norm, F.layer_norm, F.interpolate}  # as torch lists them for cards: autocast_mode.h


class AsOnACard(TorchFunctionMode):
    """Autocast as a card has it, for these operations; who is asked in what is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WIDENED and torch.is_autocast_enabled("cpu"):
            args = [value.float() if isinstance(value, Tensor) else value for value in args]
        if func in WIDENED:
            self.asked.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


LAYERS = {
    "group": (nn.GroupNorm(4, 16), (2, 16, 5, 6)), "layer": (nn.LayerNorm(16), (2, 7, 16)),
    "layer without bias": (nn.LayerNorm(16, bias=False), (2, 7, 16)),
    "layer without weights": (nn.LayerNorm(16, elementwise_affine=False), (2, 7, 16)),
    "enlarged": (Upsample(16), (1, 16, 3, 4)),
}  # fmt: skip


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_an_answer_is_as_wide_as_what_was_read(name: str, dtype: torch.dtype):
    layer, shape = LAYERS[name]
    plain, x = randomised(copy.deepcopy(layer)), drawn(*shape).to(dtype)
    narrow = narrowed(copy.deepcopy(plain))
    assert type(narrow) is KINDS[type(plain)] and narrow.state_dict().keys() == plain.state_dict().keys()
    with torch.autocast("cpu", torch.bfloat16), AsOnACard() as card:
        answer = narrow(x)
    assert card.asked == [dtype]
    assert (answer.float() - plain(x.float())).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.02)


@torch.inference_mode()
def test_a_card_reads_a_whole_network_narrow(monkeypatch: pytest.MonkeyPatch):
    net = tiny_net("sd15", "denoiser").requires_grad_(False)
    x, t, cond = drawn(1, 4, 8, 8), torch.tensor([500.0]), Cond(drawn(1, 7, net.config.context))
    place = Place(torch.device("cpu"), torch.bfloat16, "a test")
    wide = placed(copy.deepcopy(net), place)
    monkeypatch.setattr(Place, "narrows", property(lambda _: True))
    monkeypatch.setattr(Place, "folds", property(lambda _: False))
    narrow = placed(copy.deepcopy(net), place)
    kinds = [type(layer) for layer in narrow.modules()]
    assert not set(KINDS) & set(kinds) and set(KINDS.values()) <= set(kinds)
    with place.autocast():
        with AsOnACard() as card:
            answer = narrow(x, t, cond)
        assert set(card.asked) == {torch.bfloat16}
        with AsOnACard() as card:
            wide(x, t, cond)
        assert set(card.asked) == {torch.float32}
        want = net(x, t, cond)
    assert (answer - want).norm() < 0.03 * want.norm()

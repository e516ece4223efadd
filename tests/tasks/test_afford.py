"""What a walk would need is told before it begins, and a model keeps no more than there is memory for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import limner.nets
import limner.pipeline
import limner.tasks.afford
from limner.errors import BadInput
from limner.pipeline import Model, load
from limner.place import Keep, engines, find_place
from limner.recipe import Recipe
from limner.tasks.afford import _need, _weights, _work, afforded, sparing
from limner.tasks.run import several

SMALL = Recipe(prompt="a cat", seed=1, width=64, height=64)


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(limner.nets, "LARGE", 0)
    return replace(load(str(tiny_checkpoint("sdxl")), find_place("cpu", torch.float32)), adapts=True)


def needs(model: Model, recipes: list[Recipe]) -> dict[Keep, int]:
    weights, least = _weights(model, recipes), limner.memory.cost_of(model.family.name).least
    keeps: tuple[Keep, ...] = ("all", "one", "layer")
    return {keep: _need(weights, keep, *_work(model, recipes)) + least for keep in keeps}


def left(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(limner.tasks.afford, "free", lambda: int(size))


def test_weights_are_counted_as_they_will_be(model: Model):
    weights = _weights(model, [SMALL])
    assert set(weights.each) == {"denoiser", "autoencoder", "text", "text_2"}
    for net, size in weights.each.items():
        assert size == limner.nets.size(model.nets[net])
    assert sum(_weights(model, [SMALL]).each.values()) == 0  # they are there now


def test_what_keeps_less_needs_less(model: Model):
    need = needs(model, [SMALL])
    assert need["all"] > need["one"] > need["layer"] > 0


@pytest.mark.parametrize("keep", ["all", "one", "layer"])
def test_the_least_costly_that_fits_is_taken(model: Model, keep: Keep, monkeypatch: pytest.MonkeyPatch):
    left(monkeypatch, needs(model, [SMALL])[keep])
    assert afforded(model, [SMALL]).place.keep == keep


def test_what_is_needed_once_is_let_go(model: Model):
    assert sparing(model, [SMALL]).place.keep == "one"
    assert sparing(model, several(SMALL, 2)).place.keep == "one"  # a batch
    for kept, recipes in (
        (replace(model, adapts=False), [SMALL]),
        (model, [SMALL, SMALL.but(width=128)]),
        (model, [SMALL.but(hires=2.0)]),
        (model, several(SMALL, 40)),  # more than a batch
    ):
        assert sparing(kept, recipes) is kept
    model.nets["text"]
    assert sparing(model, [SMALL]) is model  # it is there already


def test_small_networks_stay(tiny_folder: Path):
    model = replace(load(str(tiny_folder), find_place("cpu")), adapts=True)
    assert sparing(model, [SMALL]) is model


def test_who_was_told_what_to_keep_is_told_what_would_fit(model: Model, monkeypatch: pytest.MonkeyPatch):
    left(monkeypatch, needs(model, [SMALL])["one"])
    with pytest.raises(BadInput, match=r"^this needs about [\d.]+ GB and [\d.]+ GB are free; `--keep one` would need "):
        afforded(replace(model, adapts=False), [SMALL])


@pytest.mark.skipif("openvino" not in engines("cpu"), reason="needs the extra openvino")
def test_an_engine_keeps_whole_networks(model: Model, monkeypatch: pytest.MonkeyPatch):
    place = model.place.driven("openvino")
    driven = replace(model, place=place, nets=model.nets.at(place))
    assert _weights(driven, [SMALL]) == _weights(model, [SMALL])
    left(monkeypatch, needs(model, [SMALL])["all"])
    assert afforded(driven, [SMALL]) is driven
    left(monkeypatch, needs(model, [SMALL])["all"] - 1)
    with pytest.raises(BadInput, match=r"openvino keeps whole networks: `--engine torch` can keep less$"):
        afforded(driven, [SMALL])


def test_a_window_or_a_smaller_picture_is_proposed(model: Model, monkeypatch: pytest.MonkeyPatch):
    large = SMALL.but(width=1536, height=1536)
    left(monkeypatch, needs(model, [large.but(width=768, height=768)])["layer"])
    with pytest.raises(BadInput, match=r"even `--keep layer` would need [\d.]+ GB, and with it a picture of 768x768 "):
        afforded(model, [large])
    many = several(SMALL.but(width=512, height=512), 4)
    left(monkeypatch, needs(model, many[:1])["layer"])
    with pytest.raises(BadInput, match="and one picture at a time"):
        afforded(model, many)
    left(monkeypatch, 1000)
    with pytest.raises(BadInput, match="no smaller picture would fit either"):
        afforded(model, [large])


def test_a_large_picture_in_windows_is_proposed(model: Model, monkeypatch: pytest.MonkeyPatch):
    wide = SMALL.but(width=2048, height=2048)
    monkeypatch.setattr(limner.tasks.afford, "WINDOWS", 1)
    left(monkeypatch, needs(model, [wide.but(window=1024)])["layer"])
    with pytest.raises(BadInput, match=r"with `--window 1024` "):
        afforded(model, [wide])


def test_mini_pays_no_time(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("the sizes of its files were enough")

    model = load(str(tiny_folder), find_place("cpu"))
    monkeypatch.setattr(limner.tasks.afford, "_weights", never)
    assert afforded(model, [SMALL]) is model


def test_where_memory_is_short_the_autoencoder_tiles(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    model = load(str(tiny_checkpoint("sd15")), find_place("cpu", torch.float32))
    z = torch.randn(1, 4, 72, 72, generator=torch.Generator().manual_seed(0))  # 576 x 576
    sizes: list[tuple[int, ...]] = []
    decoded = Model._decoded

    def noted(self: Model, latent: torch.Tensor, fast: bool) -> torch.Tensor:
        sizes.append(tuple(latent.shape))
        return decoded(self, latent, fast)

    monkeypatch.setattr(Model, "_decoded", noted)
    monkeypatch.setattr(limner.pipeline, "free", lambda: 2**40)
    whole = model.to_image(z)
    assert sizes == [(1, 4, 72, 72)]
    monkeypatch.setattr(limner.pipeline, "free", lambda: 2**20)
    assert model.to_image(z).shape == whole.shape
    assert sizes[1:] == [(1, 4, 64, 64)] * 4
    sizes.clear()
    assert len(model.to_image(torch.randn(3, 4, 8, 8))) == 3
    assert sizes == [(1, 4, 8, 8)] * 3  # one by one

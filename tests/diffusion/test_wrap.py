"""Kept parts, windows, a torus and regions, on denoisers whose answers are known."""

import pytest
import torch
from torch import Tensor

from limner.diffusion.guide import guided
from limner.diffusion.path import Discrete, Path, Straight, VariancePreserving
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import times
from limner.diffusion.wrap import Window, pinned, regional, rolled, tiled, windows
from limner.errors import BadInput
from limner.rng import Noise

PATHS = {"straight": Straight(), "vp": VariancePreserving(), "discrete": Discrete()}
rng = torch.Generator().manual_seed(0)


def always(value: Tensor):
    return lambda *_: value


def shrinking(x: Tensor, t: float) -> Tensor:
    """Pointwise, and a function of both."""
    return torch.tanh(x) * (1 - t / 2)


def blurred(x: Tensor, t: float) -> Tensor:
    """Sees its neighbours, and at a border zeros."""
    return torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)


def walked(name: str, denoiser, path: Path, x: Tensor) -> Tensor:
    for step in SAMPLERS[name](denoiser, path, x, times(6), Noise(1)):
        last = step
    return last.x


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun"])
def test_a_pinned_walk_ends_in_what_is_known(sampler, path):
    known = torch.randn(2, 3, 6, 6, generator=rng)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 2:5, 1:4] = 1
    x = path.a(1) * known + path.s(1) * Noise(1)(2, 3, 6, 6)
    got = walked(sampler, pinned(shrinking, known, mask), path, x)
    outside = (mask == 0).expand_as(known)
    assert float((got - known)[outside].abs().max()) <= (1e-6 if sampler == "heun" else 0)  # else bit for bit
    assert not torch.isclose(got[~outside], known[~outside]).any()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_pinned_walk_without_fresh_noise_keeps_to_the_path(path):
    known, eps = torch.randn(2, 1, 3, 6, 6, generator=rng, dtype=torch.float64)
    denoiser = pinned(shrinking, known, torch.zeros(1, 1, 6, 6))
    stations = times(6, start=0.8)
    for step in SAMPLERS["euler"](denoiser, path, path.noisy(known, eps, stations[0]), stations, Noise(1)):
        torch.testing.assert_close(step.x, path.noisy(known, eps, step.t), rtol=0, atol=1e-9)


def test_pinning_and_guidance_may_stand_inside_each_other():
    x, known = torch.randn(2, 1, 3, 6, 6, generator=rng, dtype=torch.float64)
    mask = torch.rand(1, 1, 6, 6, generator=rng, dtype=torch.float64)
    outer = pinned(guided(shrinking, blurred, 4.0), known, mask)(x, 0.5)
    inner = guided(pinned(shrinking, known, mask), pinned(blurred, known, mask), 4.0)(x, 0.5)
    torch.testing.assert_close(inner, outer, rtol=0, atol=1e-14)


@pytest.mark.parametrize("wrap", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("h", "w"), [(16, 16), (16, 30), (23, 41)])
def test_windows_of_a_pointwise_denoiser_are_the_whole(h, w, wrap):
    x = torch.randn(2, 3, h, w, generator=rng)
    got = tiled(lambda _: shrinking, windows(h, w, 12, 4, *wrap), (h, w))(x, 0.4)
    torch.testing.assert_close(got, shrinking(x, 0.4), rtol=0, atol=1e-6)


def test_one_window_that_is_everything_is_the_denoiser_itself():
    assert tiled(lambda _: blurred, windows(12, 12, 12, 4), (12, 12)) is blurred


def test_each_window_has_its_own_denoiser_and_shared_cells_the_mean():
    asked = []

    def at(window: Window):
        asked.append(window)
        return always(torch.full((1, 1, window.h, window.w), float(window.left)))

    places = windows(4, 12, 8, 4)
    got = tiled(at, places, (4, 12))(torch.zeros(1, 1, 4, 12), 0.5)[0, 0, 0]
    assert asked == places == [Window(0, 0, 4, 8), Window(0, 4, 4, 8)]
    assert torch.equal(got[:4], torch.zeros(4)) and torch.equal(got[8:], torch.full((4,), 4.0))
    assert (got[4:8].diff() > 0).all()
    torch.testing.assert_close(got[4:8] + got[4:8].flip(0), torch.full((4,), 4.0))


def test_windows_that_go_around_leave_no_seam_where_the_whole_does():
    x = torch.ones(1, 1, 16, 16)
    assert blurred(x, 0.5)[0, 0, 8, 0] < 0.7
    got = tiled(lambda _: blurred, windows(16, 16, 16, 4, True, True), (16, 16))(x, 0.5)
    assert got.min() > 0.99  # a border's weight is sin^2(pi / 32)


def test_windows_that_leave_gaps_are_refused():
    with pytest.raises(BadInput, match="the 1 windows leave 32 of 64 cells uncovered"):
        tiled(lambda _: blurred, [Window(0, 0, 8, 4)], (8, 8))


def test_a_rolled_denoiser_is_a_function_of_x_and_t_whose_seam_moves():
    x, stations = torch.ones(1, 1, 13, 13), times(13)
    turning = rolled(blurred, stations)
    seams = []
    for t in stations[:-1]:
        x0 = turning(x, t)[0, 0]
        assert torch.equal(x0, turning(x, t)[0, 0])
        assert sorted(x0.flatten().tolist()) == pytest.approx(sorted(blurred(x, t).flatten().tolist()))
        seams.append(int(x0.sum(0).topk(2, largest=False).indices.min()))
    assert len(set(seams)) >= 8  # of 13 places, in 13 steps
    assert torch.equal(turning(x, stations[0]), blurred(x, 1.0))
    between = (stations[3] + stations[4]) / 2
    assert torch.equal(turning(x, between), turning(x, stations[4]))


def test_a_rolled_pointwise_denoiser_is_itself_and_one_axis_may_stay():
    x = torch.randn(1, 2, 8, 10, generator=rng)
    assert torch.equal(rolled(shrinking, times(4))(x, 0.3), shrinking(x, 0.3))
    still = rolled(blurred, times(4), x=False, y=True)(torch.ones(1, 1, 8, 8), 0.3)[0, 0]
    assert torch.equal(still[:, 0], still[:, -1]) and still[:, 0].max() < 0.7


def test_regions_take_their_part_and_the_base_the_rest():
    left, right = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    left[..., :2], right[..., 1:3] = 1, 1
    ones = torch.ones(1, 3, 2, 4)
    got = regional(always(ones), [(left, always(2 * ones), 1.0), (right, always(6 * ones), 3.0)], share=0.0)(ones, 0.5)
    assert got[0, 0, 0].tolist() == pytest.approx([2, (2 + 3 * 6) / 4, 6, 1])
    shared = regional(always(ones), [(left, always(2 * ones), 0.5)], share=0.2)(ones, 0.5)
    assert shared[0, 0, 0].tolist() == pytest.approx([0.6 + 0.4 * 2, 0.6 + 0.4 * 2, 1, 1])


def test_regions_that_agree_with_the_base_change_nothing():
    x = torch.randn(1, 3, 4, 4, generator=rng)
    parts = [(torch.rand(1, 1, 4, 4, generator=rng), shrinking, weight) for weight in (0.3, 1.0, 2.0)]
    torch.testing.assert_close(regional(shrinking, parts)(x, 0.5), shrinking(x, 0.5))
    assert regional(shrinking, []) is shrinking


def test_a_region_of_less_than_nothing_is_refused():
    with pytest.raises(BadInput, match="none is below 0"):
        regional(shrinking, [(torch.ones(1, 1, 2, 2), shrinking, -1.0)])

"""Samplers in float64 on toys that are known exactly: every one in the registry is tried on every path."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from limner.diffusion.path import Path, Straight, VarianceExploding, VariancePreserving
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import times
from limner.errors import UnknownName
from limner.rng import Noise
from limner.types import Denoiser, Step

PATHS = [Straight(), VariancePreserving(), VarianceExploding()]
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3}
JUMPS = {"lcm"}  # for denoisers that leap to the end of the walk, not to the mean of all ends

every_sampler = pytest.mark.parametrize("name", list(SAMPLERS))
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.7], [-0.2, -1.2]], dtype=torch.float64)
WIDTHS = torch.tensor([0.1, 0.2, 0.15], dtype=torch.float64)


def mixture(path: Path) -> Denoiser:
    """The mean of x0 given x_t for three Gaussians in the plane; each pixel of B 2 h w is a point."""

    def denoise(x: Tensor, t: float) -> Tensor:
        a, s = path.a(t), path.s(t)
        means = MEANS.to(x.dtype)[:, None, :, None, None]  # 3 1 2 1 1
        inner = WIDTHS.to(x.dtype).square()[:, None, None, None, None]
        total = a * a * inner + s * s
        off = x - a * means  # 3 B 2 h w
        log = WEIGHTS.to(x.dtype).log()[:, None, None, None] - (off.square() / total).sum(2) / 2 - total[:, :, 0].log()
        return (log.softmax(0)[:, :, None] * (means + a * inner / total * off)).sum(0)

    return denoise


def leaps(denoise: Denoiser, path: Path) -> Denoiser:
    """The end of the deterministic walk from (x, t): what a consistency model answers."""

    def jump(x: Tensor, t: float) -> Tensor:
        stations = [t * (1 - i / 24) for i in range(24)] + [0.0]
        return walk("heun", denoise, path, x, stations)[-1].x

    return jump


def walk(name: str, denoise: Denoiser, path: Path, x: Tensor, stations: list[float], seed: int = 0) -> list[Step]:
    return list(SAMPLERS[name](denoise, path, x, stations, Noise(seed)))


def first(path: Path, stations: list[float], count: int = 1, side: int = 4, seed: int = 0) -> Tensor:
    return path.s(stations[0]) * Noise(seed)(count, 2, side, side).double()


@every_sampler
@every_path
@pytest.mark.parametrize("schedule", ["uniform", "karras", "exponential"])
def test_the_mixture_is_recovered(name, path, schedule):
    steps = 6 if name in JUMPS else 250
    stations = times(steps, schedule, path)
    denoise = leaps(mixture(path), path) if name in JUMPS else mixture(path)
    points = walk(name, denoise, path, first(path, stations, side=64), stations)[-1].x
    points = points[0].flatten(1).T  # 4096 points in the plane
    nearest = torch.cdist(points, MEANS).argmin(1)
    for k in range(3):  # three standard errors of 4096 draws, and a little for the steps
        mine = points[nearest == k]
        assert len(mine) / len(points) == pytest.approx(float(WEIGHTS[k]), abs=0.03)
        assert (mine.mean(0) - MEANS[k]).abs().max() < 0.025
        assert (mine.std(0) / WIDTHS[k] - 1).abs().max() < 0.12
        assert abs(torch.corrcoef(mine.T)[0, 1]) < 0.12


@every_sampler
@every_path
def test_a_step_is_yielded_for_each_time(name, path):
    stations = times(5, path=path)
    x = first(path, stations)
    before = x.clone()
    steps = walk(name, mixture(path), path, x, stations)
    assert [(step.i, step.n, step.t) for step in steps] == [(i, 5, t) for i, t in enumerate(stations[1:])]
    assert all(step.x.shape == step.x0.shape == x.shape and step.x.isfinite().all() for step in steps)
    assert torch.equal(x, before)


@every_sampler
@every_path
def test_one_step_gives_the_estimate(name, path):
    stations = times(1, path=path)
    x = first(path, stations)
    step = walk(name, mixture(path), path, x, stations)[0]
    torch.testing.assert_close(step.x, mixture(path)(x, stations[0]), rtol=0, atol=1e-12)


@every_sampler
@every_path
def test_a_walk_repeats(name, path):
    stations = times(7, path=path)
    once, again = (walk(name, mixture(path), path, first(path, stations), stations, seed=5)[-1].x for _ in range(2))
    assert torch.equal(once, again)


@every_sampler
@every_path
def test_a_picture_does_not_depend_on_who_is_beside_it(name, path):
    stations = times(7, path=path)
    together = walk(name, mixture(path), path, first(path, stations, 3, seed=7), stations, seed=7)[-1].x
    for k in range(3):
        alone = walk(name, mixture(path), path, first(path, stations, seed=7 + k), stations, seed=7 + k)[-1].x
        torch.testing.assert_close(together[k], alone[0], rtol=0, atol=1e-12)


@every_sampler
@every_path
def test_single_precision_is_enough(name, path):
    stations = times(20, path=path)
    x = first(path, stations, side=16)
    want = walk(name, mixture(path), path, x, stations)[-1].x
    got = walk(name, mixture(path), path, x.float(), stations)[-1].x
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-4)


@every_sampler
@every_path
def test_a_walk_may_start_in_the_middle(name, path):
    """From pictures of the mixture, half noised, the mixture comes back."""
    stations = times(60, path=path, start=0.5)
    x0 = MEANS[0][None, :, None, None] + WIDTHS[0] * Noise(1)(1, 2, 32, 32)
    x = path.noisy(x0, Noise(2)(1, 2, 32, 32).double(), stations[0])
    denoise = leaps(mixture(path), path) if name in JUMPS else mixture(path)
    points = walk(name, denoise, path, x, stations)[-1].x[0].flatten(1).T
    assert torch.cdist(points, MEANS).min(1).values.max() < 1.2


def test_a_walk_is_lazy_and_may_be_left():
    calls = []

    def denoise(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return x

    steps = SAMPLERS["dpmpp_2m"](denoise, Straight(), torch.zeros(1, 2, 4, 4), times(9), Noise(0))
    assert calls == []
    next(steps)
    assert calls == [1.0]


def gaussian(path: Path, mean: float = 0.7, width: float = 0.5) -> tuple[Denoiser, Callable[[Tensor, float], Tensor]]:
    """A single Gaussian's denoiser, and the exact point at t of the walk that is at z deviations."""

    def denoise(x: Tensor, t: float) -> Tensor:
        a, s = path.a(t), path.s(t)
        return mean + a * width**2 / (a * a * width**2 + s * s) * (x - a * mean)

    return denoise, lambda z, t: path.a(t) * mean + math.hypot(path.a(t) * width, path.s(t)) * z


def even_in_log_snr(path: Path, n: int, low: float = -1.5, high: float = 3.0) -> list[float]:
    """n steps of h, after two of h squared: a multistep rule starts at first order, and there that costs nothing."""
    h = (high - low) / n
    lambdas = [low, low + h * h, low + 2 * h * h, *(low + i * h for i in range(1, n + 1))]
    return [path.time(math.exp(-where)) for where in lambdas if where <= high + 1e-9]


@pytest.mark.parametrize("name", list(ORDERS))
@every_path
def test_halving_the_steps_divides_the_error_by_two_to_the_order(name, path):
    denoise, exact = gaussian(path)
    z = Noise(0)(1, 2, 4, 4).double()
    errors = []
    for n in (40, 80, 160):
        stations = even_in_log_snr(path, n)
        end = walk(name, denoise, path, exact(z, stations[0]), stations)[-1].x
        errors.append(float((end - exact(z, stations[-1])).abs().max()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert ORDERS[name] - 0.15 < orders[-1] < ORDERS[name] + 0.4, (orders, errors)


@pytest.mark.parametrize("name", ["euler", "ddim", "flow euler"])
@pytest.mark.parametrize("schedule", ["uniform", "karras"])
def test_euler_on_the_preserving_path_is_ddim(name, schedule):
    path = VariancePreserving()
    stations = times(12, schedule, path)
    x = first(path, stations)
    got = walk(name, mixture(path), path, x, stations)
    for (t, t2), step in zip(pairwise(stations), got, strict=True):
        kept, kept2 = path.a(t) ** 2, path.a(t2) ** 2
        x0 = mixture(path)(x, t)
        eps = (x - kept**0.5 * x0) / (1 - kept) ** 0.5
        x = kept2**0.5 * x0 + (1 - kept2) ** 0.5 * eps
        torch.testing.assert_close(step.x, x, rtol=0, atol=1e-10)


def test_euler_on_the_exploding_path_is_that_of_k_diffusion():
    path = VarianceExploding()
    stations = times(12, "karras", path)
    x = first(path, stations)
    got = walk("euler", mixture(path), path, x, stations)[-1].x
    for t, t2 in pairwise(stations):
        sigma, sigma2 = path.s(t), path.s(t2)
        d = (x - mixture(path)(x, t)) / sigma
        x = x + d * (sigma2 - sigma)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


def test_euler_on_the_straight_path_is_that_of_flow_matching():
    path = Straight(shift=3.0)
    stations = times(12, path=path)
    x = first(path, stations)
    got = walk("euler", mixture(path), path, x, stations)[-1].x
    for t, t2 in pairwise(stations):
        velocity = (x - mixture(path)(x, t)) / t
        x = x + (t2 - t) * velocity
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


def test_euler_ancestral_on_the_exploding_path_is_that_of_k_diffusion():
    path = VarianceExploding()
    stations = times(12, "karras", path)
    x, noise = first(path, stations), Noise(3)
    got = walk("euler a", mixture(path), path, x, stations, seed=3)[-1].x
    for t, t2 in pairwise(stations):
        sigma, sigma2 = path.s(t), path.s(t2)
        up = min(sigma2, (sigma2**2 * (sigma**2 - sigma2**2) / sigma**2) ** 0.5)
        down = (sigma2**2 - up**2) ** 0.5
        d = (x - mixture(path)(x, t)) / sigma
        x = x + d * (down - sigma)
        if sigma2 > 0:
            x = x + noise.like(x) * up
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


def test_euler_ancestral_on_the_preserving_path_is_ddim_at_eta_1():
    path = VariancePreserving()
    stations = times(12, path=path)
    x, noise = first(path, stations), Noise(3)
    got = walk("euler a", mixture(path), path, x, stations, seed=3)[-1].x
    for t, t2 in pairwise(stations):
        kept, kept2 = path.a(t) ** 2, path.a(t2) ** 2
        x0 = mixture(path)(x, t)
        eps = (x - kept**0.5 * x0) / (1 - kept) ** 0.5
        fresh = ((1 - kept2) / (1 - kept) * (1 - kept / kept2)) ** 0.5  # equation 16
        x = kept2**0.5 * x0 + max(0.0, 1 - kept2 - fresh**2) ** 0.5 * eps
        if t2 > 0:
            x = x + fresh * noise.like(x)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


def test_dpmpp_2m_on_the_exploding_path_is_that_of_k_diffusion():
    path = VarianceExploding()
    stations = times(12, "karras", path)
    x = first(path, stations)
    got = walk("dpmpp_2m", mixture(path), path, x, stations)[-1].x
    sigmas, old = [path.s(t) for t in stations], None
    for i in range(12):
        denoised = mixture(path)(x, stations[i])
        if sigmas[i + 1] == 0:
            x = denoised
            continue
        h = math.log(sigmas[i] / sigmas[i + 1])
        ahead = denoised
        if old is not None:
            r = math.log(sigmas[i - 1] / sigmas[i]) / h
            ahead = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
        x = sigmas[i + 1] / sigmas[i] * x - math.expm1(-h) * ahead
        old = denoised
    torch.testing.assert_close(got, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M", "dpmpp_2m"),
        ("dpm++_2m_sde", "dpmpp_2m_sde"),
        ("Euler a", "euler_ancestral"),
        ("DDIM", "euler"),
        ("FlowMatchEulerDiscreteScheduler", "euler"),
        ("K-Heun", "heun"),
        ("LCM", "lcm"),
    ],
)
def test_the_fields_spellings_are_understood(spelling, name):
    assert SAMPLERS.name(spelling) == name


def test_an_unknown_sampler_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean heun"):
        SAMPLERS["huen"]

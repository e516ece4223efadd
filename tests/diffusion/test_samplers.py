"""Samplers in float64 on toys that are known exactly: every one in the registry is tried on every path."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from torch import Tensor

from limner.diffusion.guide import guided
from limner.diffusion.path import Discrete, Path, Straight, VarianceExploding, VariancePreserving
from limner.diffusion.samplers import SAMPLERS, draws
from limner.diffusion.times import SCHEDULES, times
from limner.errors import UnknownName
from limner.rng import Noise
from limner.types import Denoiser, Step

PATHS = [Straight(), Discrete(), VariancePreserving(), VarianceExploding()]
ORDERS = {"euler": 1, "euler_cfg_pp": 1, "heunpp2": 1, "gradient_estimation": 1, "heun": 2, "dpm2": 2, "deis": 2}
ORDERS |= {"dpmpp_2m": 2, "dpmpp_2m_cfg_pp": 2, "res_multistep": 2, "dpmpp_3m": 3, "lms": 4, "ipndm_v": 4}
ORDERS |= {"unipc_3": 2}  # fourth but for its last step, which is of first order as published
ROUGH = {"tcd"}  # its leap in between is straight, so that few steps come only near the mixture
JUMPS = {"lcm", "tcd"}  # for denoisers that leap to the end of the walk, not to the mean of all ends

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
@pytest.mark.parametrize(
    ("path", "schedule"),
    [(PATHS[0], "uniform"), (PATHS[1], "karras"), (PATHS[2], "uniform"), (PATHS[3], "exponential")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_mixture_is_recovered(name, path, schedule):
    stations = times(6 if name in JUMPS else 130, schedule, path)
    denoise = leaps(mixture(path), path) if name in JUMPS else mixture(path)
    points = walk(name, denoise, path, first(path, stations, side=40), stations)[-1].x
    points = points[0].flatten(1).T  # 1600 points in the plane
    nearest = torch.cdist(points, MEANS).argmin(1)
    for k in range(3):  # three standard errors of 1600 draws, and a little for the steps
        mine = points[nearest == k]
        assert len(mine) / len(points) == pytest.approx(float(WEIGHTS[k]), abs=0.04)
        assert (mine.mean(0) - MEANS[k]).abs().max() < (0.15 if name in ROUGH else 0.035)
        assert (mine.std(0) / WIDTHS[k] - 1).abs().max() < (0.35 if name in ROUGH else 0.18)
        assert abs(torch.corrcoef(mine.T)[0, 1]) < 0.2


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
    stations = times(3 if name in JUMPS else 24, path=path, start=0.5)
    x0 = MEANS[0][None, :, None, None] + WIDTHS[0] * Noise(1)(1, 2, 16, 16)
    x = path.noisy(x0, Noise(2)(1, 2, 16, 16).double(), stations[0])
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
    for n in (60, 120):
        stations = even_in_log_snr(path, n)
        end = walk(name, denoise, path, exact(z, stations[0]), stations)[-1].x
        errors.append(float((end - exact(z, stations[-1])).abs().max()))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert ORDERS[name] - 0.2 < orders[-1] < ORDERS[name] + 0.4, (orders, errors)


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


def exploding(name: str, n: int, seed: int = 3) -> tuple[Tensor, Denoiser, list[float], list[float], Noise, Tensor]:
    """A start, a denoiser of sigma, sigmas, stations, noise, and where our walk ends: to write VE formulas in."""
    path = VarianceExploding()
    stations = times(n, "karras", path)
    x = first(path, stations)
    end = walk(name, mixture(path), path, x, stations, seed=seed)[-1].x
    return x, lambda x, s: mixture(path)(x, path.time(s)), [path.s(t) for t in stations], stations, Noise(seed), end


def split(sigma: float, sigma2: float) -> tuple[float, float]:
    """What an ancestral step keeps and draws: k-diffusion's sigma_down and sigma_up."""
    up = min(sigma2, (sigma2**2 * (sigma**2 - sigma2**2) / sigma**2) ** 0.5)
    return (sigma2**2 - up**2) ** 0.5, up


def same(got: Tensor, want: Tensor, within: float = 1e-8) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=within)


def test_lms_on_the_exploding_path_integrates_the_polynomial_through_four_slopes():
    x, denoise, sigmas, _, _, end = exploding("lms", 10)
    slopes: list[Tensor] = []
    for i in range(10):
        slopes = [(x - denoise(x, sigmas[i])) / sigmas[i], *slopes][:4]
        for j in range(len(slopes)):
            nodes = [sigmas[i - k] for k in range(len(slopes))]
            basis = np.polynomial.Polynomial([1.0])
            for k, node in enumerate(nodes):
                if k != j:
                    basis *= np.polynomial.Polynomial([-node, 1.0]) / (nodes[j] - node)
            x = x + float(basis.integ()(sigmas[i + 1]) - basis.integ()(sigmas[i])) * slopes[j]
    same(end, x)


def test_heunpp2_on_the_exploding_path_weighs_later_slopes_by_their_level():
    x, denoise, sigmas, _, _, end = exploding("heunpp2", 8)
    for i in range(8):
        s = sigmas[i : i + 3]
        d1 = (x - denoise(x, s[0])) / s[0]
        d = d1
        if s[1] > 0:
            x2 = x + d1 * (s[1] - s[0])
            d2 = (x2 - denoise(x2, s[1])) / s[1]
            if s[2] > 0:
                x3 = x2 + d2 * (s[2] - s[1])
                d3 = (x3 - denoise(x3, s[2])) / s[2]
                w = 3 * sigmas[0]
                d = (1 - s[1] / w - s[2] / w) * d1 + s[1] / w * d2 + s[2] / w * d3
            else:
                w = 2 * sigmas[0]
                d = (1 - s[1] / w) * d1 + s[1] / w * d2
        x = x + d * (s[1] - s[0])
    same(end, x)


def test_dpm2_ancestral_on_the_exploding_path_is_that_of_k_diffusion():
    x, denoise, sigmas, _, noise, end = exploding("dpm2 a", 10)
    for sigma, sigma2 in pairwise(sigmas):
        down, up = split(sigma, sigma2)
        d = (x - denoise(x, sigma)) / sigma
        if down > 0:
            middle = (sigma * down) ** 0.5
            x2 = x + d * (middle - sigma)
            x = x + (x2 - denoise(x2, middle)) / middle * (down - sigma) + up * noise.like(x)
        else:
            x = x - d * sigma
    same(end, x)


def test_dpmpp_2s_ancestral_on_the_exploding_path_is_that_of_k_diffusion():
    x, denoise, sigmas, _, noise, end = exploding("dpm++ 2s a", 10)
    for sigma, sigma2 in pairwise(sigmas):
        down, up = split(sigma, sigma2)
        x0 = denoise(x, sigma)
        if down > 0:
            middle = (sigma * down) ** 0.5
            x2 = middle / sigma * x + (1 - middle / sigma) * x0
            x = down / sigma * x + (1 - down / sigma) * denoise(x2, middle) + up * noise.like(x)
        else:
            x = x0
    same(end, x)


def test_dpmpp_sde_on_the_exploding_path_walks_one_brownian_motion():
    x, denoise, sigmas, _, noise, end = exploding("dpm++ sde", 10)
    for sigma, sigma2 in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if sigma2 == 0:
            x = x0
            continue
        middle = (sigma * sigma2) ** 0.5
        (down, up), (down2, up2) = split(sigma, middle), split(sigma, sigma2)
        z1, z2 = noise.like(x), noise.like(x)
        x2 = down / sigma * x + (1 - down / sigma) * x0 + up * z1
        z = ((sigma - middle) ** 0.5 * z1 + (middle - sigma2) ** 0.5 * z2) / (sigma - sigma2) ** 0.5
        x = down2 / sigma * x + (1 - down2 / sigma) * denoise(x2, middle) + up2 * z
    same(end, x, 1e-6)  # noise is in single precision


def test_dpmpp_3m_sde_on_the_exploding_path_is_that_of_k_diffusion():
    x, denoise, sigmas, _, noise, end = exploding("dpm++ 3m sde", 12)
    past: list[Tensor] = []
    hs: list[float] = []
    for sigma, sigma2 in pairwise(sigmas):
        past = [denoise(x, sigma), *past]
        if sigma2 == 0:
            x = past[0]
            continue
        hs = [h := math.log(sigma / sigma2), *hs]
        x = math.exp(-2 * h) * x - math.expm1(-2 * h) * past[0]
        phi2 = math.expm1(-2 * h) / (2 * h) + 1
        phi3 = phi2 / (2 * h) - 0.5
        if len(past) > 2:
            r0, r1 = hs[1] / h, hs[2] / h
            a, b = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
            x = x + phi2 * (a + (a - b) * r0 / (r0 + r1)) - phi3 * (a - b) / (r0 + r1)
        elif len(past) > 1:
            x = x + phi2 * (past[0] - past[1]) * h / hs[1]
        x = x + sigma2 * math.sqrt(-math.expm1(-2 * h)) * noise.like(x)
    same(end, x)


@pytest.mark.parametrize(("name", "eta"), [("res_multistep", 0), ("res_multistep_ancestral", 1)])
def test_res_multistep_on_the_exploding_path_is_that_of_comfyui(name, eta):
    x, denoise, sigmas, _, noise, end = exploding(name, 10)
    old = None
    for i, (sigma, sigma2) in enumerate(pairwise(sigmas)):
        down, up = split(sigma, sigma2) if eta else (sigma2, 0.0)
        x0 = denoise(x, sigma)
        if down == 0 or old is None:
            x = x0 + down / sigma * (x - x0)
        else:
            h = math.log(sigma / down)
            c2 = math.log(old[1] / sigmas[i - 1]) / h
            phi1 = -math.expm1(-h) / h
            phi2 = (1 - phi1) / h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * x0 + phi2 / c2 * old[0])
        if up:
            x = x + up * noise.like(x)
        old = (x0, down)
    same(end, x)


def test_gradient_estimation_on_the_exploding_path_follows_twice_the_slope_less_the_last():
    x, denoise, sigmas, _, _, end = exploding("gradient estimation", 10)
    old = None
    for sigma, sigma2 in pairwise(sigmas):
        x0 = denoise(x, sigma)
        d = (x - x0) / sigma
        x = x0 if sigma2 == 0 else x + (d if old is None else 2 * d - old) * (sigma2 - sigma)
        old = d
    same(end, x)


def test_er_sde_on_the_exploding_path_is_that_of_the_paper():
    x, denoise, sigmas, _, noise, end = exploding("er sde", 10)
    past: list[tuple[float, Tensor]] = []
    slopes: list[Tensor] = []

    def phi(s):
        return s * (np.exp(s**0.3) + 10)

    for sigma, sigma2 in pairwise(sigmas):
        past = [(sigma, denoise(x, sigma)), *past]
        x0, r = past[0][1], phi(sigma2) / phi(sigma) if sigma2 else 0.0
        if sigma2 == 0:
            x = x0
            continue
        x = r * x + (1 - r) * x0
        dt, points = sigma2 - sigma, sigma2 + (sigma - sigma2) * np.arange(200) / 200
        if len(past) > 1:
            slopes = [(x0 - past[1][1]) / (sigma - past[1][0]), *slopes]
            x = x + (dt - dt / 200 * float((1 / phi(points)).sum()) * phi(sigma2)) * slopes[0]
        if len(past) > 2:
            bend = (slopes[0] - slopes[1]) / ((sigma - past[2][0]) / 2)
            x = x + (dt**2 / 2 - dt / 200 * float(((points - sigma) / phi(points)).sum()) * phi(sigma2)) * bend
        x = x + (sigma2**2 - sigma**2 * r**2) ** 0.5 * noise.like(x)
    same(end, x)


def test_restart_goes_back_up_from_twenty_steps_on():
    path = Discrete()
    stations = times(20, "karras", path)
    steps = walk("restart", mixture(path), path, first(path, stations), stations)
    levels = [path.s(step.t) / path.a(step.t) for step in steps]
    (rise,) = [i for i in range(1, 20) if levels[i] > levels[i - 1]]
    assert len(steps) == 20 and levels[-1] == 0
    assert levels[rise - 1] == pytest.approx(0.1, abs=0.07)
    assert 1 < levels[rise] < 2.5
    assert levels[rise + 8] == pytest.approx(levels[rise - 1])  # nine steps lead down again


def test_restart_with_few_steps_is_heun():
    path = VarianceExploding()
    stations = times(12, "karras", path)
    x = first(path, stations)
    same(*(walk(name, mixture(path), path, x, stations)[-1].x for name in ("restart", "heun")))


@pytest.mark.parametrize("eta", [0, 1])
def test_euler_cfg_pp_takes_its_noise_from_the_unguided_estimate(eta):
    path = VarianceExploding()
    stations = times(8, "karras", path)
    x, noise = first(path, stations), Noise(3)
    denoise = guided(mixture(path), lambda x, t: 0.5 * mixture(path)(x, t), 0.6)
    name = "euler_ancestral_cfg_pp" if eta else "euler_cfg_pp"
    end = walk(name, denoise, path, x, stations, seed=3)[-1].x
    for t, t2 in pairwise(stations):
        x0, away = denoise.pair(x, t)
        down, up = split(path.s(t), path.s(t2)) if eta else (path.s(t2), 0.0)
        x = x0 + down * (x - away) / path.s(t)
        if up:
            x = x + up * noise.like(x)
    same(end, x)


def test_dpmpp_2m_cfg_pp_is_that_of_comfyui():
    path = VarianceExploding()
    stations = times(8, "karras", path)
    x = first(path, stations)
    denoise = guided(mixture(path), lambda x, t: 0.5 * mixture(path)(x, t), 0.6)
    end = walk("dpm++ 2m cfg++", denoise, path, x, stations)[-1].x
    old, last = None, 0.0
    for t, t2 in pairwise(stations):
        x0, away = denoise.pair(x, t)
        if path.s(t2) == 0:
            x = x0
            continue
        h = math.log(path.s(t) / path.s(t2))
        mix = -math.exp(-h) * away
        if old is not None:
            mix = mix - math.expm1(-h) * h / last / 2 * (x0 - old)
        x = x0 + mix + math.exp(-h) * x
        old, last = away, h
    same(end, x)


@pytest.mark.parametrize("name", ["euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp"])
@every_path
def test_without_guidance_cfg_pp_is_the_sampler_without_it(name, path):
    stations = times(8, path=path)
    x = first(path, stations)
    plain = name.removesuffix("_cfg_pp")
    same(*(walk(one, mixture(path), path, x, stations)[-1].x for one in (name, plain)))


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("euler", 6),
        ("heun", 11),
        ("dpm2", 11),
        ("heunpp2", 15),
        ("dpmpp_sde", 11),
        ("plms", 7),
        ("unipc", 6),
        ("lcm", 6),
    ],
)
def test_what_a_walk_of_six_steps_costs(name, evaluations):
    path, calls = Discrete(), []

    def denoise(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return 0.9 * x

    walk(name, denoise, path, torch.ones(1, 1, 2, 2), times(6, path=path))
    assert len(calls) == evaluations


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
        ("DPM++ 2S a", "dpmpp_2s_ancestral"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde"),
        ("DPM2 a", "dpm2_ancestral"),
        ("dpm_2", "dpm2"),
        ("PLMS", "plms"),
        ("PNDMScheduler", "plms"),
        ("UniPC", "unipc"),
        ("uni_pc_bh2", "unipc"),
        ("DDIM CFG++", "euler_cfg_pp"),
        ("DDPM", "euler_ancestral"),
        ("Restart", "restart"),
        ("dpmpp_sde_gpu", "dpmpp_sde"),
        ("euler_a_cfg_pp", "euler_ancestral_cfg_pp"),
        ("SASolverScheduler", "sa_solver"),
    ],
)
def test_the_fields_spellings_are_understood(spelling, name):
    assert SAMPLERS.name(spelling) == name


def test_the_docs_have_a_row_for_each_sampler_and_schedule():
    page = (FilePath(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
    assert [name for name in (*SAMPLERS, *SCHEDULES) if f"| `{name}` |" not in page] == []


def test_an_unknown_sampler_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean heun"):
        SAMPLERS["huen"]


def test_which_samplers_draw_noise_on_their_way_is_tried():
    assert [draws(name) for name in ("Euler a", "lcm", "dpmpp_2m_sde", "sa_solver", "restart")] == [True] * 5
    assert [draws(name) for name in ("euler", "DPM++ 2M", "heun", "unipc", "ddim", "euler_cfg_pp")] == [False] * 6

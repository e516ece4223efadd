"""Exponential integrators: multistep rules in lambda = log(a/s) that remember estimates of x0.

From lambda over a step of h, with tau of the noise drawn afresh (Xue et al. 2023, arXiv 2309.05019):

    x' = (s'/s) exp(-tau^2 h) x + a' * integral over [0, h] of r exp(r (u - h)) D(lambda + u) du
         + s' sqrt(1 - exp(-2 tau^2 h)) z,    r = 1 + tau^2

The published solvers differ in how they interpolate D, and this room has one body for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from limner.diffusion.path import Path
from limner.diffusion.solver import SAMPLERS, Leg, lagrange, legs, weighed
from limner.rng import Noise
from limner.types import Denoiser, Step

# Where two estimates are known, the slope between them: weighed exactly; by h/2 of the whole weight, the latter exact
# (bh2, the midpoint rule of DPM-Solver++) or r h (bh1); where three are, exactly or with half the bend's weight.
Rule = Literal["exact", "bh1", "bh2", "half"]
Known = list[tuple[float, Tensor]]  # lambda and estimate of x0


def advance(leg: Leg, x: Tensor, known: Known, tau: float = 0.0, rule: Rule = "exact") -> Tensor:
    """x carried over a leg by the estimates that are known, without the fresh noise."""
    if not math.isfinite(leg.h):  # from pure noise, or to none: the estimate stands alone
        return (0.0 if tau else leg.s2 / leg.s) * x + leg.a2 * next(x0 for where, x0 in known if where == leg.now)
    near = [(where - leg.now, x0) for where, x0 in known if math.isfinite(where)]
    weights = exponential_weights([where for where, _ in near], leg.h, 1 + tau * tau, rule)
    kept = leg.s2 / leg.s * math.exp(-tau * tau * leg.h)
    return kept * x + leg.a2 * weighed(weights, [x0 for _, x0 in near])


def exponential_weights(nodes: list[float], h: float, rate: float = 1.0, rule: Rule = "exact") -> list[float]:
    """The integral of rate exp(rate (u - h)) L_k(u) du over [0, h] for each Lagrange polynomial of the nodes."""
    moments = [-math.expm1(-rate * h)]  # of u^0, u^1, ... by parts
    for k in range(1, len(nodes)):
        moments.append(h**k - k / rate * moments[-1])
    if len(nodes) == 2 and rule in ("bh1", "bh2"):
        moments[1] = h / 2 * (rate * h if rule == "bh1" else moments[0])
    if len(nodes) == 3 and rule == "half":
        moments[2] /= 2
    return lagrange(nodes, moments)


def fresh(leg: Leg, x: Tensor, tau: float, noise: Noise) -> Tensor | float:
    """The noise that is drawn afresh over a leg."""
    if not tau or leg.s2 == 0:
        return 0.0
    return leg.s2 * math.sqrt(-math.expm1(-2 * tau * tau * leg.h)) * noise.like(x)


def adams(
    denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise,
    order: int = 2, tau: float = 0.0, rule: Rule = "exact",
) -> Iterator[Step]:  # fmt: skip
    """The last `order` estimates, interpolated."""
    known: Known = []
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        known = [(leg.now, x0), *known][:order]
        x = advance(leg, x, known, tau, rule) + fresh(leg, x, tau, noise)
        yield leg.done(x, x0)


@SAMPLERS.add(
    "dpmpp_2m", "dpm++ 2m", "k_dpmpp_2m", "dpmpp_2m_k", "DPMSolverMultistepScheduler"
)  # fmt: skip
def dpmpp_2m(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M): second order from the last two estimates (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    return adams(denoise, path, x, times, noise, rule="bh2")


@SAMPLERS.add(
    "dpmpp_2m_sde", "dpm++ 2m sde", "k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_k", "dpm++2m_sde_bt"
)  # fmt: skip
def dpmpp_2m_sde(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), midpoint kind: the same with fresh noise each step (arXiv 2211.01095, appendix D)."""
    return adams(denoise, path, x, times, noise, tau=1.0, rule="bh2")


@SAMPLERS.add("dpmpp_2m_sde_heun", "dpm++ 2m sde heun", "dpmpp_2m_sde_heun_gpu")
def dpmpp_2m_sde_heun(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), Heun kind: the line through the last two estimates is integrated exactly."""
    return adams(denoise, path, x, times, noise, tau=1.0)


@SAMPLERS.add("dpmpp_3m", "dpm++ 3m", "res_multistep_3", "dpmpp_3m_k")
def dpmpp_3m(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Third-order exponential multistep: the integral of the parabola through the last three estimates, exactly.

    Hochbruck and Ostermann 2010, section 2.5, in the data prediction of DPM-Solver++ (arXiv 2211.01095), whose
    published code gives the parabola's bend half of this weight.
    """
    return adams(denoise, path, x, times, noise, order=3)


@SAMPLERS.add("dpmpp_3m_sde", "dpm++ 3m sde", "dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde")
def dpmpp_3m_sde(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """SDE-DPM-Solver++(3M) as k-diffusion published it: with half the weight on the parabola's bend."""
    return adams(denoise, path, x, times, noise, order=3, tau=1.0, rule="half")


def _res(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise, eta: float) -> Iterator[Step]:
    last: tuple[float, Tensor] | None = None  # how far before the lambda reached its estimate was made, and that
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        kept, drawn = leg.split(eta)
        down = math.log(leg.a2 / kept) if kept else math.inf
        short = leg._replace(s2=kept, h=down - leg.now)
        known = [(leg.now, x0)] if last is None else [(leg.now, x0), (leg.now + last[0], last[1])]
        x = advance(short, x, known)
        if drawn:
            x = x + drawn * noise.like(x)
        last = (leg.now - down, x0)
        yield leg.done(x, x0)


@SAMPLERS.add("res_multistep", "res_multistep_2")
def res_multistep(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """Second order, the line through two estimates integrated exactly (Zhang et al. 2023, arXiv 2308.02157)."""
    return _res(denoise, path, x, times, noise, eta=0.0)


@SAMPLERS.add("res_multistep_ancestral", "res_multistep_a")
def res_multistep_ancestral(
    denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise
) -> Iterator[Step]:
    """The same down to the noise that is kept, then fresh noise; the old estimate is placed from there (ComfyUI)."""
    return _res(denoise, path, x, times, noise, eta=1.0)


def unified(
    denoise: Denoiser, path: Path, x: Tensor, times: list[float], order: int = 2, rule: Rule = "bh2"
) -> Iterator[Step]:
    """UniPC: each new estimate first corrects the step that led to it, then predicts the next; one evaluation each."""
    known: Known = []
    step: tuple[Leg, Tensor] | None = None  # the last step and where it began
    reach = 0
    for leg in legs(path, times):
        now = max(leg.now, math.log(1e-6))  # pure noise has no lambda; diffusers steps aside by as much
        leg = leg._replace(now=now, h=leg.now + leg.h - now if math.isfinite(leg.now) else path.log_snr(leg.t2) - now)
        x0 = denoise(x, leg.t)
        if step is not None:
            x = advance(*step, [(now, x0), *known[:reach]], rule=rule)
        known = [(now, x0), *known][:order]
        reach = min(len(known), leg.n - leg.i)  # first order at the end
        step = leg, x
        x = advance(leg, x, known[:reach], rule=rule)
        yield leg.done(x, x0)


@SAMPLERS.add("unipc", "uni_pc_bh2", "unipc_bh2", "unipc_k", "UniPCMultistepScheduler")
def unipc(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """UniPC-2, a predictor and a corrector with B(h) = exp(h) - 1 (Zhao et al. 2023, arXiv 2302.04867)."""
    return unified(denoise, path, x, times)


@SAMPLERS.add("unipc_bh1")
def unipc_bh1(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """UniPC-2 with B(h) = h, as ComfyUI's uni_pc and AUTOMATIC1111's UniPC."""
    return unified(denoise, path, x, times, rule="bh1")


@SAMPLERS.add("unipc_3", "uni_pc_3")
def unipc_3(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """UniPC-3: the parabola through three estimates, a corrector of fourth order."""
    return unified(denoise, path, x, times, order=3)


@SAMPLERS.add("sa_solver", "SASolverScheduler")
def sa_solver(denoise: Denoiser, path: Path, x: Tensor, times: list[float], noise: Noise) -> Iterator[Step]:
    """SA-Solver: predictor and corrector of second order, stochastic in the middle of the walk (arXiv 2309.05019).

    tau is 1 for times above 0.2 and up to 0.8, else 0; the corrector adds the predictor's noise again.
    """
    known: Known = []
    step: tuple[Leg, Tensor, float, Tensor | float] | None = None
    for leg in legs(path, times):
        x0 = denoise(x, leg.t)
        if step is not None and math.isfinite(step[0].h):
            last, start, tau, added = step
            x = advance(last, start, [(leg.now, x0), *known[:1]], tau, "bh1") + added
        known = [(leg.now, x0), *known][: min(2, leg.n - leg.i)]
        tau = 1.0 if 0.2 < leg.t <= 0.8 else 0.0
        step = (leg, x, tau, fresh(leg, x, tau, noise))
        x = advance(leg, x, known, tau, "bh1") + step[3]
        yield leg.done(x, x0)

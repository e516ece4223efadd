"""Our walks against the schedulers of diffusers: the same toy network in float64, start, times and noise.

Theirs keep their tables in single precision, and some cast the sample to it, so the walks agree to 2e-5.
Where ours differ on purpose:
- sde-dpmsolver++ of third order has a sign in the parabola's weight that its deterministic twin has not; ours is
  k-diffusion's DPM++ 3M SDE, held to its formulas in test_samplers.
- dpmpp_3m weighs the parabola exactly; the published half weight is `rule="half"`, which is compared here.
- ipndm takes the estimate in its last step, as ComfyUI; theirs extrapolates, so the walk is compared up to there.
- linspace reads the table between stations in log(sigma), as k-diffusion; theirs in sigma. With steps that fall on
  stations, as here, they are the same.
- beta and kl_optimal, and karras on a straight path, follow ComfyUI or the levels s/a; diffusers' beta is of sigmas.
"""

import importlib
from collections.abc import Callable, Iterator

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from limner.diffusion.exponential import Known, adams, advance, unified
from limner.diffusion.path import Discrete, Path, Straight
from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.solver import legs
from limner.diffusion.times import times
from limner.rng import Noise
from limner.types import Step

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar:DeprecationWarning"),
]

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = {"eps": "epsilon", "v": "v_prediction", "flow": "flow_prediction"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}  # the walk ends on the first station; on 0, their bh1 is no number
ROOTED = {"Euler", "EulerAncestral", "Heun", "KDPM2", "KDPM2Ancestral"}  # they hold x / a


def network(x: Tensor, clock: float) -> Tensor:
    return torch.tanh(0.7 * x + clock / 1000) + 0.3 * x.roll(1, -1)


def scheduler_of(name: str, prediction: str = "eps", **config):
    made = getattr(diffusers, f"{name}{'Discrete' * (name in ROOTED)}Scheduler")
    return made(**TABLE, prediction_type=NAMES[prediction], **config)


def start(path: Path, t: float) -> Tensor:
    return path.s(t) * Noise(1)(2, 3, 4, 4).double()


def theirs(scheduler, x: Tensor, monkeypatch, each: int = 1, **options) -> list[Tensor]:
    """Their walk's samples; `each` of their calls make a step."""
    noise = Noise(5)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise(*shape).double())
    found = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x, **options).prev_sample
        found.append(x)
    return found if each == 1 else [*found[1::each], found[-1]]


def ours(walk: Callable[..., Iterator[Step]] | str, path: Path, x: Tensor, stations: list[float]) -> list[Tensor]:
    def denoise(x: Tensor, t: float) -> Tensor:
        return path.x0(x, network(x, path.clock(t)), t)

    walk = SAMPLERS[walk] if isinstance(walk, str) else walk
    return [step.x for step in walk(denoise, path, x, stations, Noise(5))]


def agree(got: list[Tensor], want: list[Tensor], within: float = 2e-5) -> None:
    assert len(got) == len(want)
    for mine, other in zip(got, want, strict=True):
        assert float((mine - other).abs().max() / other.abs().max()) < within


CASES = [
    ("DDIM", {**LEADING, "set_alpha_to_one": False, "clip_sample": False}, "ddim", "ddim"),
    ("DDIM", {**TRAILING, "clip_sample": False}, "ddim", "trailing"),
    ("DDPM", {**LEADING, "clip_sample": False}, "ddpm", "leading"),
    ("Euler", LEADING, "euler", "leading"),
    ("Euler", TRAILING, "euler", "trailing"),
    ("Euler", LINSPACE, "euler", "linspace"),
    ("Euler", KARRAS, "euler", "karras"),
    ("Euler", EXPONENTIAL, "euler", "exponential"),
    ("EulerAncestral", LEADING, "euler a", "leading"),
    ("EulerAncestral", TRAILING, "euler a", "trailing"),
    ("Heun", TRAILING, "heun", "trailing"),
    ("Heun", KARRAS, "heun", "karras"),
    ("KDPM2", TRAILING, "dpm2", "trailing"),
    ("KDPM2Ancestral", TRAILING, "dpm2 a", "trailing"),
    ("DPMSolverMultistep", {}, "dpm++ 2m", "multistep_linspace"),
    ("DPMSolverMultistep", LEADING, "dpm++ 2m", "multistep_leading"),
    ("DPMSolverMultistep", TRAILING, "dpm++ 2m", "trailing"),
    ("DPMSolverMultistep", KARRAS, "dpm++ 2m", "karras"),
    ("DPMSolverMultistep", {"solver_type": "heun"}, "res_multistep", "multistep_linspace"),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpm++ 2m sde", "multistep_linspace"),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", **KARRAS}, "dpm++ 2m sde", "karras"),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        "dpm++ 2m sde heun",
        "multistep_linspace",
    ),
    ("UniPCMultistep", {}, "unipc", "multistep_linspace"),
    ("UniPCMultistep", KARRAS, "unipc", "karras"),
    ("UniPCMultistep", {"solver_type": "bh1", **SIGMA_MIN}, "unipc_bh1", "multistep_linspace"),
    ("UniPCMultistep", {"solver_order": 3}, "unipc_3", "multistep_linspace"),
    ("DEISMultistep", {}, "deis", "multistep_linspace"),
    ("DEISMultistep", KARRAS, "deis", "karras"),
]


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("name", "config", "sampler", "schedule"), CASES)
def test_walks_agree(monkeypatch, name, config, sampler, schedule, prediction):
    n = 20 if name == "DEISMultistep" else 10  # below 15 steps theirs ends in first order
    whole = name not in ROOTED
    path = Discrete(prediction=prediction, whole=whole)
    scheduler = scheduler_of(name, prediction, **config)
    scheduler.set_timesteps(n)
    stations = times(n, schedule, path)
    if name == "DEISMultistep" or "final_sigmas_type" in config:
        stations[-1] = 0.001
    x = start(path, stations[0])
    if name in ROOTED:
        each = 2 if name in {"Heun", "KDPM2", "KDPM2Ancestral"} else 1
        want = theirs(scheduler, x / path.a(stations[0]), monkeypatch, each)
        want = [path.a(t) * sample for t, sample in zip(stations[1:], want, strict=True)]
    else:
        want = theirs(scheduler, x, monkeypatch)
    agree(ours(sampler, path, x, stations), want)


def test_plms_is_pndm_without_its_runge_kutta_steps(monkeypatch):
    path = Discrete()
    scheduler = scheduler_of("PNDM", skip_prk_steps=True, set_alpha_to_one=False, **LEADING)
    scheduler.set_timesteps(20)
    stations = times(20, "plms", path)
    x = start(path, stations[0])
    want = theirs(scheduler, x, monkeypatch)[1:]  # their first call is the first half of our first step
    agree(ours("plms", path, x, stations), want)


def test_ipndm_up_to_its_last_step(monkeypatch):
    """Their scheduler has a table of its own; it is given ours, and a network that answers what it takes for eps."""
    path = Discrete(prediction="v")
    stations = times(12, "trailing", path)
    scheduler = diffusers.IPNDMScheduler(trained_betas=[path.s(t) for t in stations])
    scheduler.set_timesteps(12)
    scheduler.alphas = torch.tensor([path.a(t) for t in stations], dtype=torch.float64)
    scheduler.betas = torch.tensor([path.s(t) for t in stations], dtype=torch.float64)
    x = start(path, stations[0])
    want, sample = [], x
    for t, station in zip(scheduler.timesteps, stations, strict=False):
        sample = scheduler.step(network(sample, path.clock(station)), t, sample).prev_sample
        want.append(sample)
    agree(ours("ipndm", path, x, stations)[:-1], want[:-1], 1e-9)


@pytest.mark.parametrize("rule", ["bh1", "bh2"])
def test_unipc_of_third_order_does_not_know_its_rule_but_at_the_start(monkeypatch, rule):
    path = Discrete(whole=True)
    scheduler = scheduler_of("UniPCMultistep", solver_order=3, solver_type=rule, **SIGMA_MIN)
    scheduler.set_timesteps(10)
    stations = [*times(10, "multistep_linspace", path)[:-1], 0.001]
    x = start(path, stations[0])
    got = ours(lambda *walk: unified(*walk[:4], order=3, rule=rule), path, x, stations)
    agree(got, theirs(scheduler, x, monkeypatch))


def test_the_published_third_order(monkeypatch):
    def published(denoise, path, x, stations, noise):
        known: Known = []
        for leg in legs(path, stations):
            x0 = denoise(x, leg.t)
            known = [(leg.now, x0), *known][:3]
            x = advance(leg, x, known, rule="half" if len(known) == 3 else "bh2")
            yield leg.done(x, x0)

    path = Discrete(whole=True)
    scheduler = scheduler_of("DPMSolverMultistep", solver_order=3)
    scheduler.set_timesteps(20)
    stations = times(20, "multistep_linspace", path)
    x = start(path, stations[0])
    agree(ours(published, path, x, stations), theirs(scheduler, x, monkeypatch))


def test_sa_solver(monkeypatch):
    path = Discrete(whole=True)
    scheduler = scheduler_of("SASolver")
    scheduler.set_timesteps(9)
    stations = [*times(9, "multistep_linspace", path)[:-1], 0.001]
    noise, x = Noise(5), start(path, stations[0])
    module = importlib.import_module(type(scheduler).__module__)
    want, sample = [], x
    for t, station in zip(scheduler.timesteps, stations, strict=False):
        drawn = (
            noise(2, 3, 4, 4).double() if 0.2 < station <= 0.8 else torch.zeros(2, 3, 4, 4)
        )  # ours draws where tau is 1
        monkeypatch.setattr(module, "randn_tensor", lambda *_, drawn=drawn, **__: drawn)
        sample = scheduler.step(network(sample, float(t)), t, sample).prev_sample
        want.append(sample)
    agree(ours("sa_solver", path, x, stations), want)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_lcm(monkeypatch, n):
    path = Discrete()
    scheduler = scheduler_of("LCM", clip_sample=False)
    scheduler.set_timesteps(n)
    stations = times(n, "lcm", path)
    assert [path.clock(t) for t in stations[:-1]] == pytest.approx(scheduler.timesteps.tolist())
    x = start(path, stations[0])
    agree(ours("lcm", path, x, stations), theirs(scheduler, x, monkeypatch))


@pytest.mark.parametrize("n", [1, 4, 7])
def test_tcd(monkeypatch, n):
    path = Discrete()
    scheduler = scheduler_of("TCD", clip_sample=False)
    scheduler.set_timesteps(n)
    stations = [*times(n, "lcm", path)[:-1], 0.001]  # it ends on the first station
    x = start(path, stations[0])
    agree(ours("tcd", path, x, stations), theirs(scheduler, x, monkeypatch))


@pytest.mark.parametrize(("name", "sampler", "each"), [("FlowMatchEuler", "euler", 1), ("FlowMatchHeun", "heun", 2)])
def test_flow_matching(monkeypatch, name, sampler, each):
    path = Straight(prediction="flow", shift=3.0, scale=1000)
    scheduler = getattr(diffusers, f"{name}DiscreteScheduler")(shift=3.0)
    scheduler.set_timesteps(12)
    stations = times(12, "linspace", path)
    x, found = Noise(1)(2, 3, 4, 4).double(), []
    want = x
    for t in scheduler.timesteps:
        want = scheduler.step(network(want, float(t)), t, want).prev_sample
        found.append(want)
    agree(ours(sampler, path, x, stations), found if each == 1 else [*found[1::2], found[-1]])


@pytest.mark.parametrize(
    ("name", "config", "sampler"),
    [
        ("DPMSolverMultistep", {}, "dpm++ 2m"),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, "dpm++ 2m sde"),
        ("UniPCMultistep", {}, "unipc"),
    ],
)
def test_exponential_integrators_on_a_straight_path(monkeypatch, name, config, sampler):
    path = Straight(prediction="flow", shift=3.0, scale=1000)
    scheduler = scheduler_of(name, "flow", use_flow_sigmas=True, flow_shift=3.0, **config)
    scheduler.set_timesteps(12)
    stations = scheduler.sigmas.double().tolist()
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]  # they are cut to whole numbers
    x = start(path, stations[0])
    agree(ours(sampler, path, x, stations), theirs(scheduler, x, monkeypatch))


SPACINGS = [
    ("Euler", LEADING, "leading"),
    ("Euler", TRAILING, "trailing"),
    ("Euler", LINSPACE, "linspace"),
    ("Euler", KARRAS, "karras"),
    ("Euler", EXPONENTIAL, "exponential"),
    ("DPMSolverMultistep", {}, "multistep_linspace"),
    ("DPMSolverMultistep", LEADING, "multistep_leading"),
    ("UniPCMultistep", {}, "multistep_linspace"),
    ("DEISMultistep", LEADING, "multistep_leading"),
    ("SASolver", {}, "multistep_linspace"),
    ("LCM", {}, "lcm"),
]


@pytest.mark.parametrize("n", [4, 10, 28])
@pytest.mark.parametrize(("name", "config", "schedule"), SPACINGS)
def test_schedules_agree(name, config, schedule, n):
    path = Discrete()
    scheduler = scheduler_of(name, **config)
    scheduler.set_timesteps(n)
    stations = times(n, schedule, path)
    found = [path.clock(t) for t in stations[:-1]]
    np.testing.assert_allclose(found, scheduler.timesteps.numpy(), rtol=1e-5, atol=1e-3)
    if hasattr(scheduler, "sigmas"):  # DEIS and SA-Solver know no end but the first station
        levels = [path.s(t) / path.a(t) for t in stations[:-1]]
        np.testing.assert_allclose(levels, scheduler.sigmas[:-1].numpy(), rtol=1.5e-5)  # their first is off by as much


@pytest.mark.parametrize("n", [4, 10, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedules_agree(n, shift):
    path = Straight(prediction="flow", shift=shift, scale=1000)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)
    stations = times(n, "flow linspace", path)
    np.testing.assert_allclose(stations, scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose([path.clock(t) for t in stations[:-1]], scheduler.timesteps.numpy(), rtol=1e-5)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_table_is_theirs(zero_snr):
    scheduler = scheduler_of("Euler", "v", rescale_betas_zero_snr=zero_snr, **TRAILING)
    path = Discrete(prediction="v", zero_snr=zero_snr)
    kept = [path.a((k + 1) / 1000) ** 2 for k in range(1000)]
    np.testing.assert_allclose(kept, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-9)
    assert path.sigmas[1] == pytest.approx(4096 if zero_snr else 14.6146, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "schedule"), [("StableDiffusionTimesteps", "ays"), ("StableDiffusionXLTimesteps", "ays_xl")]
)
def test_align_your_steps_at_ten_is_the_published_list(name, schedule):
    published = diffusers.schedulers.AysSchedules[name]
    path = Discrete(whole=True)
    clock = [path.clock(t) for t in times(10, schedule, path)[:-1]]
    np.testing.assert_allclose(clock, published, atol=1.01)  # they round up


def test_adams_of_first_order_is_euler():
    path = Discrete()
    stations = times(8, path=path)
    x = start(path, stations[0])
    agree(ours(lambda *walk: adams(*walk, order=1), path, x, stations), ours("euler", path, x, stations), 1e-12)

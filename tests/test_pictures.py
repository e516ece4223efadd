"""Whole pictures: the same weights and the same noise give the field's reference implementation's picture.

Random weights of the published architectures, 64x64, 20 steps, guided, in fp32. docs/parity.md holds what is measured.
"""

import importlib
import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tests.conftest import tiny_net, tiny_nets, write_single
from tests.pictures import (
    EXACT,
    NEAR,
    NEGATIVE,
    PROMPT,
    SCALE,
    SEED,
    SIDE,
    STEPS,
    apart,
    opened,
    ours,
    rewritten,
    scheduled,
    theirs,
)
from torch import Tensor

from limner.pipeline import Model, load
from limner.place import find_place
from limner.rng import Noise
from limner.tasks.run import begin, run
from limner.tasks.task import Beside
from limner.words import Reading

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of Euler's set_timesteps

CPU = find_place("cpu", torch.float32)


@pytest.fixture(scope="module")
def painter(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    return cache(lambda name: load(str(tiny_checkpoint(name)), CPU))


@pytest.fixture(scope="module")
def reference(tiny_diffusers: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda name: opened(tiny_diffusers(name)))


DPM = "DPMSolverMultistepScheduler"
TRAILING = {"timestep_spacing": "trailing"}
DDIM = {"clip_sample": False, "set_alpha_to_one": False}
SAMPLING = {  # diffusers' scheduler and what it is told; our sampler, schedule and whether stations are whole
    "ddim": ("DDIMScheduler", DDIM, "ddim", "ddim", False, EXACT),
    "euler": ("EulerDiscreteScheduler", {}, "euler", "leading", False, EXACT),
    "euler trailing": ("EulerDiscreteScheduler", TRAILING, "euler", "trailing", False, NEAR),
    "euler a": ("EulerAncestralDiscreteScheduler", {}, "euler a", "leading", False, EXACT),
    "ddpm": ("DDPMScheduler", TRAILING | {"clip_sample": False}, "ddpm", "trailing", False, EXACT),
    "dpm++ 2m": (DPM, TRAILING, "dpm++ 2m", "trailing", True, EXACT),
    "dpm++ 2m karras": (DPM, {"use_karras_sigmas": True}, "dpm++ 2m", "karras", True, EXACT),
    "dpm++ 2m sde": (DPM, TRAILING | {"algorithm_type": "sde-dpmsolver++"}, "dpm++ 2m sde", "trailing", True, EXACT),
    "unipc": ("UniPCMultistepScheduler", TRAILING, "unipc", "trailing", True, EXACT),
    "lcm": ("LCMScheduler", {}, "lcm", "lcm", False, EXACT),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}, "plms", "ddim", False, EXACT),
}
SHORT = (("sd2", "ddim"), ("sd2", "dpm++ 2m karras"), ("sdxl", "euler"), ("sdxl", "dpm++ 2m karras"))


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("sd15", name) for name in SAMPLING), *SHORT],  # the families share every line but the network and the words
)
def test_the_picture_is_the_references(family, name, painter, reference, monkeypatch):
    kind, told, sampler, schedule, whole, most = SAMPLING[name]
    pipe = scheduled(reference(family), kind, **told)
    picture = ours(painter(family), sampler, schedule, whole)
    assert apart(picture, theirs(pipe, monkeypatch)) < most


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_perturbed_attention_guidance_is_the_references(family, painter, reference, monkeypatch):
    """Theirs perturbs every step, in the middle of the network."""
    kind = {"sd15": "StableDiffusionPAGPipeline", "sdxl": "StableDiffusionXLPAGPipeline"}[family]
    pipe = getattr(diffusers, kind).from_pipe(scheduled(reference(family), "EulerDiscreteScheduler"))
    pipe.set_progress_bar_config(disable=True)
    want = theirs(pipe, monkeypatch, pag_scale=3.0)
    picture = ours(painter(family), "euler", "leading", pag_scale=3.0)
    assert apart(picture, want) < EXACT
    assert apart(ours(painter(family), "euler", "leading"), want) > 0.01


class Brownian:
    """The two increments of a step, from two draws of ours: what torchsde's tree is to their scheduler."""

    def __init__(self, x: Tensor, *_: Any, **__: Any) -> None:
        self.shape, self.first, self.middle, self.noise = x.shape, None, 0.0, STREAM[0]

    def __call__(self, level: Tensor, then: Tensor) -> Tensor:
        if self.first is None:
            self.first, self.middle = self.noise(*self.shape), float(then)
            return self.first
        share = (float(level) - self.middle) / (float(level) - float(then))
        whole = share**0.5 * self.first + (1 - share) ** 0.5 * self.noise(*self.shape)
        self.first = None
        return whole


STREAM: list[Noise] = []


@pytest.mark.parametrize("karras", [False, True])
def test_dpmpp_sde_is_the_references(karras, painter, reference, monkeypatch):
    """Their scheduler needs torchsde for its noise alone; ours is drawn for both."""
    monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", Brownian)
    pipe = reference("sd15")
    spacing = "linspace" if karras else "leading"  # theirs takes Karras' ends from the spacing; ours from the path
    told = {"timestep_spacing": spacing, "steps_offset": 1, "use_karras_sigmas": karras}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe.scheduler = module.DPMSolverSDEScheduler(**told | betas)
    noise = Noise(SEED)
    STREAM[:] = [noise]
    latents = noise(1, 4, SIDE // 8, SIDE // 8)
    told = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    other = pipe(**told, latents=latents, width=SIDE, height=SIDE, output_type="pt").images
    picture = ours(painter("sd15"), "dpm++ sde", "karras" if karras else "leading")
    assert apart(picture, other) < (NEAR if karras else EXACT)


def test_another_prompt_sampler_or_number_of_steps_is_another_picture(painter):
    """What the agreement above would miss if the pictures did not depend on it."""
    picture = ours(painter("sd15"), "euler", "leading")
    for change in ({"prompt": "a green frog"}, {"negative": ""}, {"cfg_scale": 6.0}, {"steps": 19}):
        assert apart(picture, ours(painter("sd15"), "euler", "leading", **change)) > 2 * NEAR, change
    assert apart(picture, ours(painter("sd15"), "dpm++ 2m", "leading")) > 2 * NEAR


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_no_negative_prompt_is_none_there_too(family, painter, reference, monkeypatch):
    """SDXL's pipeline takes zeros where it was told nothing, SD1's the encoding of the empty text."""
    pipe = scheduled(reference(family), "EulerDiscreteScheduler")
    want = theirs(pipe, monkeypatch, negative_prompt=None)
    picture = ours(painter(family), "euler", "leading", negative="")
    assert apart(picture, want) < EXACT


def test_the_refiner_takes_over_where_the_references_does(painter, reference, monkeypatch):
    base = scheduled(reference("sdxl"), "EulerDiscreteScheduler")
    refiner = scheduled(reference("sdxl-refiner"), "EulerDiscreteScheduler")
    half = theirs(base, monkeypatch, denoising_end=0.8, output_type="latent")
    told = {"denoising_start": 0.8, "num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "pt"}
    want = refiner(prompt=PROMPT, negative_prompt=NEGATIVE, image=half, **told).images
    model, second = painter("sdxl"), painter("sdxl-refiner")
    wishes = {"prompt": PROMPT, "negative": NEGATIVE, "width": SIDE, "height": SIDE, "steps": STEPS, "seed": SEED}
    wishes |= {"sampler": "euler", "schedule": "leading", "cfg_scale": SCALE, "refiner": "it", "refine_at": 0.8}
    steps = list(run(model, begin(model, **wishes), Beside(refiner=second)))
    assert apart(model.to_image(steps[-1].x)[:, :3], want) < EXACT


def test_a_fine_tune_that_predicts_v_from_pure_noise(tmp_path, monkeypatch):
    """Of SDXL, as its marks say; one whose noise is the family's is SD2 above."""
    file = write_single(tmp_path / "v.safetensors", "sdxl", tiny_nets("sdxl"), marks=("v_pred", "ztsnr"))
    model, pipe = load(str(file), CPU), opened(rewritten(file))
    assert (model.path.prediction, model.path.zero_snr) == ("v", True)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.rescale_betas_zero_snr
    pipe = scheduled(pipe, "DDIMScheduler", clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    assert apart(ours(model, "ddim", "trailing"), theirs(pipe, monkeypatch)) < NEAR


def test_an_inpainting_checkpoint_paints_all_of_an_empty_picture(tmp_path, monkeypatch):
    nets = tiny_nets("sd15", "autoencoder", "text") | {"denoiser": tiny_net("sd15", "denoiser", channels=9)}
    model = load(str(write_single(tmp_path / "v.safetensors", "sd15", nets)), CPU)
    assert model.variant == "inpaint"
    pipe = scheduled(opened(rewritten(tmp_path / "v.safetensors")), "EulerDiscreteScheduler")
    beside = model.beside(*model.latent_shape(SIDE, SIDE)[1:])
    grey = {"image": torch.full((1, 3, SIDE, SIDE), 0.5), "mask_image": torch.ones(1, 1, SIDE, SIDE)}
    want = theirs(pipe, monkeypatch, **grey, masked_image_latents=beside[:, 1:], strength=1.0)
    assert apart(ours(model, "euler", "leading"), want) < EXACT


FLOW = "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_flow_euler_without_t5(family, tmp_path, monkeypatch):
    nets = tiny_nets(family, "denoiser", "autoencoder", "text", "text_2")
    model = load(str(write_single(tmp_path / "v.safetensors", family, nets)), CPU)
    pipe = opened(rewritten(tmp_path / "v.safetensors"), text_encoder_3=None, tokenizer_3=None)
    assert type(pipe.scheduler).__name__ == FLOW
    assert apart(ours(model, "flow euler", "flow_linspace"), theirs(pipe, monkeypatch)) < EXACT


PIECES = ["▁", "▁a", "▁red", "▁apple", "▁on", "▁table", "▁blue", "▁house", ",", *"abcdefghijklmnopqrstuvwxyz"]


def test_flow_euler_with_t5(tmp_path, monkeypatch):
    write_single(tmp_path / "v.safetensors", "sd3", tiny_nets("sd3"))
    folder = rewritten(tmp_path / "v.safetensors")
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -1 - i / 10) for i, w in enumerate(PIECES))]
    transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder / "tokenizer_3")
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer_3"] = ["transformers", "T5TokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model, pipe = load(str(folder), CPU), opened(folder)
    picture = ours(model, "flow euler", "flow_linspace")
    assert apart(picture, theirs(pipe, monkeypatch)) < EXACT
    deaf = replace(model, t5=None)
    assert apart(picture, ours(deaf, "flow euler", "flow_linspace")) > 2 * NEAR


@torch.no_grad()
def states(pipe: Any, **wishes: Any) -> tuple[Tensor, ...]:
    """Tokens of the prompt and of the negative one, and for SDXL the pooled vectors of both."""
    told = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    return pipe.encode_prompt(PROMPT, negative_prompt=NEGATIVE, **told | wishes)


def near(mine: Tensor, other: Tensor) -> bool:
    return mine.shape == other.shape and float((mine - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_what_the_denoiser_is_told_is_what_the_reference_tells_it(family, painter, reference):
    want = states(reference(family))
    positive, negative = (painter(family).encode([words], how=Reading("a1111")) for words in (PROMPT, NEGATIVE))
    assert near(positive.tokens, want[0])
    assert near(negative.tokens, want[1])
    if family == "sdxl":
        assert near(positive.pooled, want[2])
        assert near(negative.pooled, want[3])


def test_clip_skip_counts_from_the_last_layer(painter, reference):
    """Ours is A1111's number, 1 for the last layer; theirs is how many more are left out than the family leaves out.

    Theirs leaves the negative prompt as it is. SD1's pipeline wants `text_encoder.text_model`, which transformers 5 has
    not; there test_clip compares the layers.
    """
    deeper = painter("sdxl").encode([PROMPT], how=Reading("a1111", clip_skip=3)).tokens
    assert near(deeper, states(reference("sdxl"), clip_skip=1)[0])
    assert not near(deeper, states(reference("sdxl"))[0])

"""Whole pictures that start from pictures: the same weights and noise give the field's reference implementation's.

As test_pictures, with a picture to start from, to fill, to follow or to take for words. They are compared as the model
makes them, before what is outside of a mask is put back. docs/parity.md holds what is measured.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image
from tests.conftest import TINY, randomised, tiny_net, tiny_nets, write_single
from tests.models import test_controlnet as controlnets
from tests.models import test_t2i_adapter as adapters
from tests.pictures import (
    EXACT,
    NEAR,
    NEGATIVE,
    PROMPT,
    SCALE,
    SEED,
    SIDE,
    apart,
    opened,
    ours,
    rewritten,
    scheduled,
    theirs,
)
from tests.tasks.conftest import drawn
from tests.test_control import ADAPTERS, CONFIGS
from tests.test_picture_prompt import adapter_for, tower
from torch import Tensor
from torch.nn import functional as F

from limner.image import from_pil
from limner.models.controlnet import ControlNetConfig
from limner.pipeline import Model, load
from limner.place import find_place
from limner.rng import Noise
from limner.tasks.run import begin, run
from limner.weights.io import write_tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of Euler's set_timesteps

CPU = find_place("cpu", torch.float32)
EULER, DDIM, DPM = "EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"
FREE = {"width": None, "height": None}  # of pipelines that take the size of their picture
STEPS = 10  # 0.3, 0.6 and 0.8 of them are whole; where theirs rounds down, ours rounds to the nearest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to start from and to follow, and masks: one across cells of the latents, one along them."""
    at = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("picture", "hint", "other")):
        drawn(SIDE, SIDE, "RGB", seed).save(at / f"{name}.png")
    drawn(32, 32, "RGB").save(at / "small.png")
    for name, box in {"mask": (13, 10, 45, 37), "cells": (16, 24, 48, 48)}.items():
        mask = Image.new("L", (SIDE, SIDE))
        mask.paste(255, box)
        mask.save(at / f"{name}.png")
    return at


@pytest.fixture(scope="module")
def painter(tiny_checkpoint: Callable[[str], Path]) -> Callable[[str], Model]:
    return cache(lambda name: load(str(tiny_checkpoint(name)), CPU))


@pytest.fixture(scope="module")
def reference(tiny_diffusers: Callable[[str], Path]) -> Callable[[str], Any]:
    return cache(lambda name: opened(tiny_diffusers(name)))


def seen(file: Path) -> Tensor:
    """A picture as their pipelines take it: 1 3 H W in [0, 1]."""
    return from_pil(Image.open(file))[None, :3]


def become(pipe: Any, kind: str, **parts: Any) -> Any:
    """Another pipeline of the same networks and scheduler."""
    made = getattr(diffusers, kind).from_pipe(pipe, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def of_channels(family: str, channels: int, folder: Path, **parts: Any) -> tuple[Model, Any]:
    """A checkpoint whose denoiser eats so many channels, here and there."""
    nets = tiny_nets(family) | {"denoiser": tiny_net(family, "denoiser", channels=channels)}
    file = write_single(folder / "v.safetensors", family, nets)
    return load(str(file), CPU), opened(rewritten(file), **parts)


def start(task: str, folder: Path, **wishes: Any) -> dict[str, Any]:
    return {"task": task, "image": str(folder / "picture.png"), "steps": STEPS, **wishes}


IMG2IMG = {
    "sd15": "StableDiffusionImg2ImgPipeline",
    "sd2": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}
SAMPLING = {  # their scheduler and what it is told; our sampler and schedule
    "euler": (EULER, {}, "euler", "leading"),
    "ddim": (DDIM, {}, "ddim", "ddim"),
    "euler a": ("EulerAncestralDiscreteScheduler", {}, "euler a", "leading"),
    "karras": (DPM, {"use_karras_sigmas": True}, "dpm++ 2m", "karras"),
}


@pytest.mark.parametrize("strength", [0.3, 0.75])
@pytest.mark.parametrize("name", SAMPLING)
def test_image_to_image_walks_the_same_end(name, strength, folder, painter, reference, monkeypatch):
    kind, told, sampler, schedule = SAMPLING[name]
    pipe = become(scheduled(reference("sd15"), kind, **told), IMG2IMG["sd15"])
    want = theirs(pipe, monkeypatch, image=seen(folder / "picture.png"), strength=strength, **FREE)
    wishes = start("edit", folder, strength=strength, steps=20)
    assert apart(ours(painter("sd15"), sampler, schedule, whole=name == "karras", **wishes), want) < EXACT


@pytest.mark.parametrize(
    ("family", "name", "strength"), [("sd2", "ddim", 0.8), ("sdxl", "euler", 0.3), ("sdxl-refiner", "euler", 0.3)]
)
def test_image_to_image_of_other_families(family, name, strength, folder, painter, reference, monkeypatch):
    kind, told, sampler, schedule = SAMPLING[name]
    pipe = become(scheduled(reference(family), kind, **told), IMG2IMG[family])
    told = {"image": seen(folder / "picture.png"), "strength": strength, "num_inference_steps": STEPS}
    found = ours(painter(family), sampler, schedule, **start("edit", folder, strength=strength))
    assert apart(found, theirs(pipe, monkeypatch, **told, **FREE)) < EXACT


def test_image_to_image_of_sd3(folder, tmp_path, monkeypatch):
    nets = tiny_nets("sd3", "denoiser", "autoencoder", "text", "text_2")
    model = load(str(write_single(tmp_path / "v.safetensors", "sd3", nets)), CPU)
    pipe = opened(rewritten(tmp_path / "v.safetensors"), text_encoder_3=None, tokenizer_3=None)
    pipe = become(pipe, "StableDiffusion3Img2ImgPipeline", image_encoder=None, feature_extractor=None)
    for strength in (0.3, 0.8):
        told = {"image": seen(folder / "picture.png"), "strength": strength, "num_inference_steps": STEPS}
        found = ours(model, "flow euler", "flow_linspace", **start("edit", folder, strength=strength))
        assert apart(found, theirs(pipe, monkeypatch, **told)) < EXACT


def test_a_checkpoint_made_to_inpaint(folder, tmp_path, monkeypatch):
    model, pipe = of_channels("sd15", 9, tmp_path)
    scheduled(pipe, EULER)
    for strength in (0.6, 1.0):
        told = {"image": seen(folder / "picture.png"), "mask_image": seen(folder / "mask.png")[:, :1]}
        told |= {"strength": strength, "num_inference_steps": STEPS}
        wishes = start("inpaint", folder, mask=str(folder / "mask.png"), feather=0, strength=strength)
        assert apart(ours(model, "euler", "leading", **wishes), theirs(pipe, monkeypatch, **told)) < EXACT


@pytest.mark.parametrize(("strength", "steps", "most"), [(0.6, STEPS, EXACT), (1.0, 20, NEAR)])
def test_an_ordinary_checkpoint_inpaints_as_the_reference(
    strength, steps, most, folder, painter, reference, monkeypatch
):
    """Theirs lays the picture with the walk's noise into x after each step, ours into x0: that is the same x.

    Before the first step too, but for strength 1, where their network sees nothing but noise once.
    """
    pipe = become(scheduled(reference("sd15"), EULER), "StableDiffusionInpaintPipeline")
    told = {"image": seen(folder / "picture.png"), "mask_image": seen(folder / "cells.png")[:, :1]}
    want = theirs(pipe, monkeypatch, **told, strength=strength, num_inference_steps=steps)
    wishes = start("inpaint", folder, mask=str(folder / "cells.png"), feather=0, strength=strength, steps=steps)
    assert apart(ours(painter("sd15"), "euler", "leading", **wishes), want) < most


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_what_is_painted_and_what_is_kept_in_latents(name, folder, painter, reference, monkeypatch):
    """What is kept is the picture's; DDIM ends on the first station, so with that station's noise (theirs: without)."""
    kind, _, sampler, schedule = SAMPLING[name]
    model, mask = painter("sd15"), seen(folder / "cells.png")[:, :1]
    pipe = become(scheduled(reference("sd15"), kind), "StableDiffusionInpaintPipeline")
    told = {"image": seen(folder / "picture.png"), "mask_image": mask, "strength": 0.6, "output_type": "latent"}
    want = theirs(pipe, monkeypatch, num_inference_steps=STEPS, **told)
    wishes = start("inpaint", folder, mask=str(folder / "cells.png"), feather=0, strength=0.6, width=SIDE, height=SIDE)
    wishes |= {"prompt": PROMPT, "negative": NEGATIVE, "seed": SEED, "cfg_scale": SCALE}
    last = list(run(model, begin(model, **wishes, sampler=sampler, schedule=schedule)))[-1]
    known, cells = model.to_latent(from_pil(Image.open(folder / "picture.png"))[None]), F.max_pool2d(mask, 8)
    kept = model.path.noisy(known, Noise(SEED)(1, *known.shape[1:]), last.t)
    assert float((cells * (last.x - want)).abs().max()) < 1e-4 * float(want.std())
    assert float(((1 - cells) * (want - known)).abs().max()) < 1e-5
    assert float(((1 - cells) * (last.x - kept)).abs().max()) < (1e-6 if last.t else 1e-12)


def test_instructions(folder, tmp_path, monkeypatch):
    model, pipe = of_channels("sd15", 8, tmp_path)
    scheduled(pipe, EULER)
    for scale in (1.5, 1.0):
        told = {"image": seen(folder / "picture.png"), "image_guidance_scale": scale, "num_inference_steps": STEPS}
        wishes = start("edit", folder, image_cfg=scale, strength=1)
        assert apart(ours(model, "euler", "leading", **wishes), theirs(pipe, monkeypatch, **told, **FREE)) < EXACT


def test_a_depth_map(folder, tmp_path, monkeypatch):
    """At strength 1 theirs still starts from the picture's a(t), a twelfth, and ours from noise alone."""
    model, pipe = of_channels("sd2", 5, tmp_path, depth_estimator=None, feature_extractor=None)
    scheduled(pipe, DDIM)
    told = {"image": seen(folder / "picture.png"), "depth_map": seen(folder / "hint.png").mean(1)}
    told |= FREE | {"num_inference_steps": STEPS}
    controls = {"controls": [{"net": "depth", "image": str(folder / "hint.png")}]}
    for strength in (0.3, 0.8):
        found = ours(model, "ddim", "ddim", **start("edit", folder, strength=strength), **controls)
        assert apart(found, theirs(pipe, monkeypatch, **told, strength=strength)) < EXACT
    alone = ours(model, "ddim", "ddim", steps=STEPS, **controls)
    assert torch.equal(ours(model, "ddim", "ddim", **start("edit", folder, strength=1), **controls), alone)
    assert apart(alone, theirs(pipe, monkeypatch, **told, strength=1.0)) > NEAR
    emptied(pipe, monkeypatch)
    assert apart(alone, theirs(pipe, monkeypatch, **told, strength=1.0)) < NEAR  # at s(t) times the noise, 0.3 % less


def emptied(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its autoencoder sees nothing in any picture."""
    encode = pipe.vae.encode

    def nothing(picture: Tensor) -> Any:
        found = encode(picture)
        found.latent_dist.mean = torch.zeros_like(found.latent_dist.mean)
        return found

    monkeypatch.setattr(pipe.vae, "encode", nothing)


def write_control(family: str, file: Path, seed: int) -> ControlNetModel:
    """Theirs, and the file that ours is read from."""
    config = ControlNetConfig(**vars(CONFIGS[family]) | {"out": 0}, hint=controlnets.HINT)
    net = randomised(ControlNetModel(**controlnets.their_config(config)), seed)
    write_tensors(file, net.state_dict())
    return net


CONTROLNETS = {"sd15": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}
WORKS = {  # strength, start and end of each
    "always": [(0.8, 0.0, 1.0)],
    "between": [(1.2, 0.3, 0.7)],
    "two at once": [(0.8, 0.0, 0.5), (0.5, 0.3, 1.0)],
}


@pytest.mark.parametrize(("family", "name"), [*(("sd15", name) for name in WORKS), ("sdxl", "two at once")])
def test_controlnets(family, name, folder, tmp_path, painter, reference, monkeypatch):
    works, hints = WORKS[name], [folder / "hint.png", folder / "other.png"]
    nets = [write_control(family, tmp_path / f"{i}.safetensors", seed=5 + i) for i in range(len(works))]
    told = {"image": [seen(hint) for hint in hints[: len(works)]]}
    names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    told |= {name: list(each) for name, each in zip(names, zip(*works, strict=True), strict=True)}
    if len(nets) == 1:
        nets, told = nets[0], {name: one[0] for name, one in told.items()}
    pipe = become(scheduled(reference(family), EULER), CONTROLNETS[family], controlnet=nets)
    want = theirs(pipe, monkeypatch, num_inference_steps=STEPS, **told)
    controls = [
        {"net": str(tmp_path / f"{i}.safetensors"), "image": str(hints[i]), "strength": how, "start": on, "end": off}
        for i, (how, on, off) in enumerate(works)
    ]
    assert apart(ours(painter(family), "euler", "leading", steps=STEPS, controls=controls), want) < EXACT


def test_a_controlnet_beside_a_picture_to_start_from(folder, tmp_path, painter, reference, monkeypatch):
    net = write_control("sd15", tmp_path / "it.safetensors", seed=5)
    pipe = become(scheduled(reference("sd15"), EULER), "StableDiffusionControlNetImg2ImgPipeline", controlnet=net)
    told = {"image": seen(folder / "picture.png"), "control_image": seen(folder / "hint.png"), "strength": 0.6}
    want = theirs(pipe, monkeypatch, controlnet_conditioning_scale=0.8, num_inference_steps=STEPS, **told)
    controls = [{"net": str(tmp_path / "it.safetensors"), "image": str(folder / "hint.png"), "strength": 0.8}]
    wishes = start("edit", folder, strength=0.6, controls=controls)
    assert apart(ours(painter("sd15"), "euler", "leading", **wishes), want) < EXACT


ADAPTING = {"sd15": "StableDiffusionAdapterPipeline", "sdxl": "StableDiffusionXLAdapterPipeline"}


@pytest.mark.parametrize("family", ADAPTING)
def test_a_t2i_adapter(family, folder, tmp_path, painter, reference, monkeypatch):
    net = randomised(T2IAdapter(**adapters.their_config(ADAPTERS[family])), seed=9)
    write_tensors(tmp_path / "it.safetensors", adapters.bare(net.state_dict()))
    pipe = become(scheduled(reference(family), EULER), ADAPTING[family], adapter=net)
    told = {"image": seen(folder / "hint.png"), "adapter_conditioning_scale": 0.8, "output_type": "latent"}
    want = theirs(pipe, monkeypatch, num_inference_steps=STEPS, **told)
    controls = [{"net": str(tmp_path / "it.safetensors"), "image": str(folder / "hint.png"), "strength": 0.8}]
    found = ours(painter(family), "euler", "leading", steps=STEPS, controls=controls)
    assert apart(found, painter(family).to_image(want)[:, :3]) < EXACT


@pytest.mark.parametrize(
    ("family", "kind", "name", "most"),
    [
        ("sd15", "plain", "small", EXACT),
        ("sdxl", "plus", "small", EXACT),
        ("sd15", "plain", "picture", NEAR),  # to the tower's size: theirs rounds to 8 bits between rows and columns
    ],
)
def test_an_ip_adapter(family, kind, name, most, folder, tmp_path, tiny_diffusers, painter, monkeypatch):
    tower().save_pretrained(tmp_path / "image_encoder")
    write_tensors(tmp_path / "it.safetensors", adapter_for(kind, TINY[family]["denoiser"]).state_dict())
    pipe = scheduled(opened(tiny_diffusers(family)), EULER)
    pipe.load_ip_adapter(str(tmp_path), "", "it.safetensors", local_files_only=True)
    pipe.set_ip_adapter_scale(0.7)
    told = {"ip_adapter_image": Image.open(folder / f"{name}.png"), "num_inference_steps": STEPS}
    prompts = [{"net": str(tmp_path / "it.safetensors"), "image": str(folder / f"{name}.png"), "weight": 0.7}]
    found = ours(painter(family), "euler", "leading", steps=STEPS, picture_prompts=prompts)
    assert apart(found, theirs(pipe, monkeypatch, **told)) < most


def test_pictures_follow_what_they_start_from(folder, tmp_path, painter):
    """What the agreement above would miss if it did not matter."""
    write_control("sd15", tmp_path / "control.safetensors", seed=5)
    net = randomised(T2IAdapter(**adapters.their_config(ADAPTERS["sd15"])), seed=9)
    write_tensors(tmp_path / "adapter.safetensors", adapters.bare(net.state_dict()))
    tower().save_pretrained(tmp_path / "image_encoder")
    write_tensors(tmp_path / "words.safetensors", adapter_for("plain").state_dict())

    def made(**wishes: Any) -> Tensor:
        return ours(painter("sd15"), "euler", "leading", **wishes | {"steps": 3})

    def follows(net: str, image: str) -> dict[str, Any]:
        return {"net": str(tmp_path / f"{net}.safetensors"), "image": str(folder / f"{image}.png")}

    for net in ("control", "adapter"):
        found = made(controls=[follows(net, "hint")])
        assert apart(found, made()) > 2 * NEAR
        assert apart(found, made(controls=[follows(net, "other")])) > 2 * NEAR
    found = made(picture_prompts=[follows("words", "hint")])
    assert apart(found, made()) > 2 * NEAR
    assert apart(found, made(picture_prompts=[follows("words", "other")])) > 2 * NEAR
    wishes = start("edit", folder, strength=0.6)
    assert apart(made(**wishes), made(**wishes | {"image": str(folder / "other.png")})) > 2 * NEAR

"""Other programs paint with a checkpoint that we wrote, at the full size of Stable Diffusion 1.5.

Minutes long, and it wants 6 GB of memory and 9 GB under the temporary folder: `pytest -m slow tests/test_foreign.py`.
stable-diffusion.cpp is asked in another Python, which LIMNER_SDCPP names, or else in this one, and skipped where it is
not installed: `pip install stable-diffusion-cpp-python` builds it. docs/parity.md tells what came of it.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

import limner
from limner.families.recognise import recognise
from limner.families.write import write_checkpoint
from limner.place import find_place
from limner.tasks.run import begin, paint
from limner.weights.io import read_tensors

pytestmark = pytest.mark.slow

SIDE, STEPS, SEED, PROMPT = 128, 2, 7, "a red apple"
SDCPP = os.environ.get("LIMNER_SDCPP", sys.executable)  # a Python that has stable-diffusion.cpp
PAINT_THERE = """
import json, sys
from stable_diffusion_cpp import StableDiffusion
asked = json.load(sys.stdin)
model = StableDiffusion(model_path=asked.pop("model"), verbose=True)
model.generate_image(**asked)[0].save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Random weights, the diffusers folder that we made of them, and the single file that we made of that."""
    file = Path(__file__).parents[1] / "benchmarks" / "loading.py"
    spec = importlib.util.spec_from_file_location("limner_benchmarks_loading", file)
    loading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)
    home = tmp_path_factory.mktemp("foreign")
    loading.write_random(home / "random.safetensors", loading.names_of("sd15", loading.SD15))
    write_checkpoint(recognise(home / "random.safetensors"), home / "folder", "diffusers")
    write_checkpoint(recognise(home / "folder"), home / "ours.safetensors", "single")
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def theirs(home) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_single_file(
        str(home / "ours.safetensors"), config=str(home / "folder"), local_files_only=True, torch_dtype=torch.float32
    )


def ours(home: Path, **more: object) -> torch.Tensor:
    """Our picture of the same words and seed, 3 H W."""
    model = limner.load(str(home / "ours.safetensors"), find_place("cpu", torch.float32))
    recipe = begin(model, prompt=PROMPT, seed=SEED, width=SIDE, height=SIDE, steps=STEPS, syntax="plain", **more)
    return paint(model, recipe)[0, :3]


def same_bits(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(found[name].to(value.dtype), value), name


def test_both_layouts_keep_every_bit(home):
    same_bits(read_tensors(home / "ours.safetensors"), read_tensors(home / "random.safetensors"))


def test_diffusers_takes_every_weight_of_our_single_file(home, theirs):
    for folder, stem, net in (
        ("unet", "diffusion_pytorch_model", theirs.unet),
        ("vae", "diffusion_pytorch_model", theirs.vae),
        ("text_encoder", "model", theirs.text_encoder),
    ):
        want = read_tensors(home / "folder" / folder / f"{stem}.safetensors")
        if folder == "text_encoder":  # transformers 5 leaves the prefix out in memory
            want = {name.removeprefix("text_model."): value for name, value in want.items()}
        same_bits({name: value for name, value in net.state_dict().items() if "position_ids" not in name}, want)


def test_what_diffusers_saves_loads_here_with_the_same_bits(home, theirs):
    theirs.save_pretrained(home / "saved")
    saved = recognise(home / "saved")
    for net, part in recognise(home / "random.safetensors").parts.items():
        same_bits({n: v.half() for n, v in saved.parts[net].tensors().items()}, part.tensors())


def test_diffusers_paints_what_we_paint(home, theirs):
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    latents = limner.Noise(SEED)(1, 4, SIDE // 8, SIDE // 8)
    asked = {"num_inference_steps": STEPS, "guidance_scale": 7.0, "width": SIDE, "height": SIDE, "output_type": "pt"}
    want = theirs(PROMPT, negative_prompt="", latents=latents, **asked).images[0]
    found = ours(home, sampler="ddim", schedule="ddim", cfg_scale=7.0)
    assert want.std() > 0.05
    difference = float((found - want).abs().max()) * 255
    print(f"largest difference from diffusers: {difference:.3f}/255")
    assert difference < 2


def test_stable_diffusion_cpp_paints_with_it(home):
    known = subprocess.run([SDCPP, "-c", "import stable_diffusion_cpp"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"{SDCPP} has no stable-diffusion-cpp-python")
    asked = {
        "model": str(home / "ours.safetensors"), "prompt": PROMPT, "width": SIDE, "height": SIDE, "seed": SEED,
        "sample_steps": STEPS, "sample_method": "euler", "scheduler": "discrete", "cfg_scale": 7.0,
    }  # fmt: skip
    command = [SDCPP, "-c", PAINT_THERE, str(home / "there.png")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert "loading tensors completed" in done.stderr  # it tells there what it makes of each
    assert "unknown tensor" not in done.stderr
    want = np.asarray(Image.open(home / "there.png").convert("RGB"), np.float32) / 255
    assert want.shape == (SIDE, SIDE, 3)
    assert want.std() > 0.05
    found = ours(home, sampler="euler", schedule="discrete", cfg_scale=7.0, noise="nv").permute(1, 2, 0).numpy()
    apart = np.abs(found - want)
    print(f"from stable-diffusion.cpp: mean {apart.mean() * 255:.2f}/255, largest {apart.max() * 255:.1f}/255")
    assert apart.max() * 255 < 8  # it computes in fp16, as the file is

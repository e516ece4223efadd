"""What whole pictures are compared by: diffusers' pipelines over our files, and both from the same noise."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from limner.families.recognise import recognise
from limner.families.write import write_checkpoint
from limner.pipeline import Model
from limner.rng import Noise
from limner.tasks.run import begin, paint

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

EXACT = 0.02 / 255  # where both count the same stations and start from the same noise; measured up to 0.008 / 255
NEAR = 2 / 255  # where theirs begins at sigma times the noise and ours at the noise itself, 0.2 % more
SEED, SIDE, STEPS, SCALE = 7, 64, 20, 5.0
PROMPT, NEGATIVE = "a red apple, on a table", "a blue house"


def opened(folder: Path, **components: Any) -> Any:
    """The pipeline that a folder's own index names, as diffusers reads it."""
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    pipe = kind.from_pretrained(folder, local_files_only=True, **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rewritten(file: Path) -> Path:
    """A single file as a diffusers folder beside it."""
    return write_checkpoint(recognise(file), file.with_suffix(""), "diffusers")


def scheduled(pipe: Any, kind: str, **changes: Any) -> Any:
    """The pipeline with another scheduler of the betas and the prediction that its folder tells."""
    told = json.loads((Path(pipe.name_or_path) / "scheduler/scheduler_config.json").read_text())
    told = {name: value for name, value in told.items() if not name.startswith("_")} | changes
    pipe.scheduler = getattr(diffusers, kind).from_config(told)
    return pipe


def theirs(pipe: Any, monkeypatch: pytest.MonkeyPatch, **wishes: Any) -> Tensor:
    """B 3 H W in [0, 1]; noise is drawn where ours is, pictures are encoded to the mean. None leaves a wish to them."""
    noise = Noise(SEED)
    for each in (pipe, pipe.scheduler):
        module = importlib.import_module(type(each).__module__)
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise(*shape))
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda posterior, *_: posterior.mode())
    told = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    told |= {"width": SIDE, "height": SIDE, "output_type": "pt"}
    return pipe(**{name: wish for name, wish in (told | wishes).items() if wish is not None}).images


def ours(model: Model, sampler: str, schedule: str, whole: bool = False, **wishes: Any) -> Tensor:
    """B 3 H W in [0, 1]. whole: stations are told as whole numbers."""
    if whole:
        model = replace(model, diffusion=replace(model.path, whole=True))
    told = {"prompt": PROMPT, "negative": NEGATIVE, "width": SIDE, "height": SIDE, "steps": STEPS, "seed": SEED}
    told |= {"sampler": sampler, "schedule": schedule, "cfg_scale": SCALE}
    return paint(model, begin(model, **told | wishes))[:, :3]


def apart(mine: Tensor, other: Tensor) -> float:
    assert mine.shape == other.shape
    assert 0.1 < float(mine.std()) < 0.45  # a picture of one grey, or of black and white, would hide much
    return float((mine - other).abs().max())

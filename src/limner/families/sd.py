"""Stable Diffusion 1, 2 and XL: the UNets. A page of facts each."""

from __future__ import annotations

from typing import Any

from limner.diffusion.path import Discrete
from limner.families import FAMILIES, Defaults, Family, Kind, Tower
from limner.families.nets import CLIP, TINY, UNET, VAE
from limner.models.unet import UnetConfig
from limner.types import LatentSpec

FOLDERS = {"denoiser": "unet", "autoencoder": "vae", "text": "text_encoder", "text_2": "text_encoder_2"}
INPUTS = {4: "base", 9: "inpaint", 8: "edit", 5: "depth"}  # channels of the first convolution -> variant
LCM = Defaults((512, 512), 4, "lcm", "trailing", cfg_scale=1.0)
TURBO = Defaults((512, 512), 1, "euler_ancestral", "trailing", cfg_scale=1.0)  # arXiv 2311.17042: one step, no guidance
XL_LCM = Defaults((1024, 1024), 4, "lcm", "trailing", cfg_scale=1.0)
LIGHTNING = Defaults((1024, 1024), 4, "euler", "trailing", cfg_scale=1.0)  # arXiv 2402.13929
XL_HYPER = Defaults((1024, 1024), 4, "tcd", "trailing", cfg_scale=1.0)  # arXiv 2404.13686


def _claims(kind: Kind, config: Any, linear: bool, vector: bool, levels: int = 0) -> str | None:
    """A UNet is told by how it is built and not by its widths, so that pruned and tiny kin are known too."""
    if kind is not UNET or not isinstance(config, UnetConfig):
        return None
    if (config.linear, config.vector > 0) != (linear, vector) or levels not in (0, len(config.multiples)):
        return None
    return INPUTS.get(config.channels)


SD15 = Family(
    name="sd15",
    nets={"denoiser": UNET, "autoencoder": VAE, "text": CLIP, "tiny": TINY},
    needs=("autoencoder", "denoiser", "text"),
    single={
        "denoiser": ("model.diffusion_model.", "original"),
        "autoencoder": ("first_stage_model.", "original"),
        "text": ("cond_stage_model.transformer.", "transformers"),
    },
    folders=FOLDERS,
    path=Discrete(prediction="eps"),
    latent=LatentSpec(channels=4, factor=8, multiple=8, pixels=3, scale=0.18215),
    sizes=(64, 2048),
    defaults=Defaults((512, 512), 30, "dpmpp_2m", "karras", cfg_scale=7.0),
    claims=lambda kind, config: _claims(kind, config, linear=False, vector=False),
    few={"lcm": LCM, "turbo": TURBO, "hyper": Defaults((512, 512), 4, "tcd", "trailing", cfg_scale=1.0)},
    towers=(Tower("text", normed=True),),
)
SD2 = Family(
    name="sd2",
    nets={"denoiser": UNET, "autoencoder": VAE, "text": CLIP, "tiny": TINY},
    needs=("autoencoder", "denoiser", "text"),
    single={
        "denoiser": ("model.diffusion_model.", "original"),
        "autoencoder": ("first_stage_model.", "original"),
        "text": ("cond_stage_model.model.", "openclip"),
    },
    folders=FOLDERS,
    path=Discrete(prediction="v"),  # the 768 models; nothing in the others' weights tells that they predict eps
    predictions={"inpaint": "eps", "depth": "eps", "512": "eps", "eps": "eps"},
    latent=LatentSpec(channels=4, factor=8, multiple=8, pixels=3, scale=0.18215),
    sizes=(64, 2048),
    defaults=Defaults((768, 768), 30, "dpmpp_2m", "karras", cfg_scale=7.0),
    claims=lambda kind, config: _claims(kind, config, linear=True, vector=False),
    few={"turbo": TURBO, "lcm": LCM},
    towers=(Tower("text", skip=1, normed=True, pad=0, quick=False, cut=True),),
)
SDXL = Family(
    name="sdxl",
    nets={"denoiser": UNET, "autoencoder": VAE, "text": CLIP, "text_2": CLIP, "tiny": TINY},
    needs=("autoencoder", "denoiser", "text", "text_2"),
    single={
        "denoiser": ("model.diffusion_model.", "original"),
        "autoencoder": ("first_stage_model.", "original"),
        "text": ("conditioner.embedders.0.transformer.", "transformers"),
        "text_2": ("conditioner.embedders.1.model.", "openclip"),
    },
    folders=FOLDERS,
    path=Discrete(prediction="eps"),
    latent=LatentSpec(channels=4, factor=8, multiple=8, pixels=3, scale=0.13025),
    sizes=(64, 4096),
    defaults=Defaults((1024, 1024), 30, "dpmpp_2m", "karras", cfg_scale=6.0),
    claims=lambda kind, config: _claims(kind, config, linear=True, vector=True, levels=3),
    few={"turbo": TURBO, "lightning": LIGHTNING, "hyper": XL_HYPER, "lcm": XL_LCM},
    towers=(Tower("text", skip=1), Tower("text_2", skip=1, pad=0, quick=False)),
    zero_negative=True,
)
REFINER = Family(
    name="sdxl-refiner",
    nets={"denoiser": UNET, "autoencoder": VAE, "text_2": CLIP, "tiny": TINY},
    needs=("autoencoder", "denoiser", "text_2"),
    single={
        "denoiser": ("model.diffusion_model.", "original"),
        "autoencoder": ("first_stage_model.", "original"),
        "text_2": ("conditioner.embedders.0.model.", "openclip"),
    },
    folders=FOLDERS,
    path=Discrete(prediction="eps"),
    latent=SDXL.latent,
    sizes=SDXL.sizes,
    defaults=SDXL.defaults,
    claims=lambda kind, config: _claims(kind, config, linear=True, vector=True, levels=4),
    towers=(Tower("text_2", skip=1, pad=0, quick=False),),
)
for family in (SD15, SD2, SDXL, REFINER):
    FAMILIES.add(family.name)(family)

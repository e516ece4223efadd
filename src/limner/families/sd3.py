"""Stable Diffusion 3 and 3.5: the transformers. A page of facts each."""

from __future__ import annotations

from dataclasses import replace

from limner.diffusion.path import Straight
from limner.families import FAMILIES, Defaults, Family, Tower
from limner.families.nets import CLIP, MMDIT, T5, TINY, VAE
from limner.types import LatentSpec

TURBO = Defaults((1024, 1024), 4, "euler", "flow_linspace", cfg_scale=1.0)  # SD3.5 large turbo

SD3 = Family(
    name="sd3",
    nets={"denoiser": MMDIT, "autoencoder": VAE, "text": CLIP, "text_2": CLIP, "text_3": T5, "tiny": TINY},
    needs=("autoencoder", "denoiser", "text", "text_2"),  # without T5, its place is zeros
    single={
        "denoiser": ("model.diffusion_model.", "original"),
        "autoencoder": ("first_stage_model.", "original"),
        "text": ("text_encoders.clip_l.transformer.", "transformers"),
        "text_2": ("text_encoders.clip_g.transformer.", "transformers"),
        "text_3": ("text_encoders.t5xxl.transformer.", "transformers"),
    },
    folders={
        "denoiser": "transformer",
        "autoencoder": "vae",
        "text": "text_encoder",
        "text_2": "text_encoder_2",
        "text_3": "text_encoder_3",
    },
    path=Straight(prediction="flow", shift=3.0, scale=1000.0),
    latent=LatentSpec(channels=16, factor=8, multiple=16, pixels=3, scale=1.5305, shift=0.0609),
    sizes=(64, 2048),
    defaults=Defaults((1024, 1024), 28, "euler", "flow_linspace", cfg_scale=7.0),
    claims=lambda kind, config: "medium" if kind is MMDIT and not config.qk_norm else None,
    towers=(Tower("text", skip=1), Tower("text_2", skip=1, pad=0, quick=False)),
    pieces=256,  # of T5
)
SD35 = replace(
    SD3,
    name="sd35",
    defaults=replace(SD3.defaults, cfg_scale=4.5),
    claims=lambda kind, config: ("medium" if config.dual else "large") if kind is MMDIT and config.qk_norm else None,
    few={"turbo": TURBO},
)
for family in (SD3, SD35):
    FAMILIES.add(family.name)(family)

"""The kinds of networks that published checkpoints are made of, and the names by which files know them."""

from __future__ import annotations

from limner.families import Kind, Naming, Shapes
from limner.models import clip, mmdit, t5, tiny_vae, unet, vae
from limner.weights.layout import Rule
from limner.weights.names import clip as clip_names
from limner.weights.names import mmdit as mmdit_names
from limner.weights.names import t5 as t5_names
from limner.weights.names import tiny_vae as tiny_names
from limner.weights.names import unet as unet_names
from limner.weights.names import vae as vae_names

SAME = (Rule("{}", "{}"),)


def always(name: str, *marks: str, rules: tuple[Rule, ...] | list[Rule] = SAME) -> Naming:
    """A naming whose rules are the same for every size."""
    return Naming(name, marks, lambda _: rules, lambda _: rules)


def _count(shapes: Shapes, start: str) -> int:
    """How many there are of what is numbered behind `start`."""
    found = {int(name.removeprefix(start).split(".")[0]) for name in shapes if name.startswith(start)}
    return len(found)


def _unet_rules(shapes: Shapes) -> list[Rule]:
    levels = _count(shapes, "down_blocks.")
    depths = [_count(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks.") for i in range(levels)]
    return unet_names.diffusers(_count(shapes, "down_blocks.0.resnets."), depths)


UNET = Kind(
    "unet",
    unet.Unet,
    lambda shapes, _: unet.config_of(shapes),
    (
        always("original", "input_blocks.0.0.weight", "time_embed.0.weight"),
        Naming(
            "diffusers",
            ("conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.norm1.weight"),
            _unet_rules,
            lambda config: unet_names.diffusers(config.blocks, config.depths),
        ),
    ),
    net="denoiser",
)
MMDIT = Kind(
    "mmdit",
    mmdit.MMDiT,
    lambda shapes, _: mmdit.config_of(shapes),
    (
        always("original", "joint_blocks.0.context_block.attn.qkv.weight"),
        Naming(
            "diffusers",
            ("transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.proj.weight"),
            lambda shapes: mmdit_names.mmdit_rules(_count(shapes, "transformer_blocks.")),
            lambda config: mmdit_names.mmdit_rules(config.depth),
        ),
    ),
    net="denoiser",
)
VAE = Kind(
    "vae",
    vae.Vae,
    lambda shapes, _: vae.config_of(shapes),
    (
        always("original", "encoder.down.0.block.0.norm1.weight", rules=vae_names.ORIGINAL),
        Naming(
            "diffusers",
            ("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.conv_in.weight"),
            lambda shapes: vae_names.diffusers(_count(shapes, "encoder.down_blocks.")),
            lambda config: vae_names.diffusers(len(config.multiples)),
        ),
    ),
    net="autoencoder",
)
CLIP = Kind(
    "clip",
    clip.Clip,
    lambda shapes, _: clip.config_of(shapes),
    (
        always("stable-diffusion.cpp", "text_model.encoder.layers.0.self_attn.in_proj.weight", rules=clip_names.FUSED),
        always("transformers", "text_model.embeddings.token_embedding.weight", rules=clip_names.TRANSFORMERS),
        always("transformers, bare", "embeddings.token_embedding.weight", rules=clip_names.BARE),
        always("openclip", "token_embedding.weight", "ln_final.weight", rules=clip_names.OPENCLIP),
    ),
    net="text",
)
T5 = Kind(
    "t5",
    t5.T5,
    lambda shapes, _: t5.config_of(shapes),
    (
        Naming(
            "transformers",
            ("encoder.block.0.layer.0.SelfAttention.q.weight",),
            lambda shapes: t5_names.t5_rules(next((n for n in t5_names.EMBEDDINGS if n in shapes), "shared.weight")),
            lambda _: t5_names.t5_rules(),
        ),
        always("llama.cpp", "enc.blk.0.attn_q.weight", rules=t5_names.LLAMA),
    ),
    net="text_3",
)
TINY = Kind(
    "tiny autoencoder",
    tiny_vae.TinyVAE,
    lambda shapes, _: tiny_vae.config_of(shapes),
    (
        always("diffusers", "decoder.layers.0.weight", "encoder.layers.0.weight", rules=tiny_names.tiny_vae_rules()),
        always("taesd_decoder", "1.weight", "3.conv.0.weight", rules=tiny_names.taesd_decoder_rules()),
        always("taesd_encoder", "0.weight", "1.conv.0.weight", rules=tiny_names.taesd_encoder_rules()),
    ),
    net="tiny",
)
KINDS = [UNET, MMDIT, VAE, CLIP, T5, TINY]  # `recognise` tries them in this order; families add their own

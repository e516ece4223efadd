"""The names of TAESD's weights: diffusers' are ours; the original two files have plain indices."""

from __future__ import annotations

from collections.abc import Sequence

from limner.weights.layout import Rule


def tiny_vae_rules() -> list[Rule]:
    """From diffusers' names to ours."""
    return [Rule(f"{side}.layers.{{}}", f"{side}.layers.{{}}") for side in ("encoder", "decoder")]


def taesd_encoder_rules() -> list[Rule]:
    """From the names of `taesd_encoder` to ours."""
    return [Rule("{}", "encoder.layers.{}")]


def taesd_decoder_rules(blocks: Sequence[int] = (1, 3, 3, 3)) -> list[Rule]:
    """From the names of `taesd_decoder` to ours; `blocks` as in the config. Its layer 0 bounds the latents."""
    count = sum(blocks) + 2 * len(blocks) + 1  # convolution and relu; blocks; upsampling and convolution; convolution
    return [Rule(f"{i + 1}.{{}}", f"decoder.layers.{i}.{{}}") for i in range(count)]

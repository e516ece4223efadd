"""The names of ControlNets in diffusers' layout; ours are those of the original checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from limner.weights.layout import Rule
from limner.weights.names import unet


def diffusers(blocks: int, depths: Sequence[int], widenings: int = 3) -> list[Rule]:
    """`blocks` and `depths` as in the config; `widenings` are the convolutions that halve the picture."""
    seen = "controlnet_cond_embedding"
    convolutions = ["conv_in", *(f"blocks.{i}" for i in range(2 * widenings)), "conv_out"]
    rules = [Rule(f"{seen}.{name}.{{}}", f"input_hint_block.{2 * i}.{{}}") for i, name in enumerate(convolutions)]
    rules.append(Rule("controlnet_down_blocks.{}.{}", "zero_convs.{}.0.{}"))
    rules.append(Rule("controlnet_mid_block.{}", "middle_block_out.0.{}"))
    return rules + unet.diffusers(blocks, depths)

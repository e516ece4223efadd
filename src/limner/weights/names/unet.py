"""The UNet's names in diffusers' layout; ours are those of the original checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from limner.weights.layout import Rule, under

RESNET = (
    Rule("norm1.{}", "in_layers.0.{}"),
    Rule("conv1.{}", "in_layers.2.{}"),
    Rule("time_emb_proj.{}", "emb_layers.1.{}"),
    Rule("norm2.{}", "out_layers.0.{}"),
    Rule("conv2.{}", "out_layers.3.{}"),
    Rule("conv_shortcut.{}", "skip_connection.{}"),
)
ENDS = (
    Rule("conv_in.{}", "input_blocks.0.0.{}"),
    Rule("time_embedding.linear_1.{}", "time_embed.0.{}"),
    Rule("time_embedding.linear_2.{}", "time_embed.2.{}"),
    Rule("time_embedding.cond_proj.{}", "time_embed.cond_proj.{}"),
    Rule("add_embedding.linear_1.{}", "label_emb.0.0.{}"),
    Rule("add_embedding.linear_2.{}", "label_emb.0.2.{}"),
    Rule("conv_norm_out.{}", "out.0.{}"),
    Rule("conv_out.{}", "out.2.{}"),
)
TRANSFORMER = (Rule("{}", "{}"),)  # inside a transformer both call everything alike


def diffusers(blocks: int, depths: Sequence[int]) -> list[Rule]:
    """Theirs counts levels and what is in them, ours counts steps: `blocks` a level, `depths` as in UnetConfig."""
    rules = list(ENDS)
    for i, depth in enumerate(depths):
        for j in range(blocks):
            rules += _step(f"down_blocks.{i}", j, f"input_blocks.{1 + i * (blocks + 1) + j}", depth)
        rules.append(
            Rule(f"down_blocks.{i}.downsamplers.0.conv.{{}}", f"input_blocks.{(i + 1) * (blocks + 1)}.0.op.{{}}")
        )
    for i, depth in enumerate(reversed(depths)):
        for j in range(blocks + 1):
            rules += _step(f"up_blocks.{i}", j, f"output_blocks.{i * (blocks + 1) + j}", depth)
        last = f"output_blocks.{(i + 1) * (blocks + 1) - 1}.{2 if depth else 1}.conv"
        rules.append(Rule(f"up_blocks.{i}.upsamplers.0.conv.{{}}", f"{last}.{{}}"))
    rules += under(RESNET, "mid_block.resnets.0.", "middle_block.0.")
    rules += under(TRANSFORMER, "mid_block.attentions.0.", "middle_block.1.")
    return rules + under(RESNET, "mid_block.resnets.1.", "middle_block.2.")


def _step(level: str, j: int, ours: str, depth: int) -> list[Rule]:
    rules = under(RESNET, f"{level}.resnets.{j}.", f"{ours}.0.")
    return rules + (under(TRANSFORMER, f"{level}.attentions.{j}.", f"{ours}.1.") if depth else [])

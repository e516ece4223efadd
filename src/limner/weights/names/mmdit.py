"""The names of Stable Diffusion 3's transformer in diffusers' layout; ours are those of the published single files."""

from __future__ import annotations

from limner.weights.layout import Rule, under

BLOCK = (
    *(
        Rule(tuple(f"{theirs.format(part)}.{{}}" for part in "qkv"), f"{ours}.qkv.{{}}")
        for theirs, ours in (
            ("attn.to_{}", "x_block.attn"),
            ("attn.add_{}_proj", "context_block.attn"),
            ("attn2.to_{}", "x_block.attn2"),
        )
    ),
    Rule("attn.norm_added_{}.weight", "context_block.attn.ln_{}.weight"),
    Rule("attn.norm_{}.weight", "x_block.attn.ln_{}.weight"),
    Rule("attn2.norm_{}.weight", "x_block.attn2.ln_{}.weight"),
    Rule("attn.to_out.0.{}", "x_block.attn.proj.{}"),
    Rule("attn.to_add_out.{}", "context_block.attn.proj.{}"),
    Rule("attn2.to_out.0.{}", "x_block.attn2.proj.{}"),
    Rule("norm1.linear.{}", "x_block.adaLN_modulation.1.{}"),
    Rule("norm1_context.linear.{}", "context_block.adaLN_modulation.1.{}"),
    Rule("ff.net.0.proj.{}", "x_block.mlp.fc1.{}"),
    Rule("ff.net.2.{}", "x_block.mlp.fc2.{}"),
    Rule("ff_context.net.0.proj.{}", "context_block.mlp.fc1.{}"),
    Rule("ff_context.net.2.{}", "context_block.mlp.fc2.{}"),
)


def mmdit_rules(depth: int) -> list[Rule]:
    """From diffusers' names to ours; `depth` counts the blocks, for the last tells its words scale before shift."""
    end = depth - 1
    last = "norm1_context.linear.{}", "context_block.adaLN_modulation.1.{}"
    return [
        Rule("pos_embed.pos_embed", "pos_embed"),
        Rule("pos_embed.proj.{}", "x_embedder.proj.{}"),
        Rule("time_text_embed.timestep_embedder.linear_1.{}", "t_embedder.mlp.0.{}"),
        Rule("time_text_embed.timestep_embedder.linear_2.{}", "t_embedder.mlp.2.{}"),
        Rule("time_text_embed.text_embedder.linear_1.{}", "y_embedder.mlp.0.{}"),
        Rule("time_text_embed.text_embedder.linear_2.{}", "y_embedder.mlp.2.{}"),
        Rule("context_embedder.{}", "context_embedder.{}"),
        Rule(f"transformer_blocks.{end}.{last[0]}", f"joint_blocks.{end}.{last[1]}", "swap"),
        *under(BLOCK, "transformer_blocks.{}.", "joint_blocks.{}."),
        Rule("norm_out.linear.{}", "final_layer.adaLN_modulation.1.{}", "swap"),
        Rule("proj_out.{}", "final_layer.linear.{}"),
    ]

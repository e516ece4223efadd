"""The autoencoder's names in diffusers' layout; ours are those of the original checkpoints."""

from __future__ import annotations

from limner.weights.layout import Rule, under

RESNET = (Rule("conv_shortcut.{}", "nin_shortcut.{}"), Rule("{}", "{}"))
ATTENTION = (
    Rule("group_norm.{}", "norm.{}"),
    *(
        rule
        for now, before, ours in (
            ("to_q", "query", "q"), ("to_k", "key", "k"), ("to_v", "value", "v"), ("to_out.0", "proj_attn", "proj_out"),
        )
        for name in (now, before)  # before: files of 2022; written back as `now`, which stands first
        for rule in (Rule(f"{name}.weight", f"{ours}.weight", "pointwise"), Rule(f"{name}.bias", f"{ours}.bias"))
    ),
)  # fmt: skip


def diffusers(levels: int) -> list[Rule]:
    """Theirs counts the decoder's levels from the latents up, ours from the picture down."""
    rules: list[Rule] = []
    for i in range(levels):
        rules += under(RESNET, f"encoder.down_blocks.{i}.resnets.{{}}.", f"encoder.down.{i}.block.{{}}.")
        rules.append(Rule(f"encoder.down_blocks.{i}.downsamplers.0.{{}}", f"encoder.down.{i}.downsample.{{}}"))
        up = levels - 1 - i
        rules += under(RESNET, f"decoder.up_blocks.{i}.resnets.{{}}.", f"decoder.up.{up}.block.{{}}.")
        rules.append(Rule(f"decoder.up_blocks.{i}.upsamplers.0.{{}}", f"decoder.up.{up}.upsample.{{}}"))
    for side in ("encoder", "decoder"):
        rules += under(RESNET, f"{side}.mid_block.resnets.0.", f"{side}.mid.block_1.")
        rules += under(ATTENTION, f"{side}.mid_block.attentions.0.", f"{side}.mid.attn_1.")
        rules += under(RESNET, f"{side}.mid_block.resnets.1.", f"{side}.mid.block_2.")
        rules.append(Rule(f"{side}.conv_norm_out.{{}}", f"{side}.norm_out.{{}}"))
        rules += [Rule(f"{side}.{conv}.{{}}", f"{side}.{conv}.{{}}") for conv in ("conv_in", "conv_out")]
    return [*rules, *(Rule(f"{conv}.{{}}", f"{conv}.{{}}") for conv in ("quant_conv", "post_quant_conv"))]


ORIGINAL = (Rule("loss.{}", None), Rule("{}", "{}"))  # the discriminator of some training checkpoints falls away

"""The names of T2I-Adapters in diffusers' layout; ours are those of the original files, which count no levels."""

from __future__ import annotations

from limner.weights.layout import Rule

LIGHT = (
    Rule("body.{}.resnets.{}.{}", "body.{}.body.{}.{}"),
    Rule("body.{}.in_conv.{}", "body.{}.in_conv.{}"),
    Rule("body.{}.out_conv.{}", "body.{}.out_conv.{}"),
)


def diffusers(levels: int, blocks: int, light: bool) -> list[Rule]:
    """Levels and blocks a level as in the config."""
    if light:
        return list(LIGHT)
    rules = [Rule("conv_in.{}", "conv_in.{}")]
    for i in range(levels):
        rules.append(Rule(f"body.{i}.in_conv.{{}}", f"body.{i * blocks}.in_conv.{{}}"))
        rules += [Rule(f"body.{i}.resnets.{j}.{{}}", f"body.{i * blocks + j}.{{}}") for j in range(blocks)]
    return rules

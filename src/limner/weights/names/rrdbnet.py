"""The names of ESRGAN's networks before Real-ESRGAN, whose names are ours."""

from __future__ import annotations

from limner.weights.layout import Rule

ENDS = ("weight", "bias")


def sequence(blocks: int, doublings: int) -> list[Rule]:
    """The first files number all layers; the block behind the last of the body is the convolution that ends it."""
    rules = [Rule(f"model.1.sub.{blocks}.{end}", f"conv_body.{end}") for end in ENDS]
    rules += [
        Rule(f"model.1.sub.{{}}.RDB{j}.conv{k}.0.{{}}", f"body.{{}}.rdb{j}.conv{k}.{{}}")
        for j in range(1, 4)
        for k in range(1, 6)
    ]
    ups = [Rule(f"model.{3 * i}.{{}}", f"conv_up{i}.{{}}") for i in range(1, doublings + 1)]
    ends = [
        ("model.0", "conv_first"),
        (f"model.{3 * doublings + 2}", "conv_hr"),
        (f"model.{3 * doublings + 4}", "conv_last"),
    ]
    return [*rules, *ups, *(Rule(f"{theirs}.{{}}", f"{ours}.{{}}") for theirs, ours in ends)]


NAMED = (  # between the two: BSRGAN and its kin
    *(
        Rule(f"RRDB_trunk.{{}}.RDB{j}.conv{k}.{{}}", f"body.{{}}.rdb{j}.conv{k}.{{}}")
        for j in range(1, 4)
        for k in range(1, 6)
    ),
    Rule("trunk_conv.{}", "conv_body.{}"),
    *(Rule(f"upconv{i}.{{}}", f"conv_up{i}.{{}}") for i in range(1, 4)),
    Rule("HRconv.{}", "conv_hr.{}"),
    *(Rule(f"{name}.{{}}", f"{name}.{{}}") for name in ("conv_first", "conv_last")),
)

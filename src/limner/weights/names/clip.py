"""The names of CLIP's text tower in OpenCLIP's layout; ours are those of transformers, which most files carry."""

from __future__ import annotations

from limner.weights.layout import Rule

TRANSFORMERS = (
    Rule("text_model.embeddings.position_ids", None),  # 0 .. 76, kept by old files
    Rule("logit_scale", None),  # belongs to the training with pictures
    Rule("text_projection.weight", "text_projection.weight"),
    Rule("text_model.text_projection", "text_projection.weight"),  # stable-diffusion.cpp's
    Rule("text_model.{}", "text_model.{}"),
)


def openclip_layers(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The layers of one of OpenCLIP's towers: queries, keys and values lie in one tensor there."""
    parts = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    fused = (
        Rule(f"{theirs}.attn.in_proj_{kind}", tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv"))
        for kind in ("weight", "bias")
    )
    return (*fused, *(Rule(f"{theirs}.{name}.{{}}", f"{ours}.{mine}.{{}}") for name, mine in parts.items()))


OPENCLIP = (
    Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    *openclip_layers("transformer.resblocks.{}", "text_model.encoder.layers.{}"),
    Rule("ln_final.{}", "text_model.final_layer_norm.{}"),
    Rule("text_projection", "text_projection.weight", "transpose"),
    Rule("logit_scale", None),
)
FUSED = (  # stable-diffusion.cpp's own, of a tower that was OpenCLIP's
    *(
        Rule(
            f"text_model.encoder.layers.{{}}.self_attn.in_proj.{kind}",
            tuple(f"text_model.encoder.layers.{{}}.self_attn.{part}_proj.{kind}" for part in "qkv"),
        )
        for kind in ("weight", "bias")
    ),
    Rule("text_model.text_projection", "text_projection.weight", "transpose"),
    *TRANSFORMERS,
)
BARE = (Rule("embeddings.position_ids", None), Rule("{}", "text_model.{}"))  # what transformers 5 calls them in memory

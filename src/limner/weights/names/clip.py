"""The names of CLIP's text tower in OpenCLIP's layout; ours are those of transformers, which most files carry."""

from __future__ import annotations

from limner.weights.layout import Rule

TRANSFORMERS = (
    Rule("text_model.embeddings.position_ids", None),  # 0 .. 76, kept by old files
    Rule("logit_scale", None),  # belongs to the training with pictures
    Rule("text_projection.weight", "text_projection.weight"),
    Rule("text_model.{}", "text_model.{}"),
)
LAYERS = "text_model.encoder.layers.{}"
OPENCLIP = (
    Rule("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Rule("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    *(
        Rule(
            f"transformer.resblocks.{{}}.attn.in_proj_{kind}",
            tuple(f"{LAYERS}.self_attn.{part}_proj.{kind}" for part in "qkv"),
        )
        for kind in ("weight", "bias")
    ),
    Rule("transformer.resblocks.{}.attn.out_proj.{}", f"{LAYERS}.self_attn.out_proj.{{}}"),
    Rule("transformer.resblocks.{}.ln_1.{}", f"{LAYERS}.layer_norm1.{{}}"),
    Rule("transformer.resblocks.{}.ln_2.{}", f"{LAYERS}.layer_norm2.{{}}"),
    Rule("transformer.resblocks.{}.mlp.c_fc.{}", f"{LAYERS}.mlp.fc1.{{}}"),
    Rule("transformer.resblocks.{}.mlp.c_proj.{}", f"{LAYERS}.mlp.fc2.{{}}"),
    Rule("ln_final.{}", "text_model.final_layer_norm.{}"),
    Rule("text_projection", "text_projection.weight", "transpose"),
    Rule("logit_scale", None),
)
BARE = (Rule("embeddings.position_ids", None), Rule("{}", "text_model.{}"))  # what transformers 5 calls them in memory

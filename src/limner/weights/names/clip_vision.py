"""The names of CLIP with eyes in OpenCLIP's layout and in transformers'; ours are transformers', each tower apart."""

from __future__ import annotations

from limner.weights.layout import Rule, under
from limner.weights.names import clip

VISION = (
    Rule("vision_model.embeddings.position_ids", None),  # 0 .. T, kept by old files
    Rule("visual_projection.weight", "visual_projection.weight"),
    Rule("vision_model.{}", "vision_model.{}"),
)
OPENCLIP_VISION = (
    Rule("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    Rule("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    Rule("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    Rule("visual.ln_pre.{}", "vision_model.pre_layrnorm.{}"),
    *clip.openclip_layers("visual.transformer.resblocks.{}", "vision_model.encoder.layers.{}"),
    Rule("visual.ln_post.{}", "vision_model.post_layernorm.{}"),
    Rule("visual.proj", "visual_projection.weight", "transpose"),
)
SCALE = (Rule("logit_scale", "logit_scale"),)  # before the text tower's rules, which drop it

TRANSFORMERS = (*SCALE, *under(VISION, ours="vision."), *under(clip.TRANSFORMERS, ours="text."))
OPENCLIP = (*SCALE, *under(OPENCLIP_VISION, ours="vision."), *under(clip.OPENCLIP, ours="text."))

LEFT_OUT = ("text_model.{}", "text_projection.weight", "logit_scale")  # of a whole CLIP whose eyes are wanted alone
LEFT_OUT_OPENCLIP = (
    "token_embedding.weight", "positional_embedding", "transformer.{}", "ln_final.{}", "text_projection", "logit_scale",
)  # fmt: skip
EYES = (*(Rule(name, None) for name in LEFT_OUT), *VISION)
OPENCLIP_EYES = (*(Rule(name, None) for name in LEFT_OUT_OPENCLIP), *OPENCLIP_VISION)

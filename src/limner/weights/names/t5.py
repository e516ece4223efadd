"""The names of T5's encoder: transformers', which are ours but for what files carry beside them, and llama.cpp's."""

from __future__ import annotations

from limner.weights.layout import Rule

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor under two names
LAYERS = {
    "attn_q": "0.SelfAttention.q", "attn_k": "0.SelfAttention.k", "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o", "attn_rel_b": "0.SelfAttention.relative_attention_bias", "attn_norm": "0.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0", "ffn_up": "1.DenseReluDense.wi_1", "ffn_down": "1.DenseReluDense.wo",
    "ffn_norm": "1.layer_norm",
}  # fmt: skip
LLAMA = (
    Rule("token_embd.weight", "shared.weight"),
    Rule("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
    *(Rule(f"enc.blk.{{}}.{name}.weight", f"encoder.block.{{}}.layer.{ours}.weight") for name, ours in LAYERS.items()),
    Rule("dec.{}", None),
)


def t5_rules(embedding: str = "shared.weight") -> list[Rule]:
    """From transformers' names to ours. `embedding`: the name that the file's embedding is read from and written to.

    Its other name is dropped, and so are the decoder and the head of a whole T5.
    """
    return [
        Rule(embedding, "shared.weight"),
        *(Rule(name, None) for name in EMBEDDINGS if name != embedding),
        Rule("encoder.block.{}", "encoder.block.{}"),
        Rule("encoder.final_layer_norm.weight", "encoder.final_layer_norm.weight"),
        Rule("decoder.{}", None),
        Rule("lm_head.weight", None),
    ]

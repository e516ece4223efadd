"""The names of T5's encoder in transformers' layout, which are ours, but for what files carry beside them."""

from __future__ import annotations

from limner.weights.layout import Rule

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor under two names


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

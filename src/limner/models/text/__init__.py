"""Words on their way to a text encoder: prompts, wildcards, tokens, chunks, learned words. No network stands here."""

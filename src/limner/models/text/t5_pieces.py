"""T5's tokens: a unigram model of sentence pieces, read from the `tokenizer.json` that comes with a checkpoint.

Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (2020), 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from limner.errors import BadInput

FILE = "tokenizer.json"
VOCABULARY = 32128  # rows of the embedding table: 32,100 tokens, rounded up to a multiple of 128


def t5_file(names: Iterable[str]) -> str:
    """Which file of a tokenizer's folder is read."""
    found = set(names)
    if FILE in found:
        return FILE
    if "spiece.model" in found:
        raise BadInput(
            f"spiece.model is not read: put beside it the {FILE} of the same tokenizer, from the tokenizer_3 folder of "
            "an SD 3 checkpoint or written by save_pretrained of transformers' T5TokenizerFast"
        )
    raise BadInput(f"a folder of T5's tokenizer has a {FILE}; found: {', '.join(sorted(found)) or 'nothing'}")


class T5Pieces:
    """`pieces(texts)` gives ids, N L, ended and padded; `pieces.ids(text)` all of a text, without the end.

    SD 3 reads 256 positions, and its network attends to the padding too, so no mask is told.
    """

    def __init__(self, json: str, length: int = 256) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(json)
        except Exception as error:  # what the library raises has no class of its own
            raise BadInput(f"{FILE} of T5 is not readable: {error}") from error
        ends, pads = self._tokenizer.token_to_id("</s>"), self._tokenizer.token_to_id("<pad>")
        if ends is None or pads is None or self._tokenizer.get_vocab_size() > VOCABULARY:
            size = self._tokenizer.get_vocab_size()
            raise BadInput(f"{FILE} has {size} tokens; T5's has at most {VOCABULARY}, with </s> and <pad>")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.end, self.pad, self.length = int(ends), int(pads), length

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.row(self.ids(text)[: self.length - 1]) for text in texts], dtype=torch.int64)

    def row(self, ids: Sequence[int]) -> list[int]:
        """Ids, the end, and padding."""
        return [*ids, self.end, *[self.pad] * (self.length - 1 - len(ids))]

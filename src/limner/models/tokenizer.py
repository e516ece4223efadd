"""Words to word pieces: a thin wrapper over the `tokenizers` library."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor


class Pieces:
    """BERT's word pieces. `pieces(texts, most)` gives ids and mask, B L, L being the longest text or `most`."""

    def __init__(self, json: str) -> None:
        self._tokenizer = Tokenizer.from_str(json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._end = self._tokenizer.token_to_id("[SEP]") or 0

    def __call__(self, texts: Sequence[str], most: int, warn: bool = False) -> tuple[Tensor, Tensor]:
        rows = []
        for text in texts:
            found = self._tokenizer.encode(text[: most * 40])  # no word piece needs more characters than that
            ids = found.ids
            if len(ids) > most:
                if warn:
                    cut = text[found.offsets[most - 2][1] :].strip()
                    warnings.warn(
                        f"the prompt is cut after {most - 2} word pieces, before {cut[:30]!r}: the model reads no more",
                        stacklevel=2,
                    )
                ids = [*ids[: most - 1], self._end]
            rows.append(ids)
        longest = max(len(ids) for ids in rows)
        padded = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, ids in enumerate(rows):
            padded[i, : len(ids)] = torch.tensor(ids)
            mask[i, : len(ids)] = True
        return padded, mask

"""CLIP's tokens: byte-level pair encoding of lower-case words, from the merges that OpenAI published.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021), 2.4; Sennrich et al.,
Neural Machine Translation of Rare Words with Subword Units (2016), algorithm 1. The ids follow from the merges: the 256
bytes, the same 256 at the end of a word, one id a merge, start and end.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor

LENGTH = 77  # positions of every CLIP text encoder of this field, start and end among them
VOCABULARY = 49408
START, END = VOCABULARY - 2, VOCABULARY - 1
START_WORD, END_WORD, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's split


@cache
def merges() -> tuple[tuple[str, str], ...]:
    """The 48,894 pairs of symbols that become one, the most frequent first."""
    packed = resources.files("limner").joinpath("data/clip/merges.txt.gz").read_bytes()
    symbols = gzip.decompress(packed).decode().split()
    return tuple(zip(symbols[::2], symbols[1::2], strict=True))


@cache
def vocabulary() -> dict[str, int]:
    """Symbol -> id. Bytes stand for themselves where they can be seen, else for the characters from U+0100 on."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ends = [letter + WORD_END for letter in letters]
    symbols = [*letters, *ends, *(left + right for left, right in merges()), START_WORD, END_WORD]
    return {symbol: i for i, symbol in enumerate(symbols)}


@cache
def _tokenizer() -> Tokenizer:
    model = BPE(vocabulary(), list(merges()), end_of_word_suffix=WORD_END, unk_token=END_WORD, fuse_unk=False)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in (START_WORD, END_WORD)])
    return tokenizer


class ClipPieces:
    """The tokens of one encoder. `pieces(texts)` gives ids, N 77, cut to fit; `pieces.ids(text)` all, without borders.

    `pad` fills what is left: the end token for CLIP-L, 0 for the OpenCLIP encoders of SD 2 and SDXL.
    """

    start, end, length = START, END, LENGTH

    def __init__(self, pad: int = END) -> None:
        self.pad = pad

    def ids(self, text: str) -> list[int]:
        return _tokenizer().encode(text, add_special_tokens=False).ids

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self.row(self.ids(text)[: self.length - 2]) for text in texts], dtype=torch.int64)

    def row(self, ids: Sequence[int]) -> list[int]:
        """At most 75 ids between start and end, padded to 77."""
        return [self.start, *ids, self.end, *[self.pad] * (self.length - 2 - len(ids))]


def clip_files(pad: int = END) -> dict[str, str]:
    """File name -> text of a diffusers folder's tokenizer, as `transformers.CLIPTokenizer` reads it."""
    words = {"bos_token": START_WORD, "eos_token": END_WORD, "unk_token": END_WORD}
    special = {**words, "pad_token": END_WORD if pad == END else next(s for s, i in vocabulary().items() if i == pad)}
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True}
    return {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(f"{left} {right}" for left, right in merges()), ""]),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }

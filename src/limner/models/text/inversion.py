"""Learned words: vectors that stand in a prompt where tokens would, from tensors that were read already.

Gal et al., An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion (2022). Three
kinds of file are published: one tensor called `emb_params` (A1111, kohya), one called as the word itself (diffusers,
`<cat-toy>`), and `clip_l` with `clip_g` for the two text encoders of SDXL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.errors import BadInput

ENCODERS = {768: "CLIP-L", 1024: "OpenCLIP-H", 1280: "OpenCLIP bigG"}  # width -> which text encoder has it
NAMELESS = ("emb_params", "string_to_param.*", "*")  # tensors that say nothing of the word: the file's name is the word
SDXL = {"clip_l": 768, "clip_g": 1280}
MOST = 75  # vectors: the tokens that a row has room for


@dataclass(frozen=True, eq=False)
class Inversion:
    words: tuple[str, ...]  # what calls it in a prompt
    vectors: Mapping[int, Tensor]  # width of a text encoder -> n width, fp32; n is the same for each

    def __len__(self) -> int:
        """How many tokens it stands for."""
        return len(next(iter(self.vectors.values())))


def read_inversion(tensors: Mapping[str, Tensor], name: str) -> Inversion:
    """A learned word from a file's tensors; the name is the file's, without its suffix."""
    if set(tensors) == set(SDXL):
        vectors = {width: _checked(tensors[key], f"{name}: {key}", (width,)) for key, width in SDXL.items()}
        small, big = (len(each) for each in vectors.values())
        if small != big:
            raise BadInput(f"{name} has {small} vectors in clip_l and {big} in clip_g; as many in both were expected")
        return Inversion((name,), vectors)
    if len(tensors) != 1:
        names = ", ".join(sorted(tensors)[:6]) or "none"
        raise BadInput(f"{name} is no textual inversion: one tensor, or clip_l and clip_g, were expected, not {names}")
    key, tensor = next(iter(tensors.items()))
    vector = _checked(tensor, f"{name}: {key}", tuple(ENCODERS))
    return Inversion((name,) if key in NAMELESS else tuple(dict.fromkeys((key, name))), {vector.shape[1]: vector})


def _checked(tensor: Tensor, where: str, widths: tuple[int, ...]) -> Tensor:
    """n width in fp32; one vector alone may come without the n."""
    vectors = tensor[None] if tensor.ndim == 1 else tensor
    if vectors.ndim != 2 or vectors.shape[1] not in widths:
        wanted = " or ".join(f"{width} ({ENCODERS[width]})" for width in widths)
        raise BadInput(f"{where} has the shape {list(tensor.shape)}; vectors of {wanted} numbers were expected")
    if not 1 <= len(vectors) <= MOST:
        raise BadInput(f"{where} has {len(vectors)} vectors; a prompt has room for 1 to {MOST}")
    if not vectors.is_floating_point() or not bool(torch.isfinite(vectors).all()):
        raise BadInput(f"{where} holds {vectors.dtype} that are not all finite floating-point numbers")
    return vectors.detach().float()


def vectors_for(inversions: Iterable[Inversion], width: int) -> dict[str, Tensor]:
    """The learned words as one text encoder reads them: word -> n width, as `chunks` takes them."""
    words: dict[str, Tensor] = {}
    for inversion in inversions:
        if width not in inversion.vectors:
            made = " and ".join(ENCODERS.get(each, str(each)) for each in inversion.vectors)
            raise BadInput(
                f"the embedding {inversion.words[0]!r} was made for {made}, not for {ENCODERS.get(width, width)}"
            )
        for word in inversion.words:
            if word in words:
                raise BadInput(f"two embeddings are called {word!r}")
            words[word] = inversion.vectors[width]
    return words

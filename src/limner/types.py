"""The types that everything is said in.

Shape legend, for the whole package:
    B batch   C latent channels   h w latent height and width   H W picture height and width
    T image tokens   L text tokens   D width   P pooled width   K heads   E width of a head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = tuple[Tensor, ...]
Deep = Callable[[Callable[[], Tensor]], Tensor]  # what deep layers give: by the function it is handed, or without
Denoiser = Callable[[Tensor, float], Tensor]  # (x: B C h w, t in [0, 1]) -> x0: B C h w, fp32, pure


@dataclass(frozen=True)
class Cond:
    """What a denoiser is told beside x and t."""

    tokens: Tensor  # B L D
    pooled: Tensor | None = None  # B P
    mask: Tensor | None = None  # B L, True where a token stands
    style: Tensor | None = None  # B, int64; 0 means "any style"
    sizes: Tensor | None = None  # B 6 (SDXL: original, crop, target; height first) or B 5 (its refiner)
    guidance: Tensor | None = None  # B, the scale, for networks that have guidance built in (LCM)
    image: Tensor | None = None  # B C' h w, laid beside x: mask, masked picture, depth map
    control: Tensors = ()  # B C h w each: for what a UNet keeps on its way down, the last for its middle (ControlNet)
    hints: Tensors = ()  # B C h w each, for the levels on the way down (T2I-Adapter)
    seen: tuple[Tensors, ...] = ()  # a picture prompt each: key and value, B S D, of each cross-attention (IP-Adapter)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cond:
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: _mapped(change, value) for name, value in fields.items()})

    def to(self, device: torch.device) -> Cond:
        return self._each(lambda value: value.to(device))

    def repeat(self, times: int) -> Cond:
        """Each row `times` times, one after another."""
        return self._each(lambda value: value.repeat_interleave(times, dim=0))

    def again(self, times: int) -> Cond:
        """All rows, `times` times over."""
        return self._each(lambda value: value.repeat(times, *[1] * (value.ndim - 1)))

    def row(self, i: int) -> Cond:
        return self._each(lambda value: value[i : i + 1])

    def cat(self, other: Cond) -> Cond:
        """The rows of `other` below these; both must carry the same fields."""
        mine, theirs = vars(self), vars(other)
        if any(_form(mine[name]) != _form(theirs[name]) for name in mine):
            raise ValueError("conditions with different fields cannot be joined")
        return replace(self, **{name: _joined(mine[name], theirs[name]) for name in mine if mine[name] is not None})

    def filled(self, length: int) -> Cond:
        """Tokens up to this length, the new ones hidden, so that they change nothing; as it is without a mask."""
        more = length - self.tokens.shape[1]
        if more <= 0 or self.mask is None:
            return self
        mask = F.pad(self.mask, (0, more), value=False)
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=mask)

    def __len__(self) -> int:
        return len(self.tokens)


def again(value: Tensor, rows: int) -> Tensor:
    """The rows of a tensor over and over, until there are so many, or as they are. Their layout in memory stays."""
    return value if len(value) >= rows else torch.cat([value] * (rows // len(value)))


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    return tuple(_mapped(change, each) for each in value) if isinstance(value, tuple) else change(value)


def _joined(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, tuple):
        return tuple(_joined(a, b) for a, b in zip(mine, theirs, strict=True))
    return torch.cat([mine, theirs])


def _form(value: Any) -> Any:
    """What is given and what is not, without the numbers."""
    return tuple(_form(each) for each in value) if isinstance(value, tuple) else value is None


Steer = Callable[[Tensor, Tensor, Cond, float], Cond]  # (x, the clock's B, what is told, t) -> what is told, steered


@dataclass(frozen=True)
class Step:
    """One station of a walk from noise to picture; a sampler yields one a time."""

    i: int  # 0 .. n - 1
    n: int
    t: float  # the time that x stands at, after this step
    x: Tensor  # B C h w
    x0: Tensor  # B C h w, the estimate of the finished latents


@dataclass(frozen=True)
class LatentSpec:
    """How latents relate to pictures."""

    channels: int  # C
    factor: int  # H / h
    multiple: int  # picture sides must be multiples of this
    pixels: int  # 3 RGB, 4 RGBA with premultiplied colour
    scale: float = 1.0  # the denoiser's latents are (the autoencoder's - shift) * scale
    shift: float = 0.0

"""Composition that follows a picture: what ControlNets and T2I-Adapters make of it is told to a UNet at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path as FilePath
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import BadInput
from limner.families.addons import CONTROLNET, T2I_ADAPTER, read_addon
from limner.image import from_pil, open_picture
from limner.models.controlnet import ControlNet
from limner.models.t2i_adapter import T2iAdapter
from limner.models.unet import Unet
from limner.nets import bare, placed
from limner.nn.tiles import Window
from limner.palette import grey
from limner.pipeline import Model, build
from limner.recipe import Control
from limner.types import Cond, Steer, Tensors

TURN = math.tan(math.pi / 8)  # slope half-way between two of the eight directions
EDGES = "canny:"  # before a path: the edges of the picture there


@dataclass(frozen=True)
class Loaded:
    """A network and the picture that it is shown, and when it works."""

    net: ControlNet | T2iAdapter
    hint: Tensor  # 1 3 H W in [0, 1]
    strength: float = 1.0
    start: float = 0.0  # shares of the walk between which it works
    end: float = 1.0
    factor: int = 8  # pixels along the side of a latent cell
    times: tuple[float, float] = (1.0, 0.0)  # the first time that it works at, and the one from which it does not

    def over(self, walk: Sequence[float]) -> Loaded:
        """For a walk of these times: shares are counted in steps, rounded to whole ones."""
        steps = len(walk) - 1
        return replace(self, times=(walk[round(self.start * steps)], walk[round(self.end * steps)]))

    def works(self, t: float) -> bool:
        return self.strength != 0 and self.times[0] >= t > self.times[1]

    def fitted(self, h: int, w: int) -> Loaded:
        """With the hint at the size of the picture whose latents are h w."""
        size = (self.factor * h, self.factor * w)
        if self.hint.shape[2:] == size:
            return self
        return replace(self, hint=F.interpolate(self.hint, size, mode="bilinear", antialias=True))

    def at(self, window: Window) -> Loaded:
        """What one window of the latents sees, of a hint that is fitted to the whole picture."""
        return replace(self, hint=window.times(self.factor).cut(self.hint))


def load_control(control: Control, file: FilePath, model: Model) -> Loaded:
    """What a recipe says of a control, for a model; `file` is the picture, which lies on black where it is clear."""
    net = build(read_addon(FilePath(control.net).expanduser(), CONTROLNET, T2I_ADAPTER))
    net = cast(ControlNet | T2iAdapter, placed(net, model.place))
    check_fit(net, bare(model.nets, "denoiser"))
    picture = from_pil(open_picture(file))
    picture = edges(picture) if control.image.startswith(EDGES) else picture
    factor = model.family.latent.factor
    return Loaded(net, picture[None, :3], control.strength, control.start, control.end, factor)


def check_fit(net: ControlNet | T2iAdapter, unet: nn.Module) -> None:
    """Refuse a network that was made for another UNet."""
    kind = "ControlNet" if isinstance(net, ControlNet) else "T2I-Adapter"
    if not isinstance(unet, Unet):
        raise BadInput(f"a {kind} steers the UNets of sd15, sd2 and sdxl; this denoiser is a {type(unet).__name__}")
    if isinstance(net, ControlNet):
        for name in ("context", "vector", "width", "multiples", "blocks"):
            mine, its = getattr(net.config, name), getattr(unet.config, name)
            if mine != its and (name, mine) != ("context", 0):  # the smallest ones read no words
                raise BadInput(f"this {kind} is made for a UNet of {name} {mine}, the model's has {its}")
        return
    wants = tuple(unet.kept[i] for i in unet.ends)  # features for these levels, and perhaps one for the middle
    every = 16 if unet.ends[0] > unet.config.blocks else 8
    if net.config.widths not in (wants, (*wants, unet.kept[-1])) or net.config.factor != every:
        raise BadInput(
            f"this {kind} gives features of widths {net.config.widths} from every {net.config.factor}th pixel, the "
            f"model's UNet takes {wants} from every {every}th"
        )


def steering(controls: Sequence[Loaded]) -> Steer:
    """What tells a UNet, at each step, all that some networks make of their pictures; several add up."""

    @cache
    def shown(i: int, h: int, w: int, device: torch.device) -> Tensors:
        """The hint or, from an adapter, its features: nothing of them changes from step to step."""
        hint, net = controls[i].fitted(h, w).hint.to(device), controls[i].net
        if isinstance(net, T2iAdapter):
            return net(grey(hint) if net.config.picture == 1 else hint)
        return (hint,)

    def steer(x: Tensor, clock: Tensor, cond: Cond, t: float) -> Cond:
        told = cond
        for i, each in enumerate(controls):
            if not each.works(t):
                continue
            maps = tuple(one.expand(len(x), -1, -1, -1) for one in shown(i, *x.shape[2:], x.device))
            if isinstance(each.net, T2iAdapter):
                told = replace(told, hints=_added(told.hints, maps, each.strength))
            else:
                told = replace(told, control=_added(told.control, each.net(x, clock, cond, *maps), each.strength))
        return told

    return steer


def _added(before: Tensors, more: Tensors, strength: float) -> Tensors:
    scaled = [strength * one for one in more]
    return tuple(a + b for a, b in zip(before, scaled, strict=True)) if before else tuple(scaled)


def edges(picture: Tensor, low: float = 0.4, high: float = 0.8, blur: float = 1.0) -> Tensor:
    """White lines on black where colour or outline changes: 4 H W to 4 H W (Canny 1986, IEEE PAMI-8, 679-698).

    low and high: Sobel's answer at which an edge goes on and begins; a step from black to white answers 4 unblurred.
    blur: standard deviation in pixels.
    """
    taps = torch.arange(-math.ceil(3 * blur), math.ceil(3 * blur) + 1.0)
    bell = torch.exp(-0.5 * (taps / max(blur, 1e-6)) ** 2)
    smooth = torch.tensor([1.0, 2.0, 1.0])
    slope = torch.tensor([-1.0, 0.0, 1.0])
    soft = _filtered(picture[:, None], bell / bell.sum(), bell / bell.sum())  # 4 1 H W
    across, down = _filtered(soft, smooth, slope)[:, 0], _filtered(soft, slope, smooth)[:, 0]  # 4 H W
    most = (across.abs() + down.abs()).argmax(0, keepdim=True)  # the channel in which most happens
    dx, dy = across.gather(0, most)[0], down.gather(0, most)[0]  # H W
    ridge = _thinned(dx, dy)
    lines = _grown(ridge >= high, ridge >= low)
    return torch.cat([lines.float().expand(3, -1, -1), torch.ones(1, *lines.shape)])


def _filtered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """N 1 H W through one filter down and another across; the border goes on outside."""
    h, w = len(rows) // 2, len(columns) // 2
    y = F.conv2d(F.pad(x, (w, w, h, h), mode="replicate"), rows[None, None, :, None])
    return F.conv2d(y, columns[None, None, None])


def _thinned(dx: Tensor, dy: Tensor) -> Tensor:
    """The strength of the slope where it is the greatest across the edge, else 0: H W."""
    strength = dx.abs() + dy.abs()
    around = F.pad(strength, (1, 1, 1, 1))
    h, w = strength.shape

    def beside(y: int, x: int) -> Tensor:
        return around[1 + y : 1 + y + h, 1 + x : 1 + x + w]

    flat, steep = dy.abs() < TURN * dx.abs(), dx.abs() < TURN * dy.abs()
    ridges = {  # which way the slope goes, and the two neighbours there
        (0, 1): flat,
        (1, 0): steep,
        (1, 1): ~flat & ~steep & (dx * dy > 0),
        (1, -1): ~flat & ~steep & (dx * dy < 0),
    }
    top = torch.zeros_like(strength, dtype=torch.bool)
    for (y, x), here in ridges.items():
        top |= here & (strength > beside(-y, -x)) & (strength >= beside(y, x))
    return torch.where(top, strength, 0.0)


def _grown(strong: Tensor, weak: Tensor) -> Tensor:
    """What is strong, and what is weak and joined to it by weak neighbours: H W."""
    found, left = (F.pad(each, (1, 1, 1, 1)).flatten() for each in (strong, weak & ~strong))
    row = strong.shape[1] + 2
    around = torch.tensor([y * row + x for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    edge = found.nonzero()[:, 0]
    while len(edge):
        near = (edge[:, None] + around).flatten()
        edge = near[left[near]].unique()
        found[edge], left[edge] = True, False
    return found.view(-1, row)[1:-1, 1:-1]

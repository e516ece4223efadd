"""Material maps of a texture: height, normals, roughness, ambient occlusion.

Classical image processing, and no measurement of a material: height is read from brightness, ambient occlusion and
normals from that height, and roughness is a guess from local contrast. They are starting points for an artist. Where
the texture is seamless, every filter goes around the border, so the maps are seamless too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear red, green and blue (ITU-R BT.709)
LIGHT = 1 / 6  # of the shorter side: brightness that varies more slowly is taken for light, not for form
SCALES = (2.0, 4.0, 8.0, 16.0)  # pixels: how far around a place is looked for what shades it
CONTRAST = 3.0  # pixels: the neighbourhood whose contrast is taken for roughness
Axes = tuple[bool, bool]  # whether the texture goes around along x and y


@dataclass(frozen=True)
class Maps:
    """Each H W in [0, 1], but the normals: 3 H W in [-1, 1] and of length 1."""

    height: Tensor  # 1 is high
    normal: Tensor  # x to the right, y up (or down), z out of the picture
    roughness: Tensor  # 1 is matt
    ambient: Tensor  # 1 is open, 0 shaded

    def images(self) -> dict[str, Image.Image]:
        """By name: height in 16 bits of grey, normal in 8 bits RGB, roughness and ambient in 8 bits of grey."""
        height = self.height.mul(65535).round().to(torch.int32).cpu().numpy().astype(np.uint16)
        normal = self.normal.mul(127.5).add(127.5).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
        grey = {"roughness": self.roughness, "ambient": self.ambient}
        flat = {name: Image.fromarray(value.mul(255).round().byte().cpu().numpy()) for name, value in grey.items()}
        return {"height": Image.fromarray(height), "normal": Image.fromarray(normal), **flat}


def maps(
    picture: Tensor,
    seamless: Axes = (True, True),
    strength: float = 1.0,
    convention: Literal["opengl", "directx"] = "opengl",
) -> Maps:
    """The maps of a texture, 4 H W in [0, 1] with premultiplied colour; what is clear lies lowest.

    strength: how steep the normals are; at 1 the whole range of height is an eighth of the shorter side.
    convention: green is up in OpenGL's and down in DirectX's normal maps.
    """
    light = luminance(picture)  # H W
    height = relief(light, seamless)
    deep = strength * min(light.shape) / 8  # pixels, of the whole range of height
    normal = normals(height * deep, seamless)
    if convention == "directx":
        normal = normal * torch.tensor([1.0, -1.0, 1.0])[:, None, None].to(normal)
    return Maps(height, normal, roughness(light, seamless), ambient(height * deep, seamless))


def luminance(picture: Tensor) -> Tensor:
    """4 H W, premultiplied sRGB, to the cube root of luminance, which is about even to the eye: H W in [0, 1]."""
    rgb = picture[:3].clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1
    return torch.einsum("chw,c->hw", linear, torch.tensor(LUMINANCE).to(linear)) ** (1 / 3)


def relief(light: Tensor, seamless: Axes) -> Tensor:
    """Height from brightness, without what varies slowly; 1 % at either end is cut off, and the rest fills [0, 1]."""
    form = light - blur(light, min(light.shape) * LIGHT, seamless)
    low, high = (form.flatten().kthvalue(1 + round(share * (form.numel() - 1))).values for share in (0.01, 0.99))
    if high - low < 1e-3:  # flat
        return torch.full_like(form, 0.5)
    return ((form - low) / (high - low)).clamp(0, 1)


def normals(height: Tensor, seamless: Axes) -> Tensor:
    """Unit normals 3 H W of a height H W in pixels, y up, by Scharr's operator (3, 10, 3)."""
    x = _padded(height, 1, seamless)[None, None]
    across = torch.tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]]).to(x) / 32  # the slope per pixel to the right
    slopes = F.conv2d(x, torch.stack([across, across.T])[:, None])[0]  # 2 H W: to the right, downwards
    return F.normalize(torch.stack([-slopes[0], slopes[1], torch.ones_like(slopes[0])]), dim=0)


def ambient(height: Tensor, seamless: Axes) -> Tensor:
    """How open the sky is over each place of a height H W in pixels: what lies below its surroundings is shaded.

    A place d below the mean height within r is taken for the bottom of a cone whose walls rise at atan(d / r): of an
    even sky's light it gets the share cos^2 of that angle. Several r are averaged.
    """
    open_ = torch.zeros_like(height)
    for scale in SCALES:
        below = (blur(height, scale, seamless) - height).clamp(min=0) / scale
        open_ += 1 / (1 + below**2)  # cos^2(atan(d / r))
    return open_ / len(SCALES)


def roughness(light: Tensor, seamless: Axes) -> Tensor:
    """A guess: strong fine contrast is taken for a rough surface, evenness for a smoother one; H W from 0.3 to 1."""
    mean = blur(light, CONTRAST, seamless)
    deviation = (blur(light**2, CONTRAST, seamless) - mean**2).clamp(min=0).sqrt()
    return 0.3 + 0.7 * (deviation / 0.15).clamp(max=1)  # 0.15: a deviation that looks coarse to the eye


def blur(x: Tensor, sigma: float, seamless: Axes) -> Tensor:
    """A Gaussian of so many pixels over ... H W; it goes around where asked, else the border's value goes on.

    Where it goes around it is a product of spectra, so that it may be wider than the picture.
    """
    for axis, around in ((-1, seamless[0]), (-2, seamless[1])):
        x = _blur_line(x, sigma, axis, around)
    return x


def _blur_line(x: Tensor, sigma: float, axis: int, around: bool) -> Tensor:
    size = x.shape[axis]
    reach = 0 if around else math.ceil(4 * sigma)
    places = torch.arange(-reach, size + reach, device=x.device).clamp(0, size - 1)
    wide = x.index_select(axis, places)
    rates = 2 * math.pi * torch.fft.rfftfreq(wide.shape[axis], device=x.device)  # radians per pixel
    damp = torch.exp(-0.5 * (sigma * rates) ** 2)
    spectrum = torch.fft.rfft(wide, dim=axis) * (damp if axis == -1 else damp[:, None])
    return torch.fft.irfft(spectrum, wide.shape[axis], dim=axis).narrow(axis, reach, size)


def _padded(x: Tensor, cells: int, seamless: Axes) -> Tensor:
    """H W with cells around it: from the other side where the texture goes around, else the border's."""
    for axis, around in ((1, seamless[0]), (0, seamless[1])):
        size = x.shape[axis]
        places = torch.arange(-cells, size + cells, device=x.device)
        x = x.index_select(axis, places % size if around else places.clamp(0, size - 1))
    return x

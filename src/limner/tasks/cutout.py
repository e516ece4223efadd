"""A figure on a clear ground, cut out of a picture by stated means; no network looks at it.

Three methods. `alpha`: the picture is clear somewhere already and stays as it is. `mask`: somebody says what stays.
`ground`: a plain or smoothly changing ground is told from the border. All that is done is said in `Cutout.how`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import BadInput
from limner.palette import straight

Method = Literal["auto", "alpha", "ground", "mask"]
TOLERANCE = 8.0  # CIE 1976 colour difference; 2.3 is just seen, JPEG strays by 3 to 6 around edges
SOFT = 2.0  # pixels on both sides of an edge in which figure and ground may be mixed
BORDER = 0.02  # share of the shorter side that is taken for the border, at least two pixels
MOST_OTHER = 0.4  # share of the border that may be figure; a fit by least distances stands up to it
ROUNDS = 30  # of reweighting
SAMPLES = 5_000  # pixels that are fitted at most
SIMPLER = 1.25  # how much worse a simpler ground may fit
ALIKE = 0.03  # distance in sRGB, of 1, below which noise says more of a mixture than colour
FAINT = 0.3  # share of the figure in a pixel below which its own colour is not told from the mixture
CLEAR = 250 / 255  # alpha below which a pixel counts as see-through; JPEG-like noise of encoders lies above


@dataclass(frozen=True)
class Cutout:
    picture: Tensor  # 4 H W in [0, 1], premultiplied
    method: Method  # what was done: alpha, ground or mask
    how: str  # in words
    figures: dict[str, float]


def cutout(
    picture: Tensor,
    method: Method = "auto",
    mask: Tensor | None = None,
    tolerance: float = TOLERANCE,
    soft: float = SOFT,
    holes: bool = False,
) -> Cutout:
    """The figure of a picture, 4 H W premultiplied. mask: H W, 1 is kept. holes: also ground inside the figure goes.

    Raises BadInput where a method has nothing to work on: no clear pixel, a border that is not plain.
    """
    if not 0 < tolerance <= 100:
        raise BadInput(f"the tolerance is a difference of colours above 0 and up to 100, not {tolerance:g}")
    if not 0 <= soft <= 64:
        raise BadInput(f"soft is a number of pixels from 0 to 64, not {soft:g}")
    see_through = float((picture[3] < CLEAR).float().mean())
    if method == "auto":
        method = "mask" if mask is not None else "alpha" if see_through > 0 else "ground"
    if method == "mask":
        if mask is None:
            raise BadInput("the method mask wants a mask")
        return _by_mask(picture, mask, round(soft))
    if mask is not None:
        raise BadInput(f"there is a mask, and the method {method} uses none")
    if method == "alpha":
        if see_through == 0:
            raise BadInput("the picture is clear nowhere, so its own alpha cuts nothing out")
        how = f"kept as it is: {see_through:.0%} of it is see-through already"
        return Cutout(picture, "alpha", how, {"clear": see_through})
    if see_through > 0:
        raise BadInput(f"{see_through:.0%} of the picture is see-through already, so it has no ground to take away")
    return _by_ground(picture[:3], tolerance, round(soft), holes)


def _by_ground(rgb: Tensor, tolerance: float, soft: int, holes: bool) -> Cutout:
    edge = border(*rgb.shape[1:])
    ground = fitted_ground(rgb, edge)
    away = difference(rgb, ground)  # H W
    other = float((away[edge] > tolerance).float().mean())
    if other > MOST_OTHER:
        raise BadInput(
            f"{other:.0%} of the border differs from an even ground by more than {tolerance:g} (CIE 1976), so the "
            "ground is not plain; a mask or a greater tolerance may do"
        )
    taken = _taken(away, tolerance, edge)
    ground = fitted_ground(rgb, eroded(taken, soft) if eroded(taken, soft).any() else edge)  # now from all of it
    away = difference(rgb, ground)
    taken = _taken(away, tolerance, torch.ones_like(edge) if holes else edge)
    alpha, colour = _unmixed(rgb, ground, taken, away, soft)
    clear = float((alpha < 0.5).float().mean())
    if clear > 0.999:
        raise BadInput(f"nothing in the picture differs from its border by more than {tolerance:g} (CIE 1976)")
    noise = float(away[edge][away[edge] <= tolerance].mean())
    where = "inside the figure too" if holes else "as far as it hangs together with the border"
    how = (
        f"an even ground was told from the border and taken away, {where}: {clear:.0%} of the picture; "
        f"{other:.0%} of the border is figure, the rest strays by {noise:.1f} of {tolerance:g}"
    )
    figures = {"clear": clear, "border_other": other, "border_noise": noise, "tolerance": tolerance}
    return Cutout(torch.cat([colour, alpha[None]]), "ground", how, figures)


def _taken(away: Tensor, tolerance: float, start: Tensor) -> Tensor:
    """What is ground, H W, and hangs together with a pixel of `start`.

    Figure is what differs from the ground by more than the tolerance, but for specks: of twice the tolerance nowhere,
    and nowhere three pixels wide and high.
    """
    other = away > tolerance
    figure = flooded(other, (away > 2 * tolerance) | eroded(other, 1))
    return flooded(~figure, start)


def _by_mask(picture: Tensor, mask: Tensor, soft: int) -> Cutout:
    """Alpha is the mask's; what the old ground left in the colours along its edge is taken out."""
    if mask.shape != picture.shape[1:]:
        found, want = (f"{shape[1]}x{shape[0]}" for shape in (mask.shape, picture.shape[1:]))
        raise BadInput(f"the mask has {found} pixels and the picture {want}")
    rgb = straight(picture)
    inside, outside = eroded(mask > 0.99, soft), eroded(mask < 0.01, soft)
    if not (mask > 0.5).any():
        raise BadInput("the mask keeps nothing: white is kept, and it is black")
    reach = 2 * soft + 2
    figure, ground = spread(rgb, inside, reach), spread(rgb, outside, reach)
    share = _share(rgb, figure, ground, mask)
    band = (mask > 0) & ~inside
    own = torch.where(share > FAINT, (rgb - (1 - share) * ground) / share.clamp(min=FAINT), figure).clamp(0, 1)
    own = torch.where(band, own, rgb)
    alpha = mask * picture[3]
    clear = float((alpha < 0.5).float().mean())
    how = (
        f"by the mask: {clear:.0%} of the picture is taken away; along the edge the ground was taken out of the colours"
    )
    return Cutout(torch.cat([own * alpha, alpha[None]]), "mask", how, {"clear": clear})


def _unmixed(rgb: Tensor, ground: Tensor, taken: Tensor, away: Tensor, soft: int) -> tuple[Tensor, Tensor]:
    """Alpha H W and premultiplied colour 3 H W, of c = alpha figure + (1 - alpha) ground along the edge of `taken`.

    The colour of the figure is that of the pixels next to the edge that are surely its own; in strokes too thin to have
    any, that of the pixels furthest from the ground. Alpha is the projection of c - ground on figure - ground.
    """
    sure = eroded(~taken, soft)
    band = ~sure & ~eroded(taken, soft)
    width = 2 * soft + 1
    peak = ~taken & (away >= F.max_pool2d(away[None], width, 1, soft)[0])
    figure = spread(rgb, sure | (peak & ~_near(sure, soft)), width + 1)
    alpha = torch.where(band, _share(rgb, figure, ground, (~taken).float()), sure.float())
    colour = torch.where(band, rgb - (1 - alpha) * ground, rgb * alpha)
    return alpha, torch.minimum(colour.clamp(min=0), alpha)


def _share(rgb: Tensor, figure: Tensor, ground: Tensor, alike: Tensor) -> Tensor:
    """How much of each pixel is figure, H W; `alike` where figure and ground are, so that colours tell nothing."""
    way = figure - ground
    length = way.square().sum(0)
    share = ((rgb - ground) * way).sum(0) / length.clamp(min=1e-4)
    return torch.where(length > ALIKE**2, share, alike).clamp(0, 1)


def fitted_ground(rgb: Tensor, where: Tensor) -> Tensor:
    """The ground under a whole picture, 3 H W: one colour, a plane or a quadratic in x and y, fitted where told.

    The simplest is taken that does not fit much worse than the others, for between the figure's sides it is a guess. A
    gradient that a drawing programme makes is a plane in sRGB, so the fit is there and not in Lab.
    """
    y, x = (torch.linspace(-1, 1, length, dtype=torch.float64) for length in rgb.shape[1:])
    step = max(1, int(where.sum()) // SAMPLES)
    rows, columns = (at[::step] for at in where.nonzero(as_tuple=True))
    some, wanted = _terms(y[rows], x[columns]), rgb[:, rows, columns].T.double()  # K 6, K 3
    fits = [_least_distances(some[:, :terms], wanted) for terms in (1, 3, 6)]
    best = min(far for _, far in fits)
    found = next(found for found, far in fits if far <= SIMPLER * best + 1 / 255)
    lines = [(_terms(at.expand_as(x), x)[:, : len(found)] @ found).float() for at in y]  # W 3 each
    return torch.stack(lines).permute(2, 0, 1)


def _terms(y: Tensor, x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1)


def _least_distances(some: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """Coefficients, T 3, with the least sum of distances, and the median distance.

    Iteratively reweighted least squares (Weiszfeld's weights, 1 / distance): what is no ground weighs little.
    """
    weight = torch.ones_like(wanted[:, :1])
    little = 1e-9 * torch.eye(some.shape[1], dtype=some.dtype)  # where the places are too few for the terms
    for _ in range(ROUNDS):
        found = torch.linalg.solve((some * weight).T @ some + little, (some * weight).T @ wanted)
        far = (wanted - some @ found).norm(dim=1, keepdim=True)
        weight = 1 / far.clamp(min=1 / 255)
    return found, float(far.median())


def border(h: int, w: int) -> Tensor:
    """H W, True in a frame along the sides."""
    wide = max(2, round(BORDER * min(h, w)))
    inner = torch.ones(h, w, dtype=torch.bool)
    inner[wide : h - wide, wide : w - wide] = False
    return inner


def flooded(mask: Tensor, start: Tensor) -> Tensor:
    """The parts of a mask, H W, that hang together with a pixel of `start`, by sides and not by corners.

    Whole runs of rows and columns are filled in turn, so a few rounds do where single pixels would take thousands.
    """
    reached = mask & start
    runs, turned = _runs(mask), _runs(mask.T)
    before = -1
    while (count := int(reached.sum())) > before:
        before = count
        reached = _filled(reached, runs)
        reached = _filled(reached.T, turned).T
    return reached


def _runs(mask: Tensor) -> Tensor:
    """A number for each pixel, H W, that is the same along a run of a row."""
    starts = torch.ones_like(mask)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return starts.reshape(-1).cumsum(0).view(mask.shape)


def _filled(reached: Tensor, runs: Tensor) -> Tensor:
    hit = torch.zeros(int(runs[-1, -1]) + 1, dtype=torch.bool)
    hit[runs[reached]] = True
    return hit[runs]


def eroded(mask: Tensor, pixels: int) -> Tensor:
    """What is further from everything else than some pixels; the picture's side takes nothing away."""
    return ~_near(~mask, pixels)


def _near(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask.float()[None], 2 * pixels + 1, 1, pixels)[0] > 0 if pixels else mask


def spread(rgb: Tensor, known: Tensor, pixels: int) -> Tensor:
    """Colours of the known pixels, carried outwards ring by ring as the mean of neighbours; elsewhere the picture's."""
    out, weight = rgb * known, known.float()[None]
    for _ in range(pixels):
        around = F.avg_pool2d(torch.cat([out, weight])[None], 3, 1, 1)[0]
        new = (weight == 0) & (around[3:] > 0)
        out = torch.where(new, around[:3] / around[3:].clamp(min=1e-6), out)
        weight = torch.maximum(weight, new.float())
    return torch.where(weight > 0, out, rgb)


def difference(rgb: Tensor, other: Tensor) -> Tensor:
    """CIE 1976 colour difference, H W."""
    return (lab(rgb.clamp(0, 1)) - lab(other.clamp(0, 1))).norm(dim=0)


def lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIE 1976 L*a*b* under D65 (IEC 61966-2-1 and CIE 15), 3 H W."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = torch.einsum("ij,jhw->ihw", to_xyz, linear) / to_xyz.sum(1)[:, None, None]  # white is 1 1 1
    x, y, z = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])

import pytest
import torch
from torch import Tensor

from limner.errors import BadInput
from limner.tasks.cutout import border, cutout, eroded, fitted_ground, flooded, lab, spread

SIDE = 64


def places(side: int = SIDE) -> tuple[Tensor, Tensor]:
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    return y, x


def disc(radius: float = 0.3, hole: float = 0.0, y: float = 0.5, x: float = 0.5) -> Tensor:
    """The alpha of a disc, or of a ring, with an edge one pixel soft."""
    down, across = places()
    far = ((down - y) ** 2 + (across - x) ** 2).sqrt()
    alpha = ((radius - far) * SIDE + 0.5).clamp(0, 1)
    return alpha * ((far - hole) * SIDE + 0.5).clamp(0, 1) if hole else alpha


def flat(*colour: float) -> Tensor:
    return torch.tensor(colour)[:, None, None].expand(3, SIDE, SIDE)


def laid(alpha: Tensor, colour: Tensor, ground: Tensor) -> Tensor:
    """4 H W, opaque, in steps of a byte."""
    rgb = (alpha * colour + (1 - alpha) * ground).mul(255).round() / 255
    return torch.cat([rgb, torch.ones_like(rgb[:1])])


RED, WHITE = flat(0.8, 0.1, 0.1), flat(1, 1, 1)
Y, X = places()
GROUNDS = {
    "white": WHITE,
    "blue": flat(0.1, 0.2, 0.7),
    "gradient": flat(0.2, 0.5, 0.9) + (X + 2 * Y) / 3 * flat(0.4, 0.4, 0),
    "bowl": flat(0.9, 0.9, 0.7) - ((X - 0.5) ** 2 + (Y - 0.4) ** 2) * flat(0.5, 0.3, 0.2),
    "grain": flat(0.4, 0.6, 0.4) + 0.012 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("name", GROUNDS)
def test_a_disc_is_cut_from_even_grounds_with_soft_edges_and_clean_colours(name: str):
    alpha = disc()
    found = cutout(laid(alpha, RED, GROUNDS[name]))
    assert found.method == "ground" and "told from the border" in found.how
    assert (found.picture[3] - alpha).abs().mean() < 0.002
    assert (found.picture[3] - alpha).abs().max() < 0.15
    assert (found.picture[:3] - alpha * RED).abs().max() < 0.12
    assert (found.picture[:3] <= found.picture[3]).all() and found.picture.min() >= 0
    assert found.figures["border_other"] < 0.01


def test_what_is_surely_figure_keeps_its_bytes():
    picture = laid(disc(), RED, WHITE)
    found = cutout(picture).picture
    inside = eroded(disc() > 0.99, 3)
    assert (found[:, inside] == picture[:, inside]).all() and inside.sum() > 500


def test_a_hole_of_the_grounds_colour_stays_unless_holes_are_asked_for():
    alpha = disc(0.4, 0.2)
    picture = laid(alpha, RED, WHITE)
    kept = cutout(picture).picture[3]
    assert kept[32, 32] == 1 and kept[0, 0] == 0
    assert (cutout(picture, holes=True).picture[3] - alpha).abs().mean() < 0.004


def test_a_figure_may_touch_the_border():
    alpha = disc(0.35, y=0.8)
    found = cutout(laid(alpha, RED, GROUNDS["gradient"]))
    assert 0.1 < found.figures["border_other"] < 0.3
    assert (found.picture[3] - alpha).abs().mean() < 0.006


def test_thin_strokes_stay():
    alpha = ((X - Y).abs() * SIDE < 1.1).float() * (disc(0.4) > 0)
    found = cutout(laid(alpha, RED, WHITE))
    assert (found.picture[3] - alpha).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (laid(disc(), RED, torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))), "% of the border"),
        (laid(disc(), RED, RED), "nothing in the picture differs"),
        (torch.cat([RED * disc(), disc()[None]]), "see-through already"),
    ],
)  # fmt: skip
def test_a_ground_that_is_none_is_refused_with_a_figure(picture: Tensor, says: str):
    with pytest.raises(BadInput, match=says):
        cutout(picture, "ground")


def test_alpha_that_is_there_is_kept():
    picture = torch.cat([RED * disc(), disc()[None]])
    found = cutout(picture)
    assert found.method == "alpha" and found.picture is picture and "73% of it is see-through" in found.how
    with pytest.raises(BadInput, match="clear nowhere"):
        cutout(laid(disc(), RED, WHITE), "alpha")


@pytest.mark.parametrize("hard", [False, True])
def test_a_mask_says_what_stays_and_the_grounds_colour_goes(hard: bool):
    alpha = disc()
    mask = (alpha > 0.3).float() if hard else alpha
    found = cutout(laid(alpha, RED, GROUNDS["blue"]), mask=mask)
    assert found.method == "mask" and (found.picture[3] == mask).all()
    solid = mask > 0.3
    own = found.picture[:3, solid] / mask[solid]
    assert (own - RED[:, solid]).abs().max() < 0.12


def test_a_mask_that_does_not_fit_is_refused():
    picture = laid(disc(), RED, WHITE)
    for mask, says in (
        (torch.ones(3, 5), "5x3 pixels and the picture 64x64"),
        (torch.zeros(SIDE, SIDE), "keeps nothing"),
    ):
        with pytest.raises(BadInput, match=says):
            cutout(picture, mask=mask)
    with pytest.raises(BadInput, match="wants a mask"):
        cutout(picture, "mask")
    with pytest.raises(BadInput, match="uses none"):
        cutout(picture, "ground", torch.ones(SIDE, SIDE))
    for numbers in ({"tolerance": 0.0}, {"soft": 65.0}):
        with pytest.raises(BadInput, match="not "):
            cutout(picture, **numbers)


def test_the_ground_is_the_simplest_that_fits():
    plane = GROUNDS["gradient"]
    grain = plane + 0.01 * torch.randn(plane.shape, generator=torch.Generator().manual_seed(2))
    assert (fitted_ground(plane, border(SIDE, SIDE)) - plane).abs().max() < 1e-3
    assert (fitted_ground(grain, border(SIDE, SIDE)) - plane).abs().max() < 0.01


def test_a_winding_way_is_flooded_to_its_end():
    way = torch.zeros(21, 21, dtype=torch.bool)
    for i in range(0, 21, 2):
        way[i] = True
        way[min(i + 1, 20), 0 if i % 4 else 20] = True
    apart = way.clone()
    apart[10, 7] = False
    start = torch.zeros_like(way)
    start[0, 0] = True
    assert (flooded(way, start) == way).all()
    assert flooded(apart, start).sum() < way.sum() and not flooded(apart, start)[20, 20]
    assert not flooded(way, torch.zeros_like(way)).any()


def test_colours_are_carried_outwards():
    rgb = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(3))
    known = torch.zeros(9, 9, dtype=torch.bool)
    known[4, 4] = True
    out = spread(rgb, known, 2)
    assert torch.allclose(out[:, 2:7, 2:7], rgb[:, 4:5, 4:5].expand(3, 5, 5), atol=1e-6)
    assert (out[:, 0] == rgb[:, 0]).all()


def test_lab_is_cies():
    some = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0.5, 0.5, 0.5]]).T[..., None]
    want = torch.tensor([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [53.39, 0, 0]])
    assert torch.allclose(lab(some)[..., 0].T, want, atol=0.05)

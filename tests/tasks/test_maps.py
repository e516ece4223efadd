"""Material maps: known slopes, shade in pits, and no seams where the texture has none."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from limner.seams import seam_score
from limner.tasks.maps import ambient, blur, luminance, maps, normals, relief, roughness

BOTH = (True, True)


def texture(h: int = 64, w: int = 96) -> torch.Tensor:
    """Bumps that go around, opaque."""
    y, x = torch.meshgrid(torch.arange(h) * 2 * math.pi / h, torch.arange(w) * 2 * math.pi / w, indexing="ij")
    grey = 0.5 + 0.2 * torch.sin(4 * x + y) + 0.2 * torch.cos(3 * y - x)
    return torch.cat([grey.expand(3, -1, -1), torch.ones(1, h, w)])


def test_maps_of_a_texture_that_goes_around_go_around():
    found = maps(texture())
    for value in (found.height, found.roughness, found.ambient, found.normal):
        assert seam_score(value.view(-1, 64, 96), step=4) == pytest.approx((1, 1), abs=0.1)
    shifted = maps(texture().roll((13, 7), (1, 2)))
    for name in ("height", "normal", "roughness", "ambient"):
        moved = getattr(found, name).roll((13, 7), (-2, -1))
        torch.testing.assert_close(getattr(shifted, name), moved, rtol=0, atol=1e-4)


def test_normals_of_a_ramp():
    ramp = torch.arange(8.0).expand(8, 8) / 2  # rises by a half a pixel to the right
    right = normals(ramp, (False, False))[:, 4, 4]
    torch.testing.assert_close(right, torch.tensor([-0.5, 0, 1]) / math.sqrt(1.25))
    upward = normals(ramp.T.flip(0), (False, False))[:, 4, 4]  # rises towards the top
    torch.testing.assert_close(upward, torch.tensor([0, -0.5, 1]) / math.sqrt(1.25))
    assert normals(ramp, (True, False))[0, 4, 0] > 0  # around the border it falls


def test_directx_turns_green_alone():
    gl, dx = maps(texture()).normal, maps(texture(), convention="directx").normal
    assert torch.equal(gl * torch.tensor([1.0, -1, 1])[:, None, None], dx)
    torch.testing.assert_close(gl.norm(dim=0), torch.ones(64, 96))


def test_strength_makes_normals_steep():
    steep = [float(maps(texture(), strength=s).normal[2].mean()) for s in (0.0, 0.5, 1.0, 2.0)]
    assert steep[0] == pytest.approx(1)
    assert steep == sorted(steep, reverse=True)


def test_height_fills_its_range_without_the_light():
    light = torch.linspace(0, 0.5, 96).expand(64, 96)
    height = relief(luminance(texture()) * 0.5 + light, (False, True))
    assert (float(height.min()), float(height.max())) == (0, 1)
    assert float(height[:, :32].mean()) == pytest.approx(float(height[:, -32:].mean()), abs=0.1)


def test_a_pit_is_shaded_and_a_plain_is_open():
    plain = torch.zeros(64, 64)
    torch.testing.assert_close(ambient(plain, BOTH), torch.ones(64, 64))
    pit = plain.clone()
    pit[28:36, 28:36] = -8
    shade = ambient(pit, BOTH)
    assert shade[32, 32] < 0.7 < 0.99 < shade[0, 0]
    assert shade.argmin() in [y * 64 + x for y in range(28, 36) for x in range(28, 36)]


def test_contrast_is_taken_for_roughness():
    rng = torch.Generator().manual_seed(0)
    rough = [float(roughness(0.5 + k * torch.randn(32, 32, generator=rng), BOTH).mean()) for k in (0.0, 0.05, 0.2)]
    assert rough[0] == pytest.approx(0.3, abs=0.01)
    assert rough == sorted(rough) and rough[-1] > 0.95


@pytest.mark.parametrize("seamless", [BOTH, (True, False), (False, False)])
def test_a_blur_keeps_the_mean_and_smooths(seamless):
    x = torch.rand(24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(blur(torch.full_like(x, 0.7), 3.0, seamless), torch.full_like(x, 0.7))
    assert blur(x, 3.0, seamless).std() < x.std() / 5
    if all(seamless):
        assert float(blur(x, 30.0, seamless).mean()) == pytest.approx(float(x.mean()))


def test_a_blur_is_a_gaussian():
    point = torch.zeros(1, 41, dtype=torch.float64)
    point[0, 20] = 1
    want = torch.exp(-((torch.arange(41).double() - 20) ** 2) / 8) / math.sqrt(2 * math.pi * 4)
    torch.testing.assert_close(blur(point, 2.0, (True, True))[0], want, rtol=0, atol=1e-8)


def test_a_flat_texture_and_clear_places_are_no_trouble():
    found = maps(torch.full((4, 32, 32), 0.4))
    torch.testing.assert_close(found.normal[2], torch.ones(32, 32))
    assert torch.equal(found.height, torch.full((32, 32), 0.5))
    assert all(value.isfinite().all() for value in vars(maps(torch.zeros(4, 32, 32))).values())


def test_images_keep_their_depth_in_png():
    images = maps(texture()).images()
    assert {name: image.mode for name, image in images.items()} == {
        "height": "I;16", "normal": "RGB", "roughness": "L", "ambient": "L",
    }  # fmt: skip
    assert all(image.size == (96, 64) for image in images.values())
    file = io.BytesIO()
    images["height"].save(file, "PNG")
    again = np.asarray(Image.open(file))
    assert again.dtype == np.uint16
    assert np.array_equal(again, np.asarray(images["height"]))
    assert len(np.unique(again)) > 256
    flat = np.asarray(maps(torch.full((4, 32, 32), 0.4)).images()["normal"])
    assert flat[0, 0].tolist() == [128, 128, 255]

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.enlarge import enlarge
from limner.errors import BadInput
from limner.image import from_pil, to_pil
from limner.pipeline import Model
from limner.tasks.run import begin, painting
from limner.tasks.task import Painted

Make = Callable[..., Path]


def larger(model: Model, path: Path, **wishes: object) -> Painted:
    fields = {"task": "upscale", "image": str(path), "prompt": "a cat", "steps": 4, "seed": 3, "window": 64}
    return next(e[0] for e in painting(model, begin(model, **fields | wishes)) if isinstance(e, list))


@pytest.mark.parametrize(("scale", "size"), [(2, (140, 100)), (2.5, (175, 125)), (3, (210, 150))])
def test_a_picture_grows_by_its_scale(model: Model, picture: Make, scale: float, size: tuple[int, int]):
    one = larger(model, picture(70, 50), scale=scale)
    assert one.image.size == size == (one.recipe.width, one.recipe.height)


def test_strength_0_only_enlarges(model: Model, picture: Make):
    path = picture(70, 50)
    one = larger(model, path, strength=0)
    assert np.array_equal(np.asarray(one.image), np.asarray(to_pil(enlarge(from_pil(Image.open(path)), 2))))


def test_tiles_leave_no_seams(model: Model, picture: Make):
    """Between tiles the picture changes as it does elsewhere, and about as it does where there are none."""
    path = picture(64, 64, "RGB")
    one = from_pil(larger(model, path, scale=3, strength=0.5, overlap=16).image)
    steps = (one[:3, :, 1:] - one[:3, :, :-1]).abs().mean((0, 1))  # between columns
    near = torch.stack([steps[i - 1 : i + 2].max() for i in (63, 127)]).max()
    assert near < steps.quantile(0.99) * 1.5


def test_hires_paints_over_what_it_painted(model: Model):
    wishes = {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 3}
    events = list(painting(model, begin(model, **wishes, hires=2, hires_strength=0.5)))
    one = events[-1][0]
    assert one.picture.shape == (4, 128, 128)
    assert len(events) == 4 + 2 + 1
    latents = [event.x0 for event in events[:-1]]
    assert [x0.shape[2] for x0 in latents] == [8] * 4 + [16] * 2


def test_what_would_be_too_large_is_refused(model: Model, picture: Make):
    with pytest.raises(BadInput, match="at most 67,108,864 pixels are made"):
        begin(model, task="upscale", image=str(picture(1200, 1000, "RGB")), scale=8)

"""The model that ships: whole, small enough, and doing what the model card says."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch

import limner
from limner.cli import main
from limner.errors import BadWeights
from limner.image import from_pil, open_picture
from limner.palette import shares
from limner.pipeline import load
from limner.place import find_place
from limner.tasks.describe import describe
from limner.tasks.run import paint
from limner.weights.io import read_header

FOLDER = Path(str(resources.files("limner"))) / "data" / "mini"
NETS = {"autoencoder", "denoiser", "text", "eye", "judge"}


@pytest.fixture(scope="module")
def model() -> limner.Model:
    return limner.load("mini", find_place("cpu"))


def test_everything_that_ships_weighs_60_mb_at_most():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 60_000_000


def test_every_network_is_there_with_its_config(model):
    assert set(model.nets) == NETS
    for net in NETS:
        assert "limner.config" in read_header(FOLDER / f"{net}.safetensors").metadata


def test_the_text_encoder_has_at_most_8_million_weights(model):
    assert sum(value.numel() for value in model.nets["text"].state_dict().values()) <= 8_000_000


def test_a_flipped_byte_is_refused(tmp_path):
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = bytearray((tmp_path / "denoiser.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tmp_path / "denoiser.safetensors").write_bytes(weights)
    with pytest.raises(BadWeights, match=r"denoiser.safetensors is damaged"):
        load(str(tmp_path))


def test_a_red_apple_is_red(model):
    """Half of eight seeds at least; the model card has the figures over many objects."""
    pictures = paint(model, limner.Recipe(prompt="a red apple", seed=0), 8)
    assert sum(max(shares(p), key=shares(p).get, default="") in ("red", "pink", "orange") for p in pictures) >= 4


def test_the_ground_is_transparent(model):
    pictures = paint(model, limner.Recipe(prompt="a cat", seed=0), 4)
    assert (pictures[:, 3] == 0).float().mean() > 0.1


def test_a_batch_of_8_is_the_same_8_alone(model):
    recipe = limner.Recipe(prompt="a green dragon", seed=40)
    together = paint(model, recipe, 8)
    for i in range(8):
        alone = paint(model, recipe.but(seed=40 + i))[0]
        assert (together[i] - alone).abs().max() <= 1.01 / 255


def test_styles_differ(model):
    black = paint(model, limner.Recipe(prompt="a cat", style="silhouette", seed=0), 4)
    assert black[:, :3].sum() < 0.15 * black[:, 3].sum() * 3


def test_the_eye_describes_what_was_drawn_by_hand(model):
    picture = torch.zeros(4, 128, 128)
    at = torch.linspace(-1, 1, 128)
    inside = (at[:, None] ** 2 + at**2 < 0.7).float()
    picture[0], picture[3] = inside * 0.9, inside
    found = describe(model, picture)
    assert "red" in dict(found.colours) and len(found.names) == 5


def test_paint_and_paint_again_from_the_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["paint", "a red apple", "--seed", "7", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["path"]
    assert main(["paint", "--from", first, "--quiet"]) == 0
    second = capsys.readouterr().out.strip()
    assert second != first
    assert torch.equal(from_pil(open_picture(Path(first))), from_pil(open_picture(Path(second))))


def test_ten_thousand_words_are_cut_with_a_warning_that_says_where(model):
    with pytest.warns(UserWarning, match="cut after 62 word pieces, before"):
        model.encode([" ".join(f"word{i}" for i in range(10_000))])

import pytest
import torch

from limner.errors import BadData
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.place import find_place
from limner.train import latents
from limner.train.captions import Scene
from limner.train.data import Words, pack

FEW = latents.ComposeConfig(mirror=50, recolour=50, ground=20, night=20, count=20, pair=20, hat=0)


@pytest.fixture
def coder() -> MiniAutoencoder:
    torch.manual_seed(0)
    return MiniAutoencoder(MiniAutoencoderConfig(encoder=(8, 8, 8), decoder=(8, 8, 8))).eval()


@pytest.fixture
def made(coder, shard, tmp_path):
    pictures = pack(shard, tmp_path)
    path = tmp_path / "latents.safetensors"
    rows = torch.arange(len(pictures))
    latents.encode(coder, pictures, rows, FEW, path, find_place("cpu", torch.float32))
    return pictures, path


def test_every_picture_is_there_plain_and_some_composed(coder, made):
    pictures, path = made
    stored = latents.load(path, coder, pictures)
    kinds = [scene.kind for scene in stored.scenes]
    assert kinds[: len(pictures)] == ["plain"] * len(pictures)
    assert {"ground", "night", "count", "pair"} <= set(kinds)
    assert stored.x0.shape == (len(kinds), 8, 16, 16) and len(stored.rows) == len(kinds)
    assert stored.weights.sum() <= 1.001 and (stored.weights > 0).all()


def test_plain_latents_are_the_encoders(coder, made):
    pictures, path = made
    stored = latents.load(path, coder, pictures)
    with torch.no_grad():
        want = coder.encode(pictures.batch(stored.rows[:4]))
    assert torch.allclose(stored.x0[:4].float(), want, atol=5e-3)


def test_a_cache_of_another_encoder_is_refused(coder, made):
    pictures, path = made
    with torch.no_grad():
        coder.encoder[1].weight.add_(1e-3)
    with pytest.raises(BadData, match="other encoder"):
        latents.load(path, coder, pictures)


def test_a_better_decoder_keeps_the_cache(coder, made):
    pictures, path = made
    with torch.no_grad():
        coder.decoder[0].weight.add_(1e-3)
    assert len(latents.load(path, coder, pictures).scenes)


def test_a_concept_in_many_tones_weighs_as_much_as_one_in_a_single_one():
    words = (*(Words(str(i), "hand", (), "noto", "hand") for i in range(5)), Words("x", "cup", (), "noto", "cup"))
    weights = latents.weigh(torch.arange(6), (Scene(),) * 6, words)
    assert weights[:5].sum() == pytest.approx(weights[5].item())

"""The mini autoencoder: any size, premultiplied colour, latents of mean 0 and deviation 1."""

import pytest
import torch

from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig, laplacian

TINY = MiniAutoencoderConfig(
    channels=4, encoder=(8, 16, 16), encoder_blocks=(1, 1, 1), decoder=(16, 12, 8), decoder_blocks=(1, 1, 1)
)


@pytest.fixture
def model() -> MiniAutoencoder:
    torch.manual_seed(0)
    made = MiniAutoencoder(TINY).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter += torch.randn_like(parameter) * 0.05  # blocks start as the identity
    return made


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 64), (24, 88), (136, 8), (40, 56)])
def test_every_size_that_8_divides_is_taken(model, height, width):
    picture = torch.rand(2, 4, height, width)
    z = model.encode(picture)
    assert z.shape == (2, 4, height // 8, width // 8)
    assert model.decode(z).shape == picture.shape


def test_the_standard_config_is_sound():
    model = MiniAutoencoder(MiniAutoencoderConfig())
    assert model.decode(model.encode(torch.rand(1, 4, 16, 16))).shape == (1, 4, 16, 16)


def test_no_colour_exceeds_its_alpha(model):
    picture = model.decode(torch.randn(4, 4, 6, 6) * 5)
    colour, alpha = picture[:, :3], picture[:, 3:]
    assert (colour <= alpha).all()
    assert colour.min() >= 0 and alpha.max() <= 1


def test_there_is_no_haze(model):
    alpha = model.decode(torch.randn(8, 4, 8, 8) * 5)[:, 3]
    assert (alpha == 0).any() and (alpha > 0).any()


def test_haze_fades_without_a_step(model, monkeypatch):
    """A step would turn the rounding of a batch into pixels that are there or not."""
    raw = torch.linspace(0, 20 / 255, 2001).expand(1, 4, 1, -1)
    monkeypatch.setattr(model, "decode_raw", lambda _: raw)
    told, given = model.decode(torch.zeros(1, 4, 1, 1))[0, 3, 0] * 255, raw[0, 3, 0] * 255
    assert (told[given < 3.99] == 0).all() and torch.allclose(told[given > 8.01], given[given > 8.01])
    assert told.diff().min() >= 0 and told.diff().max() < 3.1 * given.diff().max()


def test_latents_are_normalised_and_denormalised_by_the_vectors_in_the_weights(model):
    picture = torch.rand(2, 4, 32, 32)
    raw = model.encode_raw(picture)
    model.mean.copy_(raw.mean((0, 2, 3)))
    model.std.copy_(raw.std((0, 2, 3)))
    z = model.encode(picture)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-5)
    alpha = model.decode_raw(raw)[:, 3].clamp(0, 1)
    got = model.decode(z)[:, 3]
    torch.testing.assert_close(got, torch.where(got == 0, got, alpha), rtol=0, atol=1e-5)
    assert {"mean", "std"} < set(model.state_dict())


def test_raw_latents_are_bounded(model):
    assert model.encode_raw(torch.rand(1, 4, 32, 32) * 1e4).abs().max() <= 3


def test_a_picture_does_not_depend_on_who_is_beside_it(model):
    pictures = torch.rand(3, 4, 16, 24)
    together = model.decode(model.encode(pictures))
    for k in range(3):
        torch.testing.assert_close(model.decode(model.encode(pictures[k : k + 1]))[0], together[k], rtol=0, atol=1e-5)


def test_a_laplacian_adds_up_to_its_picture():
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    *bands, rest = laplacian(x, 3)
    for band in reversed(bands):
        rest = torch.nn.functional.interpolate(rest, scale_factor=2, mode="nearest") + band
    torch.testing.assert_close(rest, x, rtol=0, atol=1e-14)
    assert [band.shape[-1] for band in bands] == [24, 12, 6]

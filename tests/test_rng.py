"""One stream a picture: what a seed gives does not depend on who is beside it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import UnknownName
from limner.rng import NOISES, Noise, generator, philox, seed_of

every_kind = pytest.mark.parametrize("kind", list(NOISES))


def test_the_first_draw_is_that_of_a_cpu_generator_with_the_seed():
    want = torch.randn((4, 8, 8), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(Noise(7)(1, 4, 8, 8)[0], want)


@every_kind
def test_picture_k_of_a_batch_is_the_picture_of_its_own_seed(kind):
    together = Noise(7, kind)
    first, second = together(3, 2, 5), together(3, 2, 5)
    for k in range(3):
        alone = Noise(7 + k, kind)
        assert torch.equal(first[k], alone(1, 2, 5)[0])
        assert torch.equal(second[k], alone(1, 2, 5)[0])


@every_kind
def test_each_call_continues_the_streams(kind):
    noise = Noise(1, kind)
    assert not torch.equal(noise(2, 3), noise(2, 3))


def test_a_picture_that_joins_later_starts_its_own_stream():
    noise = Noise(1)
    noise(1, 3)
    assert torch.equal(noise(2, 3)[1], Noise(2)(1, 3)[0])


def test_like_has_the_shape_that_it_is_given():
    x = torch.zeros(2, 4, 3, 5)
    assert Noise(0).like(x).shape == x.shape


def test_the_callers_random_state_is_not_touched():
    before = torch.get_rng_state()
    Noise(3)(2, 4)
    generator("a", 1)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_seeds_are_what_torch_takes(names):
    seed = seed_of(*names)
    assert 0 <= seed < 2**63
    assert generator(*names).initial_seed() == seed


def test_seeds_depend_on_each_name_and_on_their_order():
    seeds = {seed_of(*names) for names in [(), ("a",), ("a", 1), (1, "a"), ("a1",), ("a", 1, ""), (7, "step", 12)]}
    assert len(seeds) == 7


def test_seeds_are_the_same_for_ever():
    assert seed_of(7, "step", 12) == 0x7C62CD51D5C8982E


@pytest.mark.parametrize(
    ("counter", "key", "found"),
    [  # the known answers that come with Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_its_known_answers(counter, key, found):
    low, high = (int(word, 16) for word in key.split())
    block = np.array([[int(word, 16)] for word in counter.split()], np.uint32)
    assert " ".join(f"{word:08x}" for word in philox(block, low | high << 32)[:, 0].tolist()) == found


def test_nv_noise_is_what_a_card_draws():
    """The first numbers of `torch.manual_seed(0); torch.randn(..., device="cuda")`, as webui publishes them."""
    want = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
    want += [-0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]
    torch.testing.assert_close(Noise(0, "NV")(1, 3, 4).flatten(), torch.tensor(want), rtol=0, atol=2e-7)


def test_nv_noise_is_normal():
    noise = Noise(3, "cuda")
    first, second = noise(1, 200_000)[0].double(), noise(1, 200_000)[0].double()
    assert float(first.mean()) == pytest.approx(0, abs=0.01)
    assert float(first.std()) == pytest.approx(1, abs=0.01)
    assert float((first**4).mean()) == pytest.approx(3, abs=0.1)
    assert float((first * second).mean()) == pytest.approx(0, abs=0.01)


def test_a_great_seed_counts_whole():
    assert not torch.equal(Noise(5, "nv")(1, 8), Noise(5 + 2**40, "nv")(1, 8))


def test_an_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="no noise is called 'nvv': did you mean nv"):
        Noise(0, "nvv")

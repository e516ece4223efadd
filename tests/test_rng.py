"""One stream a picture: what a seed gives does not depend on who is beside it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.rng import Noise, generator, seed_of


def test_the_first_draw_is_that_of_a_cpu_generator_with_the_seed():
    want = torch.randn((4, 8, 8), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(Noise(7)(1, 4, 8, 8)[0], want)


def test_picture_k_of_a_batch_is_the_picture_of_its_own_seed():
    together = Noise(7)
    first, second = together(3, 2, 5), together(3, 2, 5)
    for k in range(3):
        alone = Noise(7 + k)
        assert torch.equal(first[k], alone(1, 2, 5)[0])
        assert torch.equal(second[k], alone(1, 2, 5)[0])


def test_each_call_continues_the_streams():
    noise = Noise(1)
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

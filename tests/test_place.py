"""Where things run, and why."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import limner.place
from limner.errors import BadInput
from limner.place import Place, computes_int8, engines, find_place, precisions


def test_the_processor_is_always_there():
    place = find_place("cpu")
    assert place.device.type == "cpu"
    assert place.why


def test_a_dtype_that_is_asked_for_is_used():
    place = find_place("cpu", torch.bfloat16)
    assert (place.dtype, place.why) == (torch.bfloat16, "asked for")
    with place.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_in_fp32_nothing_is_cast():
    with find_place("cpu", torch.float32).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_device_that_is_not_there_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="no cuda device; it has cpu"):
        find_place("cuda")
    with pytest.raises(BadInput, match="no abacus device"):
        find_place("abacus")


def test_auto_prefers_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    place = find_place("auto")
    assert (place.device.type, place.dtype) == ("cuda", torch.float16)  # emulated bf16 is slower than fp16


def test_what_a_place_cannot_compute_in_is_refused_with_what_it_can(monkeypatch):
    monkeypatch.setattr(limner.place, "computes_int8", lambda: False)
    with pytest.raises(BadInput, match=r"cpu cannot compute in fp16 here; it can in (fp32 and bf16|bf16 and fp32)$"):
        find_place("cpu").precisely("fp16")
    with pytest.raises(BadInput, match="cpu cannot compute in int8"):
        find_place("cpu").precisely("int8")
    assert precisions("mps") == ("fp32",)


def test_a_place_computes_as_it_is_told():
    own = find_place("cpu")
    assert own.precisely("") is own
    half = find_place("cpu", torch.float32, "one").precisely("bf16")
    assert (half.dtype, half.why, half.keep, half.precision) == (torch.bfloat16, "asked for", "one", "bf16")
    small = replace(half, small="int8")  # whether this machine has it or not
    assert (small.precision, small.numbers) == ("int8", "int8 with bfloat16")
    assert small.precisely("fp32").numbers == "float32"


@pytest.mark.skipif(not computes_int8(), reason="oneDNN has no products of 8 bits here")
def test_in_8_bits_all_else_is_in_the_fast_type():
    own = find_place("cpu")
    assert own.precisely("bf16").precisely("int8") == replace(own, small="int8")


def test_an_engine_is_taken_where_it_serves_and_refused_in_words_elsewhere(monkeypatch):
    own = find_place("cpu", torch.float32)
    monkeypatch.setattr(limner.place.importlib.util, "find_spec", lambda _: None)
    assert engines("cpu") == ("torch",)
    with pytest.raises(BadInput, match=r"openvino is not installed: pip install 'limner\[openvino\]'"):
        own.driven("openvino")
    monkeypatch.setattr(limner.place.importlib.util, "find_spec", lambda _: "there")
    assert engines("cpu") == ("torch", "openvino")
    assert own.driven("") == own == own.driven("torch") == own.driven("openvino").driven("torch")
    assert own.driven("openvino") == replace(own, engine="openvino")
    assert replace(own, small="int8").driven("openvino").precision == "int8"
    for place, why in (
        (replace(own, dtype=torch.float16), "on the cpu in fp32, bf16 or int8 here, not on cpu in fp16"),
        (replace(own, device=torch.device("meta")), "not on meta in fp32"),
        (replace(own, keep="layer"), "it does not keep layer at a time"),
    ):
        with pytest.raises(BadInput, match=why):
            place.driven("openvino")


def card(**more: object) -> Place:
    return Place(torch.device("cuda"), torch.bfloat16, "a test", **more)  # type: ignore[arg-type]


def test_a_card_plays_recordings_and_compiles_where_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr(limner.place.importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(limner.place.shutil, "which", lambda name: name == "gcc")
    monkeypatch.delenv("CC", raising=False)
    assert engines("cuda") == ("torch", "recorded", "compiled")
    assert card().driven("recorded") == card(engine="recorded")
    assert card(small="fp8").driven("compiled") == card(small="fp8", engine="compiled")
    for keep in ("one", "layer"):
        with pytest.raises(BadInput, match=f"compiled holds whole networks in memory; it does not keep {keep} at a"):
            card(keep=keep).driven("compiled")
    with pytest.raises(BadInput, match="openvino computes on the cpu in fp32, bf16 or int8 here, not on cuda in bf16"):
        card().driven("openvino")
    with pytest.raises(BadInput, match="recorded computes on cuda, not on cpu; here it is torch"):
        find_place("cpu").driven("recorded")
    for lacks in ("importlib.util.find_spec", "shutil.which"):
        monkeypatch.setattr(f"limner.place.{lacks}", lambda _: None)
        assert engines("cuda") == ("torch", "recorded")
        with pytest.raises(BadInput, match="compiled needs triton and a C compiler: pip install 'triton'"):
            card().driven("compiled")
        monkeypatch.setattr(limner.place.importlib.util, "find_spec", lambda name: name == "triton")


def test_fp8_is_for_cards_that_have_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert precisions("cuda") == ("bf16", "fp32", "fp16")
    with pytest.raises(BadInput, match="cuda cannot compute in fp8 here; it can in bf16 and fp32 and fp16"):
        card().precisely("fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    small = card(keep="one").precisely("fp8")
    assert (small.precision, small.numbers, small.keep) == ("fp8", "fp8 with bfloat16", "one")
    assert small.precisely("fp16").numbers == "float16"
    with pytest.raises(BadInput, match="cpu cannot compute in fp8"):
        find_place("cpu").precisely("fp8")


def test_a_card_is_asked_for_both_sides_of_a_guided_step_at_once():
    assert card().pairs and not card().one_by_one
    assert not Place(torch.device("cpu"), torch.float32, "a test").pairs


def test_what_a_card_holds_and_does_not_use_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**34))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 6 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**32)
    assert card().memory_left == 3 * 2**30
    assert find_place("cpu").memory_left == 0


def test_fp32_is_not_rounded_to_tf32_on_a_card(monkeypatch):
    told: list[dict[str, bool]] = []

    @contextlib.contextmanager
    def flags(**how: bool) -> Iterator[None]:
        told.append(how)
        yield

    monkeypatch.setattr(torch.backends.cudnn, "flags", flags)
    with replace(card(), dtype=torch.float32).autocast():
        pass
    with find_place("cpu", torch.float32).autocast():
        pass
    assert told == [{"enabled": True, "allow_tf32": False}]

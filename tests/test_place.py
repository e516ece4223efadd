"""Where things run, and why."""

import pytest
import torch

from limner.errors import BadInput
from limner.place import find_place


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

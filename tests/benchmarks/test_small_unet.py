"""The training and measuring of a small UNet, run small; what a longer run shows is in docs/performance.md."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

FILE = Path(__file__).parents[2] / "benchmarks" / "small_unet.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_small_unet", FILE)
small_unet = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = small_unet
spec.loader.exec_module(small_unet)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Eight squares of flat colours, with words."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "gold", "black", "grey", "pink", "navy")):
        Image.new("RGB", (128, 128), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} square", encoding="utf-8")
    return folder


def test_it_learns_paints_and_is_measured_and_a_second_call_does_not_learn_anew(drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(small_unet.effort, "SETTINGS", ({}, {"effort": "fast"}))
    monkeypatch.setattr(small_unet, "hold_freed", lambda: True)  # it would be so for all tests that follow
    out = tmp_path / "out"
    words = ["--data", str(drawn), "--out", str(out), "--tiny", "--steps", "2", "--settings", "bf16"]
    small_unet.main(words)
    said = capsys.readouterr().out
    assert "5 steps of 2, of 8 pictures" in said
    assert "| exact |" in said and "| effort fast |" in said and "| bf16 |" in said
    before = (out / "unet.safetensors").read_bytes()
    small_unet.main(words)
    assert before == (out / "unet.safetensors").read_bytes()
    assert (out / "effort.png").exists() and (out / "fidelity.png").exists()


def test_a_new_one_answers_with_nothing_and_learns_the_noise():
    net = small_unet.drawn(small_unet.TINY)
    x0 = torch.randn(2, 8, 16, 16)
    cond = small_unet.between(net, small_unet.find_place("cpu", torch.float32)).encode(["a cat", "a dog"])
    losses = small_unet.predict(net, small_unet.Batch(x0, cond), torch.Generator().manual_seed(0))
    assert abs(losses["noise"].item() - 1) < 0.05  # of noise of unit size


def test_styles_that_are_not_there_are_named(drawn, tmp_path):
    with pytest.raises(SystemExit, match="no pictures of watercolour"):
        small_unet.main(["--data", str(drawn), "--out", str(tmp_path / "out"), "--tiny", "--styles", "watercolour"])

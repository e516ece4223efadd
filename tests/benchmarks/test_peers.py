"""The benchmark beside other programs, run small with what is installed; its figures are in docs/performance.md."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "peers.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_peers", FILE)
peers = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = peers  # where its dataclasses look for it
spec.loader.exec_module(peers)


def test_programs_do_the_same_work(tmp_path, capsys):
    pytest.importorskip("diffusers")
    files = ["--folder", str(tmp_path), "--json", str(tmp_path / "x.json"), "--chart", str(tmp_path / "x.svg")]
    asked = ["limner", "limner fp32", "diffusers fp32", "sd.cpp f16"]
    told = ["--tiny", "--size", "64", "--runs", "1", "--threads", "1", "--models", "sd15", "--peers", *asked, *files]
    found = peers.main(told)
    rows = {row["peer"]: row for row in found["models"]["sd15"]["rows"]}
    assert list(rows) == asked
    for name in ("limner", "diffusers fp32"):
        assert all(rows[name][verb] > 0 for verb in ("load", "text", "step", "decode", "peak")), rows[name]
    assert rows["diffusers fp32"]["agrees"] > 90  # dB: they round otherwise, and no more
    assert rows["limner fp32"].get("why", "the same as limner here").startswith("the same as limner here")
    assert rows["sd.cpp f16"]["why"] in ("stable_diffusion_cpp not installed", "knows the published sizes alone")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == found
    said = capsys.readouterr().out
    assert all(name in said for name in asked)
    chart = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert chart.startswith("<svg") and "diffusers fp32" in chart
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.svg"]


def test_several_pictures_are_asked_for_at_once(tmp_path, capsys):
    pytest.importorskip("diffusers")
    asked = ["limner fp32", "diffusers fp32", "limner recorded", "openvino fp32"]
    told = ["--tiny", "--size", "64", "--runs", "1", "--threads", "1", "--models", "sdxl", "--peers", *asked]
    found = peers.main([*told, "--pictures", "2", "--folder", str(tmp_path)])
    rows = {row["peer"]: row for row in found["models"]["sdxl, 2 pictures at once"]["rows"]}
    assert rows["diffusers fp32"]["agrees"] > 90 or "by itself" in rows["limner fp32"]["why"]
    assert rows["limner recorded"]["why"] == "measured on a card alone"
    assert rows["openvino fp32"]["why"] in ("openvino not installed", "measured with one picture alone")
    assert "sdxl, 2 pictures at once, 64 x 64" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="measures nothing"):
        peers.main(["--pictures", "0"])


def test_a_card_is_waited_for_and_its_memory_is_told(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3e9)
    job = peers.Job("sd15", "", "", "", 64, t=0.5, clock=500.0, first=0.0, device="cuda")
    peers.awaited(job)
    assert waited and peers.card_memory(job) == 3000
    rows = [{"peer": "limner", "step": 0.05, "decode": 0.1, "total": 1.1, "peak": 2.0, "card": 3.0}]
    found = {"size": 64, "runs": 1, "apart": False, "card": True, "rows": rows}
    assert "| peak GB | card GB |" in peers.table("sd15", found) and "| 2.0 | 3.0 |" in peers.table("sd15", found)


def test_a_program_that_breaks_is_named_with_its_last_words(tmp_path):
    job = peers.Job("sd15", "no-such-file", "no-such-folder", str(tmp_path), 64, t=0.5, clock=500.0, first=0.0)
    one = peers.Worker("limner", job, tmp_path / "log")
    assert not one.ask("step")
    assert "no-such-file" in one.gone or "npy" in one.gone
    assert peers.row_of(one, [one], tmp_path) == {"peer": "limner", "why": one.gone}


def test_what_is_asked_for():
    assert peers.chosen(["limner"]) == ["limner"]
    assert peers.chosen(["sd.cpp", "limner fp32"]) == ["limner fp32", "sd.cpp f16", "sd.cpp q8_0"]
    with pytest.raises(SystemExit, match="'comfy' begins no peer's name; there are limner, "):
        peers.chosen(["comfy"])


def test_agreement_is_in_decibels_of_the_span():
    exact = np.array([0.0, 10.0])
    assert peers.psnr(exact + 0.1, exact) == pytest.approx(40)
    assert peers.psnr(exact, exact) == 150


@pytest.mark.parametrize("device", ["cpu"])
def test_nothing_is_left_out_without_a_reason(device):
    job = peers.Job("sd15", "", "", "", 64, t=0.5, clock=500.0, first=0.0, device=device, tiny=True)
    reasons = {name: peers.rivals.why_not(peer, job) for name, peer in peers.PEERS.items()}
    assert reasons["limner"] == ""
    assert sum("takes" in why and "by itself" in why for why in reasons.values()) == 1
    assert "does not compute in fp16" in reasons["limner fp16"]

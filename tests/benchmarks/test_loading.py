"""The measurement of loading, run small; its figures are in docs/performance.md."""

import importlib.util
import json
from pathlib import Path

import torch

from limner.families.recognise import recognise
from limner.weights.io import read_tensors

FILE = Path(__file__).parents[2] / "benchmarks" / "loading.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_loading", FILE)
loading = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loading)


def test_it_measures_and_leaves_nothing(tmp_path, capsys):
    rows = loading.main(["--tiny", "--runs", "1", "--folder", str(tmp_path), "--json", str(tmp_path / "rows.json")])
    assert all(value > 0 for value in rows.values())
    assert rows["load it, s"] < 60
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")) == rows
    assert capsys.readouterr().out.count("\n") == len(rows)


def test_its_files_are_whole_checkpoints_with_random_weights(tmp_path):
    path = loading.write_random(tmp_path / "small.safetensors", loading.names_of("sd15", loading.SMALL))
    found = recognise(path)
    assert (found.family.name, found.variant, found.missing) == ("sd15", "base", ())
    tensors = read_tensors(path)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert all(value.float().std() > 0 for value in tensors.values() if value.numel() > 1)


def test_the_full_sizes_are_the_published_ones(tmp_path):
    names = loading.names_of("sd15", loading.SD15)
    assert sum(torch.Size(shape).numel() for shape in names.values()) == 859_520_964 + 83_653_863 + 123_060_480
    hole = loading.write_hole(tmp_path / "sdxl.safetensors", loading.names_of("sdxl", loading.SDXL))
    found = recognise(hole)
    assert (found.family.name, found.variant, found.missing) == ("sdxl", "base", ())
    assert found.parts["denoiser"].parameters == 2_567_463_684
    assert 6.5e9 < hole.stat().st_size < 7.5e9
    assert hole.stat().st_blocks * 512 < 2_000_000

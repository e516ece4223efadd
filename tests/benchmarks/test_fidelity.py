"""The measurement of fidelity, run small; its figures are in docs/performance.md."""

import importlib.util
import json
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_fidelity", FILE)
fidelity = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = fidelity  # where its dataclasses look for it
spec.loader.exec_module(fidelity)


def test_it_measures_what_there_is_and_names_the_rest(tmp_path, capsys):
    small = ["--model", "sd15", "--tiny", "--size", "64", "--steps", "3", "--pictures", "1"]
    files = ["--folder", str(tmp_path), "--json", str(tmp_path / "x.json"), "--sheet", str(tmp_path / "x.png")]
    rows = {row["setting"]: row for row in fidelity.main([*small, *files])}
    assert list(rows) == [setting.name for setting in fidelity.SETTINGS]
    for same in ("fp32", "keep one", "keep layer"):
        assert rows[same]["largest"] <= 1, rows[same]  # of 255: the pictures beside it are bytes
    assert 20 < rows["bf16"]["mean"] < 90
    assert rows["effort fast"]["seconds"] > 0
    assert "--taesd" in rows["tiny decoder"]["why"] and "--size" in rows["tiled decode"]["why"]
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == list(rows.values())
    assert "tiled decode: a picture of 64 pixels" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.json", "x.png"]

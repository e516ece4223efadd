"""The measurement of memory, run small; its figures are in docs/performance.md."""

import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "memory.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_memory", FILE)
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)


def test_it_measures_and_leaves_nothing(tmp_path, capsys):
    told = ["--tiny", "--size", "256", "--keep", "layer", "--folder", str(tmp_path), "--json", str(tmp_path / "x.json")]
    (row,) = memory.main(told)
    assert row["finite"] and row["peak"] >= row["own"] > 0 and row["step"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == [row]
    assert "layer" in capsys.readouterr().out


def test_sd35_medium_is_whole(tmp_path):
    from limner.families.recognise import recognise

    loading = memory.loading
    found = recognise(
        loading.write_hole(tmp_path / "sd35.safetensors", loading.names_of(*memory.FAMILIES["sd35-medium"]))
    )
    assert (found.family.name, found.missing) == ("sd35", ())
    assert found.parts["text_3"].parameters == 4_762_310_656
    assert 2.4e9 < found.parts["denoiser"].parameters < 2.6e9

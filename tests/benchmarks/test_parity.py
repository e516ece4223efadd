"""The comparison at the published sizes, run small; its figures are in docs/parity.md."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "parity.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_parity", FILE)
parity = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = parity  # where its dataclasses look for it
spec.loader.exec_module(parity)


def test_every_network_agrees_with_its_reference(tmp_path, capsys):
    rows = parity.main(["--tiny", "--json", str(tmp_path / "rows.json")])
    assert len(rows) == len(parity.CASES) == 10
    for row in rows:
        assert row["error"] < 1e-5, row
        assert row["deviation"] > 0.1, row
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")) == rows
    assert capsys.readouterr().out.count("\n") == 11


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sd15 UNet", 859_520_964),
        ("sd15 autoencoder", 83_653_863),
        ("sd15 CLIP ViT-L/14", 123_060_480),
        ("sd2 UNet", 865_910_724),
        ("sdxl UNet", 2_567_463_684),
        ("sdxl OpenCLIP ViT-bigG/14", 694_659_840),
    ],
)
def test_the_references_have_the_published_sizes(name, parameters):
    case = next(case for case in parity.CASES if case.name == name)
    built = parity.on_meta(case.reference, case.published)
    assert sum(value.numel() for value in built.state_dict().values()) == parameters


def test_a_name_that_is_none_is_refused():
    with pytest.raises(SystemExit, match=r"'sd9' is none of sd15 UNet, .*T5-XXL wants --t5"):
        parity.main(["--only", "sd9"])

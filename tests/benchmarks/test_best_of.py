"""The measurement of early choices, run small; its figures are in docs/performance.md."""

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "best_of.py"
spec = importlib.util.spec_from_file_location("limner_benchmarks_best_of", FILE)
best_of = importlib.util.module_from_spec(spec)
spec.loader.exec_module(best_of)


def test_a_late_choice_has_the_whole_gain_and_an_early_one_no_more_of_the_eyes(tiny_folder, capsys):
    best_of.main(["--model", str(tiny_folder), "--prompts", "3", "--seeds", "3", "--rounds", "1"])
    said = capsys.readouterr().out.splitlines()
    rows = [[float(cell) for cell in line.strip("| ").split(" | ")] for line in said[3:]]
    assert said[0] == "3 prompts, 3 seeds each, 24 steps" and [row[0] for row in rows] == list(best_of.SHARES)
    assert rows[-1][2:] == [1.0, 1.0, 1.0]
    assert all(row[3] <= 1 for row in rows) and rows[0][1] > 0

"""One table in three clothes."""

import json

from limner.evaluate.metrics import Estimate
from limner.evaluate.table import Column, Report, Row, Section, to_json, to_markdown, to_rich, written

SECTION = Section(
    "Words",
    "What it is.",
    (Column("R@1", "share"), Column("distance"), Column("pictures", "count")),
    (
        Row("model", (Estimate(0.125, 0.1, 0.15), Estimate(1.204, 1.1, 1.3), 8)),
        Row("chance", (0.01, None, None)),
    ),
)


def test_cells_in_words():
    assert written(Estimate(0.125, 0.1, 0.15), "share") == "12.5 (10.0 to 15.0)"
    assert written(Estimate(0.5), "number") == "0.50"
    assert written(None, "count") == "-"
    assert written(0.00751, "fine") == "0.0075"


def test_markdown():
    text = to_markdown(Report({"model": "mini"}, (SECTION, Section("Empty", "Nothing to measure."))))
    assert "- model: mini\n" in text
    assert "|  | R@1, % | distance | pictures |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| model | 12.5 (10.0 to 15.0) | 1.20 (1.10 to 1.30) | 8 |\n| chance | 1.0 | - | - |" in text
    assert text.endswith("## Empty\n\nNothing to measure.\n")


def test_json_keeps_numbers():
    found = json.loads(to_json(Report({}, (SECTION,))))["sections"][0]["rows"][0]["cells"]
    assert found == [{"value": 0.125, "low": 0.1, "high": 0.15}, {"value": 1.204, "low": 1.1, "high": 1.3}, 8]


def test_what_is_no_number_is_a_dash_and_null():
    section = Section("A", "B", (Column("x"),), (Row("a|b", (Estimate(float("nan")),)),))
    assert "| a\\|b | - |" in to_markdown(Report({}, (section,)))
    assert json.loads(to_json(Report({}, (section,))))["sections"][0]["rows"][0]["cells"][0]["value"] is None


def test_rich_has_every_row():
    assert to_rich(SECTION).row_count == 2

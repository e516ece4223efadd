"""The whole evaluation of a tiny random model on a small shard, twice."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limner.cli.evaluate import evaluate as command
from limner.errors import BadInput
from limner.evaluate.run import Done, Measured, Painted, evaluate
from limner.evaluate.samples import Plan
from limner.evaluate.table import to_json, to_markdown
from limner.pipeline import Model, load
from limner.place import find_place
from limner.train.data import Pictures, pack
from limner.train.splits import splits

PLAN = Plan(0, 6, 2, 20, 12, 12, 1, 2, (3, 2), 20, 2, 6, 2)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    found = load(str(tiny_folder), find_place("cpu", torch.float32))
    family = replace(found.family, defaults=replace(found.family.defaults, steps=2))
    return replace(found, family=family)


@pytest.fixture(scope="module")
def pictures(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return pack(shards, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def done(model: Model, pictures: Pictures) -> Done:
    return run(model, pictures)


def run(model: Model, pictures: Pictures) -> Done:
    *_, last = evaluate(model, pictures, PLAN, "tiny")
    assert isinstance(last, Done)
    return last


def test_it_tells_how_far_it_is(model: Model, pictures: Pictures):
    events = list(evaluate(model, pictures, PLAN, "tiny"))
    painted = [event for event in events if isinstance(event, Painted)]
    assert painted[-1].done == painted[-1].total
    measured = [event for event in events if isinstance(event, Measured)]
    assert [event.done for event in measured] == list(range(1, measured[0].total + 1))


def test_the_same_seed_gives_the_same_table_and_sheets(done: Done, model: Model, pictures: Pictures):
    again = run(model, pictures)
    assert to_markdown(again.report) == to_markdown(done.report)
    assert again.sheet.tobytes() == done.sheet.tobytes()
    assert again.neighbours.tobytes() == done.neighbours.tobytes()


def cells(done: Done, title: str, row: str) -> tuple:
    section = next(s for s in done.report.sections if s.title.startswith(title))
    return next(r.cells for r in section.rows if r.name == row)


def test_every_figure_of_this_data_has_rows(done: Done, pictures: Pictures):
    kinds = splits(pictures.words)
    assert min(kinds.count(kind) for kind in ("pair", "concept", "val")) > 2
    assert all(section.rows or section.title.startswith("People") for section in done.report.sections)


def test_retrieval_carries_its_ceiling_and_chance(done: Done):
    for title in ("names of training", "held-out (style", "held-out concepts"):
        chance = cells(done, f"Words to picture: {title}", "chance")
        assert chance[0] == pytest.approx(1 / 20) and chance[1] == pytest.approx(5 / 20)
        real = cells(done, f"Words to picture: {title}", "real pictures")
        assert 0 <= real[0].low <= real[0].value <= real[0].high <= 1


def test_the_baseline_that_copies_is_found_out_and_random_weights_are_not(done: Done):
    assert cells(done, "Copies", "nearest neighbour by text")[1].value == 1
    assert cells(done, "Copies", "model, training prompts")[1].value == 0


def test_real_pictures_are_nearer_to_real_ones_than_noise_is(done: Done):
    real = cells(done, "Kernel", "real pictures, the other half")
    model = cells(done, "Kernel", "model")
    assert all(a.value < b.value for a, b in zip(real, model, strict=True))


def test_no_seed_is_used_twice_but_on_the_sheet(model: Model, pictures: Pictures):
    from limner.evaluate.bench import Bench
    from limner.evaluate.run import recipe_of

    bench = Bench(model, pictures, PLAN, recipe_of(model, "tiny"))
    recipes = [recipe for kind, some in bench.asked.items() if kind != "sheet" for recipe in some]
    assert len({recipe.id for recipe in recipes}) == len(recipes)
    train = {bench.pictures.words[case.row].concept for case in bench.cases["train"]}
    held = {case.concept for case in bench.cases["concept"]}
    assert held and not train & held


def test_data_without_styles_still_has_a_table(model: Model, pictures: Pictures):
    words = tuple(replace(w, style="", concept=w.name, split="train") for w in pictures.words)
    report = run(model, replace(pictures, words=words)).report
    without = [section.title for section in report.sections if not section.rows]
    assert [title.split(":")[0] for title in without[1:3]] == ["Words to picture"] * 2
    assert "names of training pictures" not in "".join(without)
    json.loads(to_json(report))


def test_a_model_without_a_judge_is_refused(model: Model, pictures: Pictures):
    nets = {name: net for name, net in model.nets.items() if name != "judge"}
    with pytest.raises(BadInput, match="no judge"):
        next(evaluate(replace(model, nets=nets), pictures, PLAN))


def test_the_command_writes_four_files(
    tiny_folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Plan, "of", lambda *_: PLAN)
    command(str(tiny_folder), data=[shards], out=tmp_path / "out", cache=tmp_path, device="cpu")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"table.md", "table.json", "sheet.png", "neighbours.png"}
    stored = json.loads((tmp_path / "out" / "table.json").read_text())
    values = [cell for s in stored["sections"] for row in s["rows"] for cell in row["cells"] if isinstance(cell, float)]
    assert values and all(math.isfinite(value) for value in values)
    assert "Words to picture" in capsys.readouterr().out


def test_several_sources_become_one(tiny_folder: Path, shards: Path, tmp_path: Path):
    from limner.cli.evaluate import read

    both = read([shards / "train-000.tar", shards / "val-000.tar"], tmp_path, 128)
    assert len(both) == 148 * 3 and both.pixels.shape == (444, 4, 128, 128)

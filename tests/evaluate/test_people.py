"""Figures of people, with a judge that reads the answer from the first pixel: what it finds is known beforehand."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.evaluate.metrics import Estimate
from limner.evaluate.people import GENDERS, TONES, crowd, told, toned, untold
from limner.train.data import Words

ROLES = ("cook", "judge", "pilot", "singer")


def words() -> list[Words]:
    names = list(ROLES)
    names += [toned(role, tone) for role in (*ROLES, "hand") for tone in TONES]
    names += [f"{gender} {role}" for role in (*ROLES, "elf") for gender in GENDERS] + ["elf", "apple"]
    names += [toned("foot", tone) for tone in TONES[:4]]
    return [Words(key=name, name=name, style=style, concept=name) for style in ("noto", "flat") for name in names]


class Reader:
    """Names and pictures become the same unit vector where they say the same."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = sorted(set(names))

    def texts(self, phrases: Sequence[str]) -> Tensor:
        return torch.nn.functional.one_hot(
            torch.tensor([self.names.index(p) for p in phrases]), len(self.names)
        ).float()

    def features(self, pictures: Tensor) -> Tensor:
        return pictures[:, 0, 0, 0].long()

    def seen(self, features: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(features, len(self.names)).float()


def bench(painted: Any = None) -> Any:
    known = words()
    judge = Reader([w.name for w in known])

    def drawn(names: Sequence[str]) -> Tensor:
        return torch.tensor([judge.names.index(name) for name in names]).view(-1, 1, 1, 1).byte()

    people = crowd(known, range(len(known)), 3, 0)
    found = {"people": drawn([case.name for case in people.told])}
    found["anybody"] = drawn([(painted or toned)(case.name, "dark") for case in people.untold for _ in range(2)])
    return SimpleNamespace(
        people=people, judge=judge, painted=found,
        real=lambda rows: drawn([known[row].name for row in rows]), rebuilt=lambda pictures: pictures,
    )  # fmt: skip


def rows(section: Any) -> dict[str, tuple[Any, ...]]:
    return {row.name: tuple(c.value if isinstance(c, Estimate) else c for c in row.cells) for row in section.rows}


def test_a_crowd_is_of_whole_rows_of_one_style_and_the_same_for_everybody():
    known = words()
    people = crowd(known, range(len(known)), 3, 0)
    assert people == crowd(known, range(len(known)), 3, 0) != crowd(known, range(len(known)), 3, 1)
    assert [len(row) for row in people.tones] == [5] * 3 and [len(row) for row in people.genders] == [2] * 3
    assert all(len({case.style for case in row}) == 1 for row in (*people.tones, *people.genders))
    assert all(known[case.row].name == case.name for case in (*people.told, *people.untold))
    everybody = crowd(known, range(len(known)), 99, 0)
    assert {row[0].name.split(":")[0] for row in everybody.tones} == {*ROLES, "hand"}  # a foot lacks a tone
    assert {row[0].name.removeprefix("man ") for row in everybody.genders} == {*ROLES, "elf"}
    assert [case.name for case in everybody.untold] == list(ROLES)


def test_who_paints_what_is_told_is_right_and_wrong_for_another():
    found = rows(told(bench()))
    assert found["real pictures"] == found["model"] == (1.0, 1.0)
    assert found["model, judged for the next"] == (0.0, 0.0)
    assert found["chance"] == (pytest.approx(0.2), 0.5)


def test_what_is_painted_untold_is_counted():
    found = rows(untold(bench()))
    assert found["model"] == (0, 0, 0, 0, 0, 1.0, 1.0, 0, 0)  # dark; of a dark cook's vector none of three is likelier
    assert found["real pictures of these names"] == (1.0, 0, 0, 0, 0, 0, 1.0, 0, 0)
    found = rows(untold(bench(lambda role, _: f"woman {role}")))
    assert found["model"][6:] == (0, 0, 1.0)


def test_data_without_people_says_so():
    empty = SimpleNamespace(people=crowd([Words("apple", "apple", style="noto")], [0], 3, 0))
    assert not told(empty).rows and "too few names of people" in told(empty).note
    assert not untold(empty).rows

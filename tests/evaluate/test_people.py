"""Figures of people, with a judge that reads the answer from the first pixel: what it finds is known beforehand."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from limner.evaluate.metrics import Estimate
from limner.evaluate.people import GENDERS, crowd, told, untold
from limner.evaluate.tones import TONES, Palette, tone_of, toned
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
    asked = words()
    others = [Words(name, name, style=w, concept=name) for w in ("noto", "flat") for name in guests()]
    known = [*asked, *others]  # colours are learned from people who are not asked for
    judge = Reader([w.name for w in known])

    def drawn(names: Sequence[str]) -> Tensor:
        """The first pixel tells the judge the name; the others are of the tone's colour."""
        pictures = torch.full((len(names), 4, 4, 4), 255)
        for picture, name in zip(pictures, names, strict=True):
            picture[:3] = 40 * ("", *TONES).index(tone_of(name)[1])
            picture[0, 0, 0] = judge.names.index(name)
        return pictures.byte()

    people = crowd(asked, range(len(asked)), 3, 0)
    found = {"people": drawn([case.name for case in people.told])}
    found["anybody"] = drawn([(painted or toned)(case.name, "dark") for case in people.untold for _ in range(2)])
    return SimpleNamespace(
        people=people, judge=judge, painted=found, pictures=SimpleNamespace(words=known),
        rows=lambda _: range(len(known)),
        real=lambda rows: drawn([known[row].name for row in rows]), rebuilt=lambda pictures: pictures,
    )  # fmt: skip


def guests() -> list[str]:
    return ["guest", *(toned("guest", tone) for tone in TONES)]


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


def test_without_people_to_learn_the_colours_from_it_says_so():
    alone = bench()
    alone.rows = lambda _: []
    assert "too few names of people" in told(alone).note and "too few names of people" in untold(alone).note


def test_tones_are_read_off_names():
    assert tone_of("man cook: medium-dark skin tone") == ("man cook", "medium-dark")
    assert tone_of("flag: Norway") == ("flag", "") and tone_of("cook") == ("cook", "")


def test_a_palette_tells_colours_that_are_a_little_off_and_looks_through_clear_pixels():
    """Three tones over the same clothes; what is asked is a few levels off, half of it clear."""
    rng = torch.Generator().manual_seed(0)
    skin = torch.tensor([[0.98, 0.86, 0.74], [0.75, 0.56, 0.40], [0.36, 0.24, 0.18]])

    def people(tone: int, off: float) -> Tensor:
        picture = torch.rand(5, 4, 16, 16, generator=rng)  # clothes of any colour
        picture[:, :3, :6] = (skin[tone] + off)[None, :, None, None]
        picture[:, 3] = 1
        picture[:, :, :, 8:] = 0  # premultiplied: clear is black
        return picture

    palette = Palette.of({name: people(i, 0.0) for i, name in enumerate(("a", "b", "c"))})
    for tone in range(3):
        assert palette(people(tone, 0.02)).tolist() == [tone] * 5

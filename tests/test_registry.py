"""Names, spellings, and what is said of a name that is unknown."""

import pickle

import pytest

from limner.errors import LimnerError, UnknownName, nearest
from limner.registry import Registry


@pytest.fixture
def tools() -> Registry[int]:
    registry: Registry[int] = Registry("tool")
    registry.add("hammer", "mallet", "Big++")(1)
    registry.add("saw")(2)
    return registry


@pytest.mark.parametrize("spelling", ["hammer", "Hammer", "ham-mer", "ham_mer", "ham mer", "MALLET", "big++", "BigPP"])
def test_spelling_is_forgiven(tools, spelling):
    assert tools[spelling] == 1
    assert tools.name(spelling) == "hammer"


def test_it_is_a_mapping_in_the_order_of_registration(tools):
    assert list(tools) == ["hammer", "saw"]
    assert dict(tools) == {"hammer": 1, "saw": 2}
    assert len(tools) == 2


def test_aliases_are_listed_without_the_name(tools):
    assert tools.aliases("hammer") == ["Big++", "mallet"]
    assert tools.aliases("saw") == []


def test_an_unknown_name_is_answered_with_the_nearest(tools):
    with pytest.raises(UnknownName, match=r"^no tool is called 'hamer': did you mean hammer\? There are"):
        tools["hamer"]


def test_an_unknown_name_is_not_in_the_mapping(tools):
    assert "spoon" not in tools
    assert "mallet" in tools
    assert tools.get("spoon") is None


def test_two_things_cannot_have_one_name(tools):
    with pytest.raises(ValueError, match="two tools are called 'saw'"):
        tools.add("saw")(3)


@pytest.mark.parametrize(("name", "alias"), [("axe", "mallet"), ("axe", "SAW"), ("Mallet", "axe")])
def test_an_alias_cannot_be_taken_from_another(tools, name, alias):
    with pytest.raises(ValueError, match="would mean two"):
        tools.add(name, alias)(3)
    assert tools["mallet"] == 1
    assert "axe" not in tools


def test_other_packages_add_through_an_entry_point_once(monkeypatch, tools):
    asked = []

    class Point:
        def load(self):
            tools.add("plane")(3)

    def offered(group):
        asked.append(group)
        return [Point()]

    monkeypatch.setattr("limner.registry.entry_points", offered)
    assert tools["plane"] == 3
    assert list(tools) == ["hammer", "saw", "plane"]
    assert asked == ["limner.tool"]


def test_a_long_list_of_choices_is_cut_with_a_count():
    assert (
        nearest("zzz", [f"name{i:02}" for i in range(20)], show=3) == "There are: name00, name01, name02 and 17 more."
    )


def test_the_sentence_is_shown_without_quotes_and_travels_between_processes():
    error = LimnerError("a plain sentence")
    assert str(UnknownName("thing", "x", ["y"])) == "no thing is called 'x': There are: y."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

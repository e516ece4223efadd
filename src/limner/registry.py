"""Names for things that can be added from one file, or from another package through an entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from limner.errors import UnknownName

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """`@REGISTRY.add("name", "alias")` registers; `REGISTRY["alias"]` finds, or names the nearest.

    Spelling is forgiven: case, spaces, dashes and underscores do not count, and `++` reads as `pp`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._found: dict[str, T] = {}
        self._plain: dict[str, str] = {}  # plain spelling -> name
        self._aliases: dict[str, tuple[str, ...]] = {}  # as they are written
        self._outside = False

    def add(self, name: str, *aliases: str) -> Callable[[T], T]:
        def keep(value: T) -> T:
            if name in self._found:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            for spelling in (name, *aliases):
                other = self._plain.get(_plain(spelling), name)
                if other != name:
                    raise ValueError(f"{spelling!r} would mean two {self.kind}s: {other!r} and {name!r}")
            self._found[name] = value
            self._aliases[name] = aliases
            self._plain |= {_plain(spelling): name for spelling in (name, *aliases)}
            return value

        return keep

    def name(self, spelling: str) -> str:
        """The registered name that a spelling means."""
        self._load()
        try:
            return self._plain[_plain(spelling)]
        except KeyError:
            raise UnknownName(self.kind, spelling, self._found) from None

    def aliases(self, name: str) -> list[str]:
        """What else a name is called, as it is written; spellings that read as the name itself are left out."""
        found = {_plain(alias): alias for alias in self._aliases[name] if _plain(alias) != _plain(name)}
        return sorted(found.values(), key=str.lower)

    def __getitem__(self, spelling: str) -> T:
        return self._found[self.name(spelling)]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._found)

    def __len__(self) -> int:
        self._load()
        return len(self._found)

    def _load(self) -> None:
        """Import what other packages offer under `limner.<kind>`, once, when a name is first asked for."""
        if not self._outside:
            self._outside = True
            for point in entry_points(group=f"limner.{self.kind}"):
                point.load()


def _plain(spelling: str) -> str:
    return spelling.lower().replace("++", "pp").replace(" ", "").replace("-", "").replace("_", "")

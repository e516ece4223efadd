"""Configs: small frozen dataclasses that travel in JSON inside weight files and change by `key=value`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from limner.errors import BadInput, BadWeights, UnknownName

C = TypeVar("C")


def to_json(config: Any) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def from_json(kind: type[C], text: str, where: str) -> C:
    """A config from a file's words; unknown keys and values of another type are refused."""
    try:
        found = json.loads(text)
        if not isinstance(found, Mapping):
            raise TypeError("not an object")
        return set_values(kind(), {name: json.dumps(value) for name, value in found.items()})
    except (ValueError, TypeError, UnknownName, BadInput) as error:
        raise BadWeights(f"{where}: the config of {kind.__name__} cannot be read ({error})") from error


def set_values(config: C, values: Mapping[str, str]) -> C:
    """The config with fields changed from text: `{"lr": "1e-3"}`; numbers, words and JSON lists."""
    known = {field.name: getattr(config, field.name) for field in fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, text in values.items():
        if name not in known:
            raise UnknownName(f"setting of {type(config).__name__}", name, known)
        changes[name] = _read(text, known[name], name)
    return replace(config, **changes)  # type: ignore[type-var]


def _read(text: str, like: Any, name: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(like, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(like):
        raise BadInput(f"{name} is {text!r}; it should be of the kind of {like!r}")
    return value


def parse_settings(pairs: Iterable[str]) -> dict[str, str]:
    """`["lr=1e-3"]` to `{"lr": "1e-3"}`."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"{pair!r} is not a setting; settings look like key=value")
        found[name.strip()] = value.strip()
    return found

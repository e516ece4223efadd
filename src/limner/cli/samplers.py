"""`limner samplers`: the ways from noise to picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from limner.cli.say import as_json, rows

if TYPE_CHECKING:
    from limner.registry import Registry


def samplers(*, json: Annotated[bool, Parameter(help="Print it as JSON.")] = False) -> None:
    """List the samplers and the schedules, with the other names that are understood.

    Case, spaces, dashes and underscores do not count, and ++ reads as pp.
    """
    from limner.diffusion.samplers import SAMPLERS
    from limner.diffusion.times import SCHEDULES

    found = {"samplers": _listed(SAMPLERS), "schedules": _listed(SCHEDULES)}
    if json:
        return as_json(found)
    for kind, each in found.items():
        print(f"{kind}:")
        table = []
        for one in each:
            table += [
                (one["name"], one["what"]),
                *([("", f"also {', '.join(one['aliases'])}")] if one["aliases"] else []),
            ]
        rows(table, indent="  ")
    return None


def _listed(registry: Registry[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "what": (one.__doc__ or "").strip().split("\n")[0], "aliases": registry.aliases(name)}
        for name, one in registry.items()
    ]

"""`limner models`: what can be painted with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from limner.cli.say import as_json, rows, size
from limner.errors import BadWeights


def models(
    *paths: Annotated[str, Parameter(help="Folders or files to look at beside the models that ship.")],
    json: Annotated[bool, Parameter(help="Print a line of JSON for each model.")] = False,
) -> None:
    """List the models that ship, and those at the paths given: family, parameters, size on disk, where."""
    from limner.pipeline import SHIPPED

    found = []
    for name in (*SHIPPED, *paths):
        try:
            found.append(_facts(name))
        except BadWeights as error:
            if name in paths:
                raise
            warnings.warn(f"the model {name} that ships is not whole: {error}", stacklevel=1)  # the others still count
    if json:
        for each in found:
            as_json(each)
        return
    table = [("name", "family", "parameters", "on disk", "where")]
    rows([*table, *((e["name"], e["family"], f"{e['parameters']:,}", size(e["bytes"]), e["path"]) for e in found)])


def _facts(name: str) -> dict[str, Any]:
    """Read from the files' headers alone."""
    import math

    from limner.families import detect
    from limner.pipeline import find_model, weight_files
    from limner.weights.io import read_header

    path, nets, families = find_model(name), {}, set()
    for file in weight_files(path):
        shapes = {entry: value.shape for entry, value in read_header(file).entries.items()}
        families.add(detect(shapes, str(file))[0].name)
        nets[file.stem] = sum(math.prod(shape) for shape in shapes.values())
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    known = {"name": Path(name).name, "family": ", ".join(sorted(families)), "parameters": sum(nets.values())}
    return known | {"networks": nets, "bytes": sum(file.stat().st_size for file in files), "path": str(path)}

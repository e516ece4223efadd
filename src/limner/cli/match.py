"""`limner match`: how alike pictures and texts are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from limner.cli.say import as_json, plain, rows
from limner.errors import BadInput


def match(
    picture: Annotated[Path, Parameter(help="A picture.")],
    texts: Annotated[list[str], Parameter(help="Texts, each in quotes.", consume_multiple=True)],
    /,
    *,
    pictures: Annotated[
        list[Path] | None, Parameter(name=("--picture", "-p"), help="A further picture; may be given again.")
    ] = None,
    model: Annotated[
        str, Parameter(name=("--model", "-m"), help="mini, or a CLIP with both towers: a name, a folder or a file.")
    ] = "mini",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, Parameter(help="Print a line of JSON for each picture.")] = False,
) -> None:
    """Say how alike pictures and texts are: cosines, and beside them each text's share among those given.

    The shares of a picture sum to 100 %, so they tell the texts apart; whether any of them fits, the cosine tells.
    """
    if not texts:
        raise BadInput('match wants a picture and texts: limner match cat.png "a cat" "a dog"')
    from limner.image import from_pil, open_picture
    from limner.looker import find_looker
    from limner.place import find_place
    from limner.tasks.match import match as compare

    paths = [picture, *(pictures or [])]
    seen = [from_pil(open_picture(path)) for path in paths]  # a wrong path is told before a model loads
    found = compare(find_looker(model, find_place(cast(Any, device))), seen, texts)
    cosines, shares = found.cosines.tolist(), found.shares.tolist()
    for i, path in enumerate(paths):
        if json:
            told = zip(texts, cosines[i], shares[i], strict=True)
            as_json({"path": str(path), "texts": [{"text": t, "cosine": c, "share": s} for t, c, s in told]})
    if json:
        return
    if len(paths) == 1:
        named = zip(texts, cosines[0], shares[0], strict=True)
        rows([(f"{cosine:6.3f}", f"{share:4.0%}", plain(text)) for text, cosine, share in named])
        return
    cells = [[f"{c:6.3f} {s:4.0%}" for c, s in zip(*row, strict=True)] for row in zip(cosines, shares, strict=True)]
    rows(
        [("", *(plain(text) for text in texts))] + [(plain(str(p)), *row) for p, row in zip(paths, cells, strict=True)]
    )

"""`limner find`: search of a folder by words."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from limner.cli.say import as_json, interruptible, plain, rows
from limner.errors import BadInput

if TYPE_CHECKING:
    from limner.tasks.find import Progress

MANY = 64  # new pictures from which a bar is worth its place
COLUMNS = 5  # of a contact sheet


def find(
    folder: Annotated[Path, Parameter(help="A folder of pictures, with the folders in it.")],
    words: Annotated[str, Parameter(help="What to look for.")] = "",
    /,
    *,
    count: Annotated[int, Parameter(name=("--count", "-n"), help="How many pictures to give.")] = 10,
    like: Annotated[Path | None, Parameter(help="Look for pictures like this one, in place of words.")] = None,
    index: Annotated[
        Path | None, Parameter(help="Where the index is kept; by default in the folder, or in your cache.")
    ] = None,
    sheet: Annotated[Path | None, Parameter(help="Draw what is found as one picture into this file.")] = None,
    model: Annotated[
        str, Parameter(name=("--model", "-m"), help="mini, or a CLIP with both towers: a name, a folder or a file.")
    ] = "mini",
    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, Parameter(help="Print a line of JSON for each picture.")] = False,
) -> None:
    """Search a folder by words: the pictures that are most like them, the best first, with the cosine.

    What was seen is kept in an index, so the first search reads every picture and later ones only what is new or
    changed. mini's eye knows drawings of single things; for photographs give a CLIP.
    """
    if count < 1:
        raise BadInput(f"--count should be 1 or more, not {count}")
    from limner.files import kind_of
    from limner.looker import find_looker
    from limner.place import find_place
    from limner.tasks.find import open_index, query, refreshed

    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder" if folder.exists() else f"{folder} does not exist")
    if sheet:
        kind_of(sheet)
    looker = find_looker(model, find_place(cast(Any, device)))
    wanted = query(looker, words, like)
    book = open_index(folder, looker, index)
    with interruptible() as check, closing(refreshed(book, looker)) as events:
        unread = []
        for event in _watched(events):
            check()
            unread += [event.unread] if event.unread else []
    for why in unread:
        print(f"skipped: {plain(why)}", file=sys.stderr)
    found = book.search(wanted, count)
    for path, score in found if json else ():
        as_json({"path": str(path), "score": round(score, 4)})
    if not json:
        rows([(f"{score:6.3f}", plain(str(path))) for path, score in found])
    if not found:
        print(f"there is no picture in {plain(str(folder))}", file=sys.stderr)
    elif sheet:
        _draw(found, sheet)


def _watched(events: Iterable[Progress]) -> Iterator[Progress]:
    """The same events under a bar on standard error, where that is a terminal and there are many."""
    bar = None
    try:
        for event in events:
            if bar is None and event.total >= MANY and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import Progress as Bar

                bar = Bar(console=Console(stderr=True), transient=True, redirect_stdout=False)
                bar.add_task("looking", total=event.total)
                bar.start()
            if bar:
                bar.update(bar.task_ids[0], completed=event.done)
            yield event
    finally:
        if bar:
            bar.stop()


def _draw(found: list[tuple[Path, float]], sheet: Path) -> None:
    from limner.board import contact_sheet
    from limner.files import save_picture
    from limner.image import open_picture
    from limner.provenance.metadata import chunks, is_marked

    pictures = [open_picture(path) for path, _ in found]
    labels = [f"{path.name}  {score:.2f}" for path, score in found]
    image = contact_sheet(pictures, labels, min(COLUMNS, len(found)))
    parts = chunks(None) if any(map(is_marked, pictures)) else None
    told = (parts.png, parts.exif, parts.xmp) if parts else (None, b"", b"")
    saved = save_picture(image, sheet, *told)
    print(f"sheet: {plain(str(saved))}", file=sys.stderr)

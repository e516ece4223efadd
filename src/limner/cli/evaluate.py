"""`limner evaluate`: the table of figures and the sheets that go into a model card."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter

from limner.cli.say import plain
from limner.errors import NotSaved

if TYPE_CHECKING:
    from limner.evaluate.run import Done
    from limner.train.data import Pictures


WHILE = 30.0  # seconds without a line, where lines stay


def evaluate(
    model: Annotated[str, Parameter(help="A name, a folder or a file.")] = "mini",
    /,
    *,
    data: Annotated[list[Path], Parameter(consume_multiple=True, help="Shards or folders of pictures with words.")],
    out: Annotated[Path, Parameter(help="The folder for the table and the sheets.")] = Path("evaluation"),
    pictures: Annotated[int | None, Parameter(help="Prompts of each figure; 128, or 24 with --quick.")] = None,
    seed: Annotated[int, Parameter(name=["--seed", "-s"], help="Another seed draws other prompts and noise.")] = 0,
    quick: Annotated[bool, Parameter(negative="", help="Fewer pictures: minutes, and wider intervals.")] = False,
    cache: Annotated[Path | None, Parameter(help="Where decoded pictures are kept; ~/.cache/limner.")] = None,
    device: Annotated[str, Parameter(help="Where to paint: auto, or a device that limner doctor lists.")] = "auto",
    engine: Annotated[
        Literal["torch", "recorded", "compiled", "openvino"], Parameter(help="What does the denoiser's arithmetic.")
    ] = "torch",
) -> None:
    """Measure a model beside real pictures and simple baselines.

    OUT gets table.md, table.json, sheet.png and neighbours.png; nothing is chosen.

    It paints about 2,900 pictures; with --quick about 400, and the intervals are wider.
    """
    from limner.evaluate.run import Done, Measured, Painted
    from limner.evaluate.run import evaluate as run
    from limner.evaluate.samples import Plan
    from limner.pipeline import load
    from limner.place import Device, find_place

    plan = Plan.of(pictures, seed, quick)
    loaded = load(model, find_place(cast(Device, device)).driven(engine))
    _writable(out)
    shown = read(data, cache or cache_folder(), loaded.family.defaults.size[0])
    for event in run(loaded, shown, plan, model):
        match event:
            case Painted(done, total):
                _say(f"painted {done} of {total}", last=done == total)
            case Measured(name, done, total):
                _say(f"measured {name} ({done} of {total})", last=done == total)
            case Done():
                _write(event, out)
                _show(event)


def read(data: list[Path], cache: Path, size: int) -> Pictures:
    """All sources as one set; what cannot be read is told."""
    from limner.train.data import pack

    packs = []
    for path in data:
        _say(f"reading {path} ...", last=True)
        packs.append(pack(path, cache, size))
    for sentence in [sentence for each in packs for sentence in each.skipped][:5]:
        _say(f"skipped: {plain(sentence)}", last=True)
    return packs[0] if len(packs) == 1 else joined(packs)


def joined(packs: list[Pictures]) -> Pictures:
    """Several sets as one, in memory."""
    import hashlib

    import numpy as np

    from limner.train.data import Pictures

    digest = hashlib.sha256("".join(each.digest for each in packs).encode()).hexdigest()
    words = tuple(w for each in packs for w in each.words)
    return Pictures(np.concatenate([each.pixels for each in packs]), words, digest)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "limner"


def _writable(out: Path) -> None:
    """Refuse before the minutes of painting, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise NotSaved(f"{out} cannot be written to: {error.strerror or error}") from error


def _write(done: Done, out: Path) -> None:
    from limner.evaluate.table import to_json, to_markdown

    files = {"table.md": to_markdown(done.report).encode(), "table.json": to_json(done.report).encode()}
    files |= {"sheet.png": png(done.sheet), "neighbours.png": png(done.neighbours)}
    for name, content in files.items():
        partial = out / f".{name}.partial"
        try:
            partial.write_bytes(content)
            os.replace(partial, out / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise NotSaved(f"{out / name} could not be written: {error.strerror or error}") from error
    _say(f"{', '.join(files)} are in {out}", last=True)


def png(image: object) -> bytes:
    import io

    from PIL import Image

    assert isinstance(image, Image.Image)
    kept = io.BytesIO()
    image.save(kept, "PNG", optimize=True)
    return kept.getvalue()


def _show(done: Done) -> None:
    from rich.console import Console

    from limner.evaluate.table import to_rich

    console = Console(width=None if sys.stdout.isatty() else 140)
    for section in done.report.sections:
        console.print(to_rich(section))


class Teller:
    """Lines that overwrite themselves on a terminal; elsewhere what ends a part is told, and one in a while."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def __call__(self, sentence: str, last: bool = False) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{sentence}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last or time.monotonic() - self.said > WHILE:
            self.said = time.monotonic()
            print(sentence, file=sys.stderr, flush=True)


_say = Teller()

"""`limner paint`: words to picture files."""

from __future__ import annotations

import secrets
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from limner.cli.making import CHANCE, Kept, Output, Wishes, flag, keep_all, ready, sides
from limner.cli.say import STDIN
from limner.errors import BadInput

if TYPE_CHECKING:
    from limner.pipeline import Model
    from limner.provenance.metadata import Receipt
    from limner.recipe import Recipe


def paint(
    *prompts: Annotated[str, flag("What to paint; each is a picture, and - reads a line each from standard input.")],
    prompt: Annotated[list[str] | None, flag("The same, as a flag.", "--prompt", "-p")] = None,
    prompt_file: Annotated[Path | None, flag("A text file, a prompt a line.", "--prompt-file", "--from-file")] = None,
    count: Annotated[int, flag("Pictures of each prompt.", "--count", "--batch-count", "-b")] = 1,
    size: Annotated[str, flag("WIDTHxHEIGHT in pixels, or one number for both.", "--size")] = "",
    hires: Annotated[float | None, flag("Enlarge so many times, and paint over it.", "--hires", "--hr-scale")] = None,
    hires_strength: Annotated[float | None, flag("How much of it is painted anew, 0 to 1.", "--hires-strength")] = None,
    upscaler: Annotated[str | None, flag("An ESRGAN file that enlarges; else Lanczos.", "--upscaler")] = None,
    wishes: Wishes | None = None,
    wildcards: Annotated[Path | None, flag("A folder of .txt files for __name__ in prompts.", "--wildcards")] = None,
    repeat: Annotated[Path | None, flag("Repeat a picture's recipe; flags beside it change it.", "--from")] = None,
    out: Output | None = None,
    server: Annotated[str, flag("Let a running `limner serve` paint: its address.", "--server")] = "",
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    keep: Kept = "auto",
) -> None:
    """Paint pictures from words: limner paint "a red apple"

    A file is named after its prompt and seed, as a-red-apple-7.png, and none is overwritten. Each prompt begins at the
    seed that is given, and picture i of --count takes the seed that comes i later.
    """
    texts = list(_prompts([*prompts, *(prompt or [])], prompt_file))
    out = out or Output()
    out.file()
    if not texts and repeat is None:
        raise BadInput('no prompt was given; try: limner paint "a red apple"')
    if count < 1:
        raise BadInput(f"--count should be 1 or more, not {count}")
    receipt = _receipt(repeat) if repeat else None
    stored = receipt.recipe.model_dump() if receipt else {}
    own = {"hires": hires, "hires_strength": hires_strength, "upscaler": upscaler}
    fields = stored | {name: value for name, value in own.items() if value is not None}
    fields |= sides(size) | (wishes or Wishes()).fields()
    if server:
        from limner.cli.remote import paint_there

        return paint_there(server, texts, fields, count, out)
    model, recipes = _recipes(texts, fields, count, device, keep, wildcards)
    if receipt:
        _compare(receipt, model)
    return keep_all(model, recipes, out)


def _prompts(given: Iterable[str], file: Path | None) -> Iterator[str]:
    """What was given, with `-` replaced by the lines of standard input, then the lines of the file."""
    try:
        for text in given:
            if text == STDIN:
                yield from _lines(sys.stdin.read(), "standard input")
            else:
                yield text
        if file:
            yield from _lines(file.read_text(encoding="utf-8-sig"), str(file))
    except UnicodeDecodeError as error:
        raise BadInput(f"the prompts are not text in UTF-8: {error}") from error
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error


def _lines(text: str, where: str) -> list[str]:
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise BadInput(f"{where} holds no prompt")
    return found


def _receipt(path: Path) -> Receipt:
    from limner.image import open_picture
    from limner.provenance.metadata import read_receipt

    return read_receipt(open_picture(path), path)


def _recipes(
    texts: list[str], fields: dict[str, Any], count: int, device: str, keep: str, folder: Path | None
) -> tuple[Model, list[Recipe]]:
    """A recipe for each picture, checked whole: what is wrong is told before anything is painted.

    A prompt with choices in it is read for each picture, since each picture's seed chooses for itself.
    """
    if folder and not folder.is_dir():
        raise BadInput(f"--wildcards should be a folder, and {folder} is none")
    seed = fields.get("seed", -1)
    model, fields = ready(fields, device, keep)

    from limner.tasks.run import begin, several
    from limner.wildcards import expand

    recipes: list[Recipe] = []
    for text in texts or [fields["prompt"]]:
        first = secrets.randbelow(CHANCE) if seed == -1 else seed
        each = fields.get("best_of", 1)
        made = [expand(text, first + i * each, folder) if model.family.towers else text for i in range(count)]
        if len(set(made)) == 1:
            recipes += several(begin(model, **fields | {"prompt": made[0], "seed": first}), count)
        else:
            recipes += [begin(model, **fields | {"prompt": p, "seed": first + i * each}) for i, p in enumerate(made)]
        recipes[-1].but(seed=recipes[-1].seed + each - 1)  # the last seed that is tried is one, too
    return model, recipes


def _compare(receipt: Receipt, model: Model) -> None:
    """Warn where what painted a picture is not what will paint it again."""
    now = type(receipt).of(receipt.recipe, model)
    other = sorted(name for name, digest in receipt.weights.items() if now.weights.get(name) != digest)
    if other:
        warnings.warn(f"the picture was painted with another {' and '.join(other)}: it will differ", stacklevel=1)
    elif now.dtype != receipt.dtype:
        warnings.warn(
            f"the picture was painted in {receipt.dtype}, here it is {now.dtype}: it may differ", stacklevel=1
        )

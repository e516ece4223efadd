"""`limner paint`: words to picture files."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from cyclopts import Parameter

from limner.cli.say import STDIN, interruptible
from limner.errors import BadInput, NotSaved

if TYPE_CHECKING:
    from limner.pipeline import Model
    from limner.provenance.metadata import Receipt
    from limner.recipe import Recipe
    from limner.tasks.paint import Painted

CHANCE = 2**32  # seeds drawn at random stay below this: ten digits are enough to type again


def flag(help: str, *names: str) -> Parameter:
    """The first long name and the letter stand in the help; the others are what people type from habit."""
    return Parameter(name=names, help=help)


# not given: the model's family says, or the recipe that is repeated
Text = str | None
Number = int | None
Real = float | None


@Parameter(name="*")
@dataclass(frozen=True)
class Wishes:
    """The flags that are fields of the recipe."""

    negative: Annotated[Text, flag("What should not be there.", "--negative", "-n", "--negative-prompt")] = None
    style: Annotated[Text, flag("One of the model's styles, or `any`.", "--style")] = None
    seed: Annotated[Number, flag("Where chance begins; -1, and no seed: anywhere.", "--seed", "-s")] = None
    width: Annotated[Number, flag("In pixels.", "--width", "-W")] = None
    height: Annotated[Number, flag("In pixels.", "--height", "-H")] = None
    steps: Annotated[Number, flag("From noise to picture.", "--steps", "--num-inference-steps")] = None
    cfg_scale: Annotated[Real, flag("How hard to follow the words; 1: freely.", "--cfg-scale", "--guidance-scale")] = (
        None
    )
    cfg_interval: Annotated[
        tuple[float, float] | None, flag("Guide at the times between these two, 0 to 1.", "--cfg-interval")
    ] = None
    cfg_rescale: Annotated[
        Real, flag("How much of guidance's contrast to undo, 0 to 1.", "--cfg-rescale", "--guidance-rescale")
    ] = None
    sampler: Annotated[Text, flag("One of `limner samplers`.", "--sampler", "--sampling-method")] = None
    schedule: Annotated[Text, flag("One of `limner samplers`.", "--scheduler", "--schedule")] = None
    syntax: Annotated[Text, flag("How weights in prompts are read: a1111, comfy or plain.", "--syntax")] = None
    clip_skip: Annotated[Number, flag("Layers of CLIP from the last, which is 1.", "--clip-skip")] = None
    noise: Annotated[Text, flag("cpu, or nv for the random numbers of NVIDIA cards.", "--noise", "--rng")] = None
    prediction: Annotated[Text, flag("eps or v, where the files cannot tell.", "--prediction")] = None
    parts: Annotated[
        tuple[str, ...] | None, flag("A file beside the model's: an autoencoder, a text encoder.", "--with", "--vae")
    ] = None
    embeddings: Annotated[
        tuple[str, ...] | None, flag("A file of textual inversion; its name calls it.", "--embedding")
    ] = None
    partial: Annotated[
        bool | None, Parameter(name="--allow-partial", negative="", help="Paint with weights that are missing or over.")
    ] = None
    fast_decode: Annotated[
        bool | None, Parameter(name=("--fast-decode", "--taesd"), negative="", help="Decode with a tiny autoencoder.")
    ] = None
    refiner: Annotated[Text, flag("A model that takes over at the end.", "--refiner")] = None
    refine_at: Annotated[Real, flag("The share of the steps after which it does.", "--refine-at")] = None
    skip_layers: Annotated[Text, flag("Blocks left out in skip-layer guidance: 7,8,9.", "--skip-layers")] = None
    skip_scale: Annotated[Real, flag("How hard to follow that guidance.", "--skip-scale", "--slg-scale")] = None
    skip_interval: Annotated[
        tuple[float, float] | None, flag("The shares of the steps between which it works.", "--skip-interval")
    ] = None
    best_of: Annotated[Number, flag("Try so many seeds for each picture, keep the best.", "--best-of")] = None
    model: Annotated[Text, flag("A name, a folder or a .safetensors file.", "--model", "-m")] = None

    def fields(self) -> dict[str, Any]:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if self.skip_layers is not None:
            given["skip_layers"] = [part.strip() for part in self.skip_layers.split(",") if part.strip()]
        return given | ({"style": None} if self.style == "any" else {})


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """Where pictures go, and what is said of them."""

    output: Annotated[str, flag("A file's name, or a folder.", "--output", "-o")] = "."
    as_json: Annotated[bool, flag("Print a line of JSON for each picture.", "--json")] = False
    quiet: Annotated[bool, flag("Print the paths alone, and show no progress.", "--quiet", "-q")] = False
    no_metadata: Annotated[bool, flag("Leave the recipe out of the file.", "--no-metadata")] = False

    def file(self) -> Path | None:
        """The file that was asked for; None where it is a folder."""
        from limner.image import kind_of

        path = Path(self.output).expanduser()
        try:
            folder = path.is_dir() or self.output.endswith("/")
        except OSError as error:
            raise NotSaved(f"{path} cannot be written to: {error.strerror}") from error
        if folder or not re.fullmatch(r"\.[a-zA-Z]+\d?", path.suffix):  # v1.5 is a folder
            return None
        kind_of(path)  # refuses what is not written, before anything is painted
        return path

    def path(self, recipe: Recipe, alone: bool) -> Path:
        from limner.image import slug

        if file := self.file():
            return file if alone else file.with_stem(f"{file.stem}-{recipe.seed}")
        return Path(self.output).expanduser() / f"{slug(recipe.prompt)}-{recipe.seed}.png"

    def keep(self, finished: Sequence[Painted], model: Model, seconds: float, alone: bool) -> None:
        """Save a batch and say so, also of what was saved before a disk was full."""
        saved: list[tuple[Path, Painted]] = []
        try:
            for one in finished:
                saved.append((self.save(one, model, self.path(one.recipe, alone)), one))
        finally:
            for path, one in saved:
                self.tell(path, one, seconds)

    def save(self, one: Painted, model: Model, path: Path) -> Path:
        from limner.image import save_picture, to_pil
        from limner.provenance.metadata import Receipt, chunks

        parts = chunks(Receipt.of(one.recipe, model), words=not self.no_metadata)
        return save_picture(to_pil(one.picture), path, parts.png, parts.exif, parts.xmp)

    def tell(self, path: Path, one: Painted, seconds: float) -> None:
        many = one.recipe.best_of
        if self.as_json:
            recipe = one.recipe.model_dump(mode="json")
            told = json.dumps({"path": str(path), "seed": one.seed, "seconds": round(seconds, 3), "recipe": recipe})
        elif self.quiet:
            told = str(path)
        else:
            kept = f", the best of {many} is {one.seed}" if many > 1 else ""
            told = f"{path}  seed {one.recipe.seed}{kept}  {seconds:.1f} s"
        print(told, flush=True)


def paint(
    *prompts: Annotated[str, flag("What to paint; each is a picture, and - reads a line each from standard input.")],
    prompt: Annotated[list[str] | None, flag("The same, as a flag.", "--prompt", "-p")] = None,
    prompt_file: Annotated[Path | None, flag("A text file, a prompt a line.", "--prompt-file", "--from-file")] = None,
    count: Annotated[int, flag("Pictures of each prompt.", "--count", "--batch-count", "-b")] = 1,
    size: Annotated[str, flag("WIDTHxHEIGHT in pixels, or one number for both.", "--size")] = "",
    wishes: Wishes | None = None,
    wildcards: Annotated[Path | None, flag("A folder of .txt files for __name__ in prompts.", "--wildcards")] = None,
    repeat: Annotated[Path | None, flag("Repeat a picture's recipe; flags beside it change it.", "--from")] = None,
    out: Output | None = None,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
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
    fields = stored | _sides(size) | (wishes or Wishes()).fields()
    model, refiner, jobs = _jobs(texts, fields, count, device, wildcards)
    if receipt:
        _compare(receipt, model)
    alone = sum(many for _, many in jobs) == 1
    with interruptible() as check, Bar(jobs, out.quiet) as bar:
        for recipe, many in jobs:
            for finished, seconds in _batches(model, refiner, recipe, many, bar, check):
                out.keep(finished, model, seconds, alone)


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


def _sides(size: str) -> dict[str, int]:
    if not size:
        return {}
    found = re.fullmatch(r"(\d{1,6})(?:\s*[xX×*]\s*(\d{1,6}))?", size.strip())
    if not found:
        raise BadInput(f"--size should look like 128x128, not {size!r}")
    return {"width": int(found[1]), "height": int(found[2] or found[1])}


def _receipt(path: Path) -> Receipt:
    from limner.image import open_picture
    from limner.provenance.metadata import read_receipt

    return read_receipt(open_picture(path), path)


def _jobs(
    texts: list[str], fields: dict[str, Any], count: int, device: str, folder: Path | None
) -> tuple[Model, Model | None, list[tuple[Recipe, int]]]:
    """A recipe for each prompt and how often, checked whole: what is wrong is told before anything is loaded.

    A prompt with choices in it is a recipe for each picture, since each picture's seed chooses for itself.
    """
    from limner.recipe import Recipe

    seed = fields.pop("seed", -1)
    if seed < -1:
        raise BadInput(f"--seed should be 0 or more, or -1 for any, not {seed}")
    first = Recipe.of(fields | {"seed": max(0, seed)})
    if folder and not folder.is_dir():
        raise BadInput(f"--wildcards should be a folder, and {folder} is none")

    from limner.place import find_place
    from limner.tasks.paint import begin, load_for
    from limner.wildcards import expand

    model, refiner = load_for(first, find_place(cast(Any, device)))
    jobs: list[tuple[Recipe, int]] = []
    for text in texts or [fields["prompt"]]:
        own = secrets.randbelow(CHANCE) if seed == -1 else seed
        each = fields.get("best_of", 1)
        made = [expand(text, own + i * each, folder) if model.family.towers else text for i in range(count)]
        same = len(set(made)) == 1
        for i, prompt in enumerate(made[:1] if same else made):
            recipe = begin(model, **fields | {"prompt": prompt, "seed": own + i * each})
            jobs.append((recipe, count if same else 1))
            recipe.but(seed=recipe.seed + jobs[-1][1] * recipe.best_of - 1)  # the last seed is one, too
    return model, refiner, jobs


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


def _batches(
    model: Model, refiner: Model | None, recipe: Recipe, count: int, bar: Bar, check: Callable[[], None]
) -> Iterator[tuple[list[Painted], float]]:
    """What is finished with each batch, and the seconds that each of its pictures took."""
    from limner.tasks.paint import painting
    from limner.types import Step

    begun = time.monotonic()
    for event in painting(model, recipe, count, refiner):
        check()
        if isinstance(event, Step):
            bar.forward(recipe.prompt)
        elif event:
            bar.hide()
            yield event, (time.monotonic() - begun) / len(event)
            begun = time.monotonic()


class Bar:
    """A bar on standard error where that is a terminal; it steps aside for what is printed."""

    def __init__(self, jobs: Sequence[tuple[Recipe, int]], quiet: bool) -> None:
        from limner.tasks.paint import walks

        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            remaining = TimeRemainingColumn(compact=True)
            self._bar = Progress(
                *columns, remaining, console=Console(stderr=True), transient=True, redirect_stdout=False
            )
            self._bar.add_task("", total=sum(recipe.steps * len(walks(recipe, count)) for recipe, count in jobs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def forward(self, text: str) -> None:
        if self._bar:
            self._bar.start()
            self._bar.update(self._bar.task_ids[0], advance=1, description=text[:40])

    def hide(self) -> None:
        if self._bar:
            self._bar.stop()

"""What the commands that make pictures share: the flags of the recipe, the flags of the output, bar and loop."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from cyclopts import Parameter

from limner.cli.say import interruptible
from limner.errors import BadInput, NotSaved

if TYPE_CHECKING:
    from torch import Tensor

    from limner.pipeline import Model
    from limner.recipe import Recipe
    from limner.tasks.task import Painted

CHANCE = 2**32  # seeds drawn at random stay below this: ten digits are enough to type again


def flag(help: str, *names: str) -> Parameter:
    """The first long name and the letter stand in the help; the others are what people type from habit."""
    return Parameter(name=names, help=help)


Keeping = Literal["auto", "all", "one", "layer"]
Kept = Annotated[
    Keeping, flag("What stays in memory: all networks, one, or one layer; auto: what pays and fits.", "--keep")
]

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
    pag_scale: Annotated[
        Real, flag("How hard to turn away from what attention makes when it is perturbed; 0: not.", "--pag-scale")
    ] = None
    pag_interval: Annotated[
        tuple[float, float] | None, flag("Do so at the times between these two, 0 to 1.", "--pag-interval")
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
    subseed: Annotated[Number, flag("Another seed that the noise leans to.", "--subseed", "--variation-seed")] = None
    variation: Annotated[Real, flag("How far it leans, 0 to 1.", "--variation", "--subseed-strength")] = None
    toward: Annotated[Text, flag("Another prompt that the picture leans to.", "--toward")] = None
    blend: Annotated[Real, flag("How far it leans, 0 to 1.", "--blend")] = None
    region: Annotated[
        tuple[str, ...] | None, flag('Words for a part: "left:0-0.5 a cat", and " --no a dog" behind them.', "--region")
    ] = None
    control: Annotated[
        tuple[str, ...] | None,
        flag(
            "NET=PICTURE[:strength[:start-end]] of a ControlNet or T2I-Adapter; canny:PICTURE takes edges.", "--control"
        ),
    ] = None
    look: Annotated[
        tuple[str, ...] | None,
        flag("ADAPTER[,EYES]=PICTURE[:weight] of an IP-Adapter and its image encoder.", "--look"),
    ] = None
    window: Annotated[Number, flag("Side of the tiles of a large picture, in pixels.", "--window")] = None
    overlap: Annotated[Number, flag("Of those tiles, in pixels.", "--overlap")] = None
    effort: Annotated[Text, flag("exact, balanced or fast: steps that are not computed whole.", "--effort")] = None
    deep_every: Annotated[Number, flag("Ask deep layers at every so many late steps.", "--deep-every")] = None
    guide_every: Annotated[Number, flag("Compute guidance anew at every so many late steps.", "--guide-every")] = None
    ask_every: Annotated[Number, flag("Ask the denoiser at every so many late steps.", "--ask-every")] = None
    ask_apart: Annotated[Real, flag("The same by time: from one that is asked to the next, 0 to 1.", "--ask-apart")] = (
        None
    )
    late: Annotated[Real, flag("The time from which steps are late; 1 is noise.", "--late")] = None
    ease_in: Annotated[
        bool | None,
        Parameter(
            name="--ease-in",
            negative="--no-ease-in",
            help="Their first gaps are shorter: 2, 3, up to every; --no-ease-in: none.",
        ),
    ] = None
    few_keys: Annotated[
        Number, flag("Attend to every so many rows and columns of a large picture (UNets).", "--few-keys")
    ] = None
    precision: Annotated[
        Text,
        flag(
            "fp32, bf16, fp16, int8 or fp8; without it, the type of numbers that the machine is fast in.", "--precision"
        ),
    ] = None
    engine: Annotated[
        Text, flag("torch, recorded, compiled or openvino: what does the denoiser's arithmetic.", "--engine")
    ] = None
    best_of: Annotated[Number, flag("Try so many seeds for each picture, keep the best.", "--best-of")] = None
    best_after: Annotated[
        Real, flag("Compare them after this share of the steps, finish the best alone; 1: finish all.", "--best-after")
    ] = None
    model: Annotated[Text, flag("A name, a folder, or a .safetensors or .gguf file.", "--model", "-m")] = None

    def fields(self) -> dict[str, Any]:
        written = {"region": "regions", "control": "controls", "look": "picture_prompts"}
        given = {name: value for name, value in asdict(self).items() if value is not None and name not in written}
        read = {"region": _region, "control": _control, "look": _look}
        for name, field in written.items():
            if texts := getattr(self, name):
                given[field] = tuple(read[name](text) for text in texts)
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
        from limner.files import kind_of

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
        from limner.files import slug

        seed = f"{recipe.seed}-{recipe.subseed}" if recipe.variation else str(recipe.seed)
        if file := self.file():
            return file if alone else file.with_stem(f"{file.stem}-{seed}")
        words = slug(recipe.prompt) if recipe.prompt or not recipe.image else recipe.task
        stem = Path(recipe.image).stem.encode()[:120].decode(errors="ignore")  # a name has 255 bytes, words 48
        name = f"{stem}-{words}" if recipe.image else words
        return Path(self.output).expanduser() / f"{name}-{seed}.png"

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
        from limner.files import save_picture
        from limner.provenance.metadata import Receipt, chunks

        parts = chunks(Receipt.of(one.recipe, model), words=not self.no_metadata)
        return save_picture(one.image, path, parts.png, parts.exif, parts.xmp, icc=one.image.info.get("icc_profile"))

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


def _region(text: str) -> dict[str, str]:
    from limner.regions import parse_region

    words, _, away = text.partition(" --no ")
    box, prompt = parse_region(words)
    return {"box": box, "prompt": prompt, "negative": away.strip()}


def _control(text: str) -> dict[str, Any]:
    found = re.fullmatch(r"(.+?)=(.+?)(?::([\d.]+))?(?::([\d.]+)-([\d.]+))?", text)
    if not found:
        raise BadInput(f"--control should look like NET=PICTURE or NET=PICTURE:0.8:0-0.6, not {text!r}")
    given = dict(zip(("net", "image", "strength", "start", "end"), found.groups(), strict=True))
    return {name: value for name, value in given.items() if value is not None}


def _look(text: str) -> dict[str, Any]:
    found = re.fullmatch(r"([^,=]+)(?:,([^=]+))?=(.+?)(?::([\d.]+))?", text)
    if not found:
        raise BadInput(f"--look should look like ADAPTER=PICTURE or ADAPTER,EYES=PICTURE:0.6, not {text!r}")
    given = dict(zip(("net", "eyes", "image", "weight"), found.groups(), strict=True))
    return {name: value for name, value in given.items() if value is not None}


def sides(size: str) -> dict[str, int]:
    """--size as fields of the recipe."""
    if not size:
        return {}
    found = re.fullmatch(r"(\d{1,6})(?:\s*[xX×*]\s*(\d{1,6}))?", size.strip())
    if not found:
        raise BadInput(f"--size should look like 128x128, not {size!r}")
    return {"width": int(found[1]), "height": int(found[2] or found[1])}


def ready(fields: dict[str, Any], device: str, keep: str = "auto") -> tuple[Model, dict[str, Any]]:
    """The model of some fields, which are checked before it is loaded, and the fields with a seed drawn.

    keep: what is to stay in memory; auto leaves it to `afforded`, before the first walk.
    """
    from limner.recipe import Recipe

    seed = fields.get("seed", -1)
    if seed < -1:
        raise BadInput(f"--seed should be 0 or more, or -1 for any, not {seed}")
    fields = fields | {"seed": secrets.randbelow(CHANCE) if seed == -1 else seed}
    first = Recipe.of(fields)

    from limner.memory import hold_freed
    from limner.place import find_place
    from limner.tasks.task import load_for

    if keep != "layer":
        hold_freed()
    model = load_for(first, find_place(cast(Any, device), keep=cast(Any, "all" if keep == "auto" else keep)))
    return replace(model, adapts=keep == "auto"), fields


def fitted(model: Model, recipes: Sequence[Recipe]) -> Model:
    """The model as it fits into memory, told in a line where it keeps less than all; refused where it would not fit."""
    from limner.tasks.afford import afforded

    fits = afforded(model, recipes)
    if fits is not model:
        what = {"one": "one network at a time", "layer": "one layer at a time"}[fits.place.keep]
        print(f"memory is short: {what} is kept there, as with --keep {fits.place.keep}", file=sys.stderr)
    return fits


def keep_all(model: Model, recipes: Sequence[Recipe], out: Output) -> None:
    """Make the pictures of all recipes and save each batch as it is finished."""
    from limner.tasks.afford import sparing

    alone = len(recipes) == 1
    for finished, seconds in batches(sparing(model, recipes), recipes, out.quiet):
        out.keep(finished, model, seconds, alone)


def batches(model: Model, recipes: Sequence[Recipe], quiet: bool = False) -> Iterator[tuple[list[Painted], float]]:
    """What is finished with each batch, and the seconds that each of its pictures took; a bar and Ctrl-C meanwhile."""
    from limner.tasks.run import painting, walks
    from limner.types import Step

    model = fitted(model, recipes)
    with interruptible() as check, Bar(sum(walk.steps for walk in walks(recipes)), quiet) as bar:
        begun = time.monotonic()
        done = 0
        for event in painting(model, recipes):
            check()
            if isinstance(event, Step):
                bar.forward(recipes[min(done, len(recipes) - 1)].prompt)
            elif event:
                bar.hide()
                done += len(event)
                yield event, (time.monotonic() - begun) / len(event)
                begun = time.monotonic()


def film(
    model: Model,
    recipes: Sequence[Recipe],
    path: Path,
    rate: float,
    bits: int,
    said: str,
    quiet: bool,
    words: bool = True,
) -> None:
    """Make the pictures of all recipes, one after another, into a sequence, and tell how much it flickers.

    Numbered pictures carry each its own recipe, a film that of the first; words=False leaves them out.
    """
    from limner.film import Flicker, Told, write_sequence
    from limner.image import from_pil
    from limner.provenance.metadata import Receipt, chunks

    flicker = Flicker()

    def pictures() -> Iterator[Tensor]:
        for finished, _ in batches(model, recipes, quiet):
            for one in finished:
                frame = from_pil(one.image) if one.canvas else one.picture
                flicker.see(frame)
                yield frame

    def told(i: int) -> Told:
        parts = chunks(Receipt.of(recipes[i], model), words)
        return Told(said if words else "made by a trained model with Limner", parts.png, parts.exif, parts.xmp)

    first = told(0)
    packs = (first.comment, first.png, first.exif, first.xmp)
    for file in write_sequence(pictures(), path, rate, bits, *packs, each=told):
        print(file, flush=True)
    if not quiet:
        print(f"{len(recipes)} frames, seed {recipes[0].seed}, flicker {flicker.value:.3f}")


class Bar:
    """A bar on standard error where that is a terminal; it steps aside for what is printed."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            remaining = TimeRemainingColumn(compact=True)
            self._bar = Progress(
                *columns, remaining, console=Console(stderr=True), transient=True, redirect_stdout=False
            )
            self._bar.add_task("", total=steps)

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

"""`limner train`: from pictures with words to a model of one's own."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from limner.errors import BadInput

if TYPE_CHECKING:
    from limner.train.fit import Logged, Saved
    from limner.train.stages import Setup, Stage

app = App(name="train", help="Train a model, or a part of one, on pictures with words.")

Data = Annotated[Path, Parameter(help="A .tar shard, a folder of shards, or a folder of pictures with captions.")]
Out = Annotated[Path, Parameter(help="The folder of the run; a run that is there already goes on.")]
For = Annotated[str, Parameter(name="--for", help="How long, as in 90s, 40m, 2h; without it, the config's steps.")]
Config = Annotated[str, Parameter(help="A named config; `tiny` trains in seconds.")]
Set = Annotated[
    list[str] | None, Parameter(name="--set", help="A setting of the config, as key=value; repeat at will.")
]
Start = Annotated[Path | None, Parameter(help="Weights of the same network to go on from.")]
Base = Annotated[str, Parameter(help="The model that the other networks come from where OUT has none.")]
OnBad = Annotated[Literal["skip", "stop"], Parameter(help="What to do about a shard or picture that cannot be read.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to train.")]


@app.command
def autoencoder(
    *, data: Data, out: Out, for_: For = "", config: Config = "default", set_: Set = None, start: Start = None,
    on_bad: OnBad = "skip", device: Device = "auto",
) -> None:  # fmt: skip
    """Pictures to latents and back."""
    _train("autoencoder", for_, data=data, out=out, config=config, set_=set_, start=start, on_bad=on_bad, device=device)


@app.command
def text(
    *, data: Data, out: Out, for_: For = "", config: Config = "default", set_: Set = None, start: Start = None,
    phrases: Annotated[list[Path] | None, Parameter(help="More phrases: a text file or a WordNet folder.")] = None,
    teacher: Annotated[Path | None, Parameter(help="The teacher's folder; without it, the installed package.")] = None,
    on_bad: OnBad = "skip", device: Device = "auto",
) -> None:  # fmt: skip
    """A small text encoder that answers as a large one does."""
    more = {"phrases": tuple(phrases or ()), "teacher": teacher}
    _train(
        "text", for_, data=data, out=out, config=config, set_=set_, start=start, on_bad=on_bad, device=device, **more
    )


@app.command
def eye(
    *, data: Data, out: Out, for_: For = "", config: Config = "default", set_: Set = None, start: Start = None,
    judge: Annotated[bool, Parameter(negative="", help="Train the second eye, which only ever evaluates.")] = False,
    base: Base = "mini", on_bad: OnBad = "skip", device: Device = "auto",
) -> None:  # fmt: skip
    """Pictures and words in one space, for describing and reranking."""
    _train("judge" if judge else "eye", for_, data=data, out=out, config=config, set_=set_, start=start, base=base,
           on_bad=on_bad, device=device)  # fmt: skip


@app.command
def denoiser(
    *, data: Data, out: Out, for_: For = "", config: Config = "default", set_: Set = None, start: Start = None,
    base: Base = "mini", on_bad: OnBad = "skip", device: Device = "auto",
) -> None:  # fmt: skip
    """Words and noise to latents: the painter itself."""
    _train("denoiser", for_, data=data, out=out, config=config, set_=set_, start=start, base=base, on_bad=on_bad,
           device=device)  # fmt: skip


def _train(net: str, span: str, set_: list[str] | None, device: str, **asked: Any) -> None:
    seconds = to_seconds(span)  # before anything heavy, so that a slip is told at once
    from limner.config import parse_settings
    from limner.memory import hold_freed
    from limner.place import find_place
    from limner.train.stages import STAGES, Setup

    place = find_place(device)  # type: ignore[arg-type]
    hold_freed()
    setup = Setup(settings=parse_settings(set_ or []), seconds=seconds, place=place, **asked)
    _say(f"{net}: reading {setup.data} ...")
    follow(STAGES[net](setup), setup)


def to_seconds(span: str) -> float:
    """`90s`, `40m`, `2h`, `1h30m` in seconds; nothing is 0."""
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", span)
    if not parts:
        raise BadInput(f"--for {span!r} is not a length of time; it looks like 90s, 40m, 2h or 1h30m")
    return sum(float(number or 0) * unit for number, unit in zip(parts.groups(), (3600, 60, 1), strict=True))


def follow(stage: Stage, setup: Setup) -> None:
    """Consume the events of a run: a bar or lines for the person, a row each in metrics.jsonl, sheets now and then.

    The first Ctrl-C ends the step, saves and stops; a second one stops at once.
    """
    from limner.train.fit import Logged, Sampled, Saved
    from limner.train.stages import folder, run

    place = folder(stage, setup)
    place.mkdir(parents=True, exist_ok=True)
    for sentence in stage.skipped[:5]:
        _say(f"skipped: {sentence}")
    if len(stage.skipped) > 5:
        _say(f"skipped {len(stage.skipped) - 5} more")
    stopping = _interrupts()
    show, close = _bar() if sys.stderr.isatty() else (_line, lambda: None)
    done = False
    with (place / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for event in run(stage, setup, stopping):
            match event:
                case Logged():
                    show(event)
                    row = {"step": event.step, "seconds": round(event.seconds, 1), "rate": round(event.rate, 2)}
                    _write(log, row | {"lr": event.lr} | event.losses)
                case Sampled():
                    _sheet(stage, place, event.step, event.ema)
                case Saved():
                    done = event.done
                    _saved(stage, setup, place, event, lambda row: _write(log, row))
    close()
    if not done:
        _say(f"stopped and saved; the same command goes on from {place}")
        raise SystemExit(130)


def _interrupts() -> Callable[[], bool]:
    """Whether Ctrl-C was pressed since; pressed twice it does what it always does."""
    pressed: list[int] = []

    def note(number: int, _: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    return lambda: bool(pressed)


def _saved(stage: Stage, setup: Setup, place: Path, event: Saved, write: Callable[[dict[str, Any]], None]) -> None:
    if event.done:
        from limner.train.stages import averaged

        figures = stage.measure(averaged(stage, event.ema))
        write({"step": event.step, **figures})
        _sheet(stage, place, event.step, event.ema)
        told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        _say(f"done after {event.step} steps: {told}\n{setup.out / stage.net}.safetensors")


def _sheet(stage: Stage, place: Path, step: int, ema: Any) -> None:
    from limner.train.stages import averaged

    if stage.look is not None:
        stage.look(averaged(stage, ema)).save(place / f"sheet-{step:07d}.png")


def _write(log: Any, row: dict[str, Any]) -> None:
    log.write(json.dumps(row) + "\n")
    log.flush()


def _told(event: Logged) -> str:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in event.losses.items())
    return f"step {event.step}  {losses}  {event.rate:.0f}/s"


_last_line = 0.0


def _line(event: Logged) -> None:
    """Without a terminal: a line every half minute."""
    global _last_line
    if time.monotonic() - _last_line > 30:
        _last_line = time.monotonic()
        _say(f"{event.progress:6.1%}  {_told(event)}")


def _bar() -> tuple[Callable[[Logged], None], Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("starting", total=1.0)
    bar.start()
    return lambda event: bar.update(task, completed=event.progress, description=_told(event)), bar.stop


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)

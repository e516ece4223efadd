"""The process that paints: it claims jobs, paints those that go together in one batch, keeps the pictures, and tells.

    python -m limner.serve.worker --name w0 --database sqlite:///limner.db --folder pictures

Commands come on standard input and events go to standard output, a line of JSON each; `hand.py` is the other end. When
its input ends, so does the worker. What it held and did not finish, it gives back.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, cast

from torch import AcceleratorError

from limner.errors import BadInput, LimnerError
from limner.pipeline import Model
from limner.place import Place, find_place
from limner.recipe import Recipe, renewed
from limner.serve.capabilities import capabilities, networks
from limner.serve.files import Files
from limner.serve.making import out_of_memory, png, recipes_of, renamed, sentence_of
from limner.serve.previews import Previews, webp
from limner.serve.shelf import Event, Shelf, model_key, tidy
from limner.serve.store import Store
from limner.serve.tables import Job, NewPicture
from limner.tasks.run import BATCH, begin, painting, walks
from limner.tasks.task import Beside, Painted, fetch
from limner.types import Step

LEASE = 30.0  # seconds after which a job whose worker says nothing belongs to whoever claims it
BEAT = 5.0  # seconds between two renewals
POLL = 2.0  # seconds after which a worker looks for jobs though nobody woke it
GATHER = 0.03  # seconds that an idle worker gives others to order with who woke it: a full batch is faster
NOTE = 1.0  # seconds between two notes of a job's progress in the store, each of which is a commit
OFTEN = 0.25  # seconds between two previews at least
SHARE = 0.02  # of the time that previews may take
LATEST = 15.0  # seconds after the end of its input at which a worker ends in the middle of a step
EDGES = "canny:"  # before the picture of a control


class Stopped(Exception):
    """The worker was told to end."""


@dataclass(eq=False)
class Work:
    """A job that is being painted."""

    job: Job
    recipes: list[Recipe]  # a picture each
    said: Mapping[str, str]  # paths of this machine -> how the wishes name what is there
    pictures: dict[int, NewPicture] = field(default_factory=dict)
    live: bool = True  # still ours
    walked: int = 0  # steps, of all its pictures
    noted: float = field(default_factory=time.monotonic)  # when its progress was

    def step(self, pictures: int) -> int:
        """Count a step of some of its pictures; how many of the job's steps are done by that."""
        self.walked += pictures
        return min(self.job.steps, round(self.walked / max(1, self.steps) * self.job.steps))

    @cached_property
    def steps(self) -> int:
        """Of all its pictures and of all the seeds that each tries."""
        return sum(walk.steps * len(walk.recipes) for walk in walks(self.recipes))


Wanted = tuple[Work, int]  # a job and the number of one of its pictures


class Worker:
    """One place that paints for a store, until it is told to stop."""

    def __init__(
        self,
        name: str,
        store: Store,
        files: Files,
        say: Callable[[Event], None],
        place: Place | None = None,
        default: str = "mini",
        cache_models: int = 1,
        lease: float = LEASE,
        beat: float = BEAT,
        poll: float = POLL,
    ) -> None:
        self.name, self.store, self.files, self.say, self.default = name, store, files, say, default
        self.place = place or find_place()
        self.shelf = Shelf(self.place, cache_models, say)
        self.beside: tuple[Recipe, Beside] | None = None
        self._networks = networks()
        self._lease, self._beat, self._poll = lease, beat, poll
        self._stop, self._wake = threading.Event(), threading.Event()
        self._asked: set[str] = set()  # jobs to look up: cancelled, perhaps, or lost
        self._held: dict[str, Work | Job] = {}
        self._guard = threading.Lock()  # of the two
        self._due = 0.0  # when the next preview is

    # commands

    def listen(self, lines: Iterable[str]) -> None:
        """Obey commands until they end, and then stop."""
        for line in lines:
            try:
                command = json.loads(line)
            except ValueError:
                continue
            if isinstance(command, dict):
                self.obey(command)
        self.stop()

    def obey(self, command: Event) -> None:
        """From any thread."""
        if command.get("stop"):
            self._stop.set()
        if command.get("cancel"):
            with self._guard:
                self._asked.add(str(command["cancel"]))
        self._wake.set()

    def stop(self) -> None:
        """End after the present step; from any thread."""
        self._stop.set()
        self._wake.set()

    # the loop

    def run(self) -> None:
        """Tell what can be done, then paint what comes, until `stop`."""
        self._let_go(died=True)  # what an earlier process of this name left
        self.say({"event": "ready", "capabilities": capabilities(self.place, self.default, self._networks)})
        beats = threading.Thread(target=self._beats, daemon=True)
        beats.start()
        idle = False
        while not self._stop.is_set():
            self._wake.clear()
            try:
                jobs = self.store.claim(self.name, self._lease, BATCH)
                if jobs:
                    self.work(jobs)
                elif not idle:
                    idle = True
                    self._prepare()
                elif self._wake.wait(self._poll):
                    self._stop.wait(GATHER)
            except Stopped:
                break
            except AcceleratorError:  # a card that failed once fails for as long as a process lives
                raise
            except Exception:  # the database is away, or the disk is full: a worker outlives that
                traceback.print_exc()
                self._stop.wait(self._poll / 2)
        self._let_go()
        beats.join(self._beat)

    def _let_go(self, died: bool = False) -> None:
        try:
            self.store.give_back(self.name, died=died)
        except LimnerError:  # the lease will run out
            traceback.print_exc()

    def _prepare(self) -> None:
        """Load the default model while nobody waits, and walk one step, so that the first picture finds it warm."""
        try:
            model, previews = self.shelf(Recipe.of({"model": self.default}))
            side = model.family.sizes[0]
            for event in painting(model, begin(model, model=self.default, width=side, height=side, steps=1)):
                if isinstance(event, Step):
                    webp(previews(event.x0))
        except Exception as error:  # the job that asks for it will be told
            print(f"{self.default} is not ready: {error}", file=sys.stderr, flush=True)

    def _beats(self) -> None:
        """Renew the leases, and touch the files of unfinished jobs, which a sweep would take for lost."""
        while not self._stop.wait(self._beat):
            with self._guard:
                held = dict(self._held)
            if not held:
                continue
            jobs = {id: one.job if isinstance(one, Work) else one for id, one in held.items()}
            try:
                ours = self.store.renew(self.name, [(id, job.attempt) for id, job in jobs.items()], self._lease)
            except LimnerError:
                traceback.print_exc()
                continue
            with self._guard:
                self._asked |= held.keys() - set(ours)
            for work in held.values():
                for kept in list(work.pictures.values()) if isinstance(work, Work) else []:
                    with contextlib.suppress(OSError):
                        os.utime(self.files.path(kept.sha256))

    # one claim

    def work(self, jobs: Sequence[Job]) -> None:
        """Paint what was claimed; each job ends as done, failed or cancelled, or is no longer ours."""
        with self._guard:
            self._held = {job.id: job for job in jobs}
        try:
            works = [work for job in jobs if (work := self._begun(job))]
            for _, alike in itertools.groupby(works, key=lambda work: _alike(work.recipes[0])):
                self._paint(list(alike))
        finally:
            with self._guard:
                self._held.clear()
                self._asked.clear()

    def _begun(self, job: Job) -> Work | None:
        """A job with its recipes, or nothing where it was cancelled, or cannot be painted and has failed."""
        self._heed()
        if job.id not in self._held:
            return None
        said: dict[str, str] = {}
        try:
            wishes = self._found(job, said)
            model, _ = self._loaded(Recipe.of(wishes))
            work = Work(job, recipes_of(model, wishes, job.count), said)
        except Exception as error:
            self._fail(job, error, said)
            return None
        with self._guard:
            self._held[job.id] = work
        return work

    def _found(self, job: Job, said: dict[str, str]) -> dict[str, Any]:
        """The wishes with paths of this machine in place of names; `said` gets those names, by the paths."""
        wishes = {"model": self.default} | renewed(job.wishes)

        def put(fields: dict[str, Any], name: str, kind: str = "") -> None:
            value = fields.get(name)
            if value:
                fields[name] = self._network(kind, value) if kind else self._picture(job.owner, value)
                said.setdefault(fields[name], value)

        put(wishes, "image")
        put(wishes, "mask")
        put(wishes, "upscaler", "upscaler")
        if wishes.get("embeddings"):
            paths = {self._network("embedding", name): name for name in wishes["embeddings"]}
            wishes["embeddings"] = tuple(paths)
            said |= paths
        for listed, kinds in (("controls", {"net": "control"}), ("picture_prompts", ADAPTERS)):
            if listed in wishes:
                wishes[listed] = tuple(dict(one) for one in wishes[listed])
                for one in wishes[listed]:
                    put(one, "image")
                    for name, kind in kinds.items():
                        put(one, name, kind)
        return wishes

    def _picture(self, owner: str, name: str) -> str:
        """The file of "upload:u_..." or "picture:p_..." of an owner; what is neither stays, as "alpha" does."""
        before = EDGES if name.startswith(EDGES) else ""
        kind, colon, id = name.removeprefix(EDGES).partition(":")
        if not colon or kind not in ("upload", "picture"):
            return name
        row = self.store.upload(id) if kind == "upload" else self.store.picture(id)
        if row is None or row.owner != owner:
            raise BadInput(f"there is no {name} any more")
        return f"{before}{self.files.path(row.sha256)}"

    def _network(self, kind: str, name: str) -> str:
        return str(self._networks.get(kind, {}).get(name, name))

    def _paint(self, works: Sequence[Work]) -> None:
        """All pictures of works that go together; after an error one by one, so that it meets its own job alone."""
        alone = False
        while wanted := [(w, i) for w in works if w.live for i in range(w.job.count) if i not in w.pictures]:
            part = wanted[:1] if alone else wanted
            try:
                self._walk(part)
            except (Stopped, AcceleratorError):
                raise
            except Exception as error:
                if len(part) == 1:
                    work = part[0][0]
                    work.live = False
                    self._fail(work.job, error, work.said)
                alone = True
                if out_of_memory(error):
                    tidy()

    def _walk(self, wanted: Sequence[Wanted]) -> None:
        """Paint until all are finished, or until so many were cancelled that what is left is better begun anew."""
        recipes = [work.recipes[i] for work, i in wanted]
        model, previews = self._loaded(recipes[0])
        plan = walks(recipes)
        done, walked, at = 0, 0, 0
        events = painting(model, recipes, beside=self._fetched(model, recipes[0]))
        with contextlib.closing(cast(Any, events)):
            for event in events:
                group = [wanted[number] for number in plan[at].pictures]
                if isinstance(event, Step):
                    walked += 1
                    self._tell(group, walked, plan[at].steps, event, previews)
                    self._heed()
                    if not any(work.live for work, _ in group):
                        return
                    continue
                for (work, i), one in zip(wanted[done:], event, strict=False):
                    self._keep(work, i, one, model)
                done, walked, at = done + len(event), 0, at + 1
                self._heed()
                half = any(number >= done for walk in plan[:at] for number in walk.pictures)  # what tries would be lost
                if not half and not all(work.live for work, _ in wanted[done:]):
                    return

    def _loaded(self, recipe: Recipe) -> tuple[Model, Previews]:
        if self.beside and model_key(self.beside[0]) != model_key(recipe):
            self.beside = None  # it makes room for the model, too
        return self.shelf(recipe)

    def _fetched(self, model: Model, recipe: Recipe) -> Beside:
        """What a recipe names beside its model; the last is remembered for the next, which may name the same."""
        before, self.beside = self.beside, None
        self.beside = (recipe, fetch(recipe, model, before))
        return self.beside[1]

    def _tell(self, group: Sequence[Wanted], walked: int, steps: int, step: Step, previews: Previews) -> None:
        """A step of some pictures: an event for each job, a note now and then, a preview when it is time."""
        now = time.monotonic()
        for work, members in itertools.groupby(group, key=lambda one: one[0]):
            numbers = [i for _, i in members]
            if not work.live:
                continue
            done = work.step(len(numbers))
            told = {"event": "step", "job": work.job.id, "number": numbers[0], "i": min(walked, steps) - 1, "n": steps}
            self.say(told | {"t": round(step.t, 6), "steps_done": done, "steps": work.job.steps})
            if now - work.noted >= NOTE:
                work.noted = now
                with contextlib.suppress(LimnerError):
                    self.store.progress(work.job.id, work.job.attempt, done)
        watched = group[0][0].job.key is None  # somebody wants to see every step
        if watched or walked == 1 or now >= self._due:
            self._preview(group, walked, step, previews, watched)
            cost = time.monotonic() - now
            self._due = now + max(OFTEN, cost / SHARE)

    def _preview(
        self, group: Sequence[Wanted], walked: int, step: Step, previews: Previews, watched: bool = False
    ) -> None:
        """The estimates of a group; of one that is watched also the latents themselves, and when it is."""
        rows: dict[tuple[str, int], int] = {}
        for row, (work, i) in enumerate(group):
            if work.live:
                rows.setdefault((work.job.id, i), row)  # of several seeds the first is shown
        if not rows:
            return
        try:
            made = webp(previews(step.x0[list(rows.values())]))
            noisy = webp(previews(step.x[list(rows.values())])) if watched else made
        except Exception:  # a picture is worth more than its preview
            traceback.print_exc()
            return
        for (id, number), text, latents in zip(rows, made, noisy, strict=True):
            more = {"i": walked - 1, "t": round(step.t, 6), "noisy": latents} if watched else {}
            self.say({"event": "preview", "job": id, "number": number, "webp": text, **more})

    def _heed(self) -> None:
        """Between two steps: stop, and let go of what was cancelled or lost."""
        if self._stop.is_set():
            raise Stopped
        with self._guard:
            asked = self._asked & self._held.keys()
            self._asked.clear()
        for id in asked:
            try:
                now = self.store.job(id)
            except LimnerError:  # at the next step, then
                with self._guard:
                    self._asked.add(id)
                continue
            held = self._held[id]
            job = held.job if isinstance(held, Work) else held
            if now and (now.state, now.attempt, now.worker) == ("running", job.attempt, self.name):
                continue
            if isinstance(held, Work):
                held.live = False
            self._ended(id)
            if now and now.state == "cancelled":
                self.say({"event": "cancelled", "job": id})

    # ends

    def _keep(self, work: Work, number: int, one: Painted, model: Model) -> None:
        """Put a finished picture's file in its place, and the rows of its job when it was the last."""
        if not work.live:
            return
        try:
            own = renamed(one.recipe, work.said)
            image, data = png(one, own, model)
            digest = self.files.put(data)
            told = own.model_dump(mode="json")
            work.pictures[number] = NewPicture(number, digest, len(data), *image, own.prompt, own.seed, told)
            if len(work.pictures) == work.job.count:
                self._finish(work)
        except Exception as error:
            work.live = False
            self._fail(work.job, error, work.said)

    def _finish(self, work: Work) -> None:
        pictures = [work.pictures[i] for i in sorted(work.pictures)]
        ours = self.store.finish(work.job.id, work.job.attempt, self.name, pictures)
        work.live = False
        self._ended(work.job.id)
        if ours:
            self.say({"event": "done", "job": work.job.id, "pictures": [picture.id for picture in pictures]})
            return
        now = self.store.job(work.job.id)
        if now and now.state == "cancelled":
            self.say({"event": "cancelled", "job": work.job.id})

    def _fail(self, job: Job, error: Exception, said: Mapping[str, str]) -> None:
        """End a job by one sentence, without paths of this machine; the worker goes on."""
        sentence = sentence_of(error)
        for path, name in said.items():
            sentence = sentence.replace(path.removeprefix(EDGES), name.removeprefix(EDGES))
        if not isinstance(error, LimnerError):
            traceback.print_exception(error)
        try:
            ours = self.store.fail(job.id, job.attempt, self.name, sentence)
        except LimnerError:  # its lease will run out, and it is tried again
            traceback.print_exc()
            ours = False
        self._ended(job.id)
        if ours:
            self.say({"event": "failed", "job": job.id, "error": sentence})

    def _ended(self, id: str) -> None:
        with self._guard:
            self._held.pop(id, None)


ADAPTERS = {"net": "adapter", "eyes": "image encoder"}  # of picture prompts: the kind of each network they name


def _alike(recipe: Recipe) -> object:
    """What the jobs of one walk have in common beside what `walks` looks at: all of one key have it."""
    beside = (recipe.refiner, recipe.image, recipe.mask, recipe.upscaler, recipe.controls, recipe.picture_prompts)
    return model_key(recipe), beside


class Lines:
    """Events as lines of JSON on a stream, from any thread; when nobody reads any more, `gone` is called."""

    def __init__(self, stream: TextIO, gone: Callable[[], None] = lambda: None) -> None:
        self._stream, self.gone, self._turn = stream, gone, threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._turn:
            try:
                self._stream.write(json.dumps(event) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                self.gone()


def _own_output() -> TextIO:
    """Standard output for events alone: whatever else is printed goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


def _input(worker: Worker) -> None:
    """Obey standard input; after its end a step may take a while, but not for ever."""
    worker.listen(sys.stdin)
    time.sleep(LATEST)
    with contextlib.suppress(Exception):
        worker.store.give_back(worker.name)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `python -m limner.serve.worker`, which the server writes."""
    say = Lines(_own_output())
    told = _parser().parse_args(arguments)
    worker = Worker(
        told.name,
        Store(told.database),
        Files(told.folder),
        say,
        find_place(told.device, keep=told.keep),
        told.model,
        told.cache_models,
        told.lease,
        min(BEAT, told.lease / 4),
    )
    say.gone = worker.stop
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    threading.Thread(target=_input, args=(worker,), daemon=True).start()
    worker.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m limner.serve.worker", description="Paint for a server.")
    parser.add_argument("--name", required=True, help="under which it holds jobs; one process a name")
    parser.add_argument("--database", required=True, help="the URL of the jobs")
    parser.add_argument("--folder", required=True, type=Path, help="of the pictures' files")
    parser.add_argument("--model", default="mini", help="of jobs that name none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--keep", default="all", help="in memory: all networks, one at a time, or one layer")
    parser.add_argument("--cache-models", default=1, type=int, help="models that are kept loaded")
    parser.add_argument("--lease", default=LEASE, type=float, help="seconds that a job is held without a sign")
    return parser


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # the thread that reads standard input waits for a line, and would hold the interpreter up

"""The process that paints, on the tiny model: most of it in this process, its death in one of its own."""

import asyncio
import base64
import io
import os
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.serve.databases import hasty

from limner.errors import NotSaved
from limner.pipeline import Model, load
from limner.place import Place, computes_int8, find_place
from limner.provenance.metadata import is_marked, read_receipt
from limner.recipe import Recipe
from limner.serve import previews
from limner.serve import shelf as shelves
from limner.serve import worker as module
from limner.serve.admission import budget
from limner.serve.capabilities import capabilities
from limner.serve.config import Config
from limner.serve.files import Files
from limner.serve.hand import Hands
from limner.serve.making import NO_MEMORY, sentence_of
from limner.serve.previews import SIDE, Previews, linear_map, neighbours, shapes, webp
from limner.serve.shelf import Event, Shelf, model_key
from limner.serve.store import Store
from limner.serve.tables import Job
from limner.serve.wishes import key
from limner.serve.worker import Lines, Worker
from limner.tasks.run import begin, painting

pytestmark = pytest.mark.filterwarnings("ignore:.*word pieces.*")
PLACE = find_place("cpu")
SMALL = {"width": 64, "height": 64, "steps": 3}


class Bench:
    """A worker, its store and files, and what it said; it works in this thread, a claim at a time."""

    def __init__(self, folder: Path, model: Path, loaded: Model) -> None:
        self.store, self.files = hasty(Store(str(folder / "limner.db"))), Files(folder / "pictures")
        self.model, self.loaded, self.said = str(model), (loaded, Previews(loaded)), list[Event]()
        self.on: Callable[[Event], None] = lambda _: None  # may act in the midst of a walk
        self.worker = self.another("w")

    def another(self, name: str, **settings: Any) -> Worker:
        made = Worker(name, self.store, self.files, self._say, PLACE, self.model, **settings)
        made.shelf._models[model_key(Recipe(model=self.model))] = self.loaded
        return made

    def _say(self, event: Event) -> None:
        self.said.append(event)
        self.on(event)

    def add(self, prompt: str = "a red apple", owner: str = "ann", count: int = 1, **wishes: Any) -> Job:
        fields = SMALL | {"model": self.model, "prompt": prompt, "seed": 7} | wishes
        return self.store.add_job(owner, fields, count, key(fields), fields["steps"])

    def work(self, worker: Worker | None = None) -> list[Job]:
        """One claim, painted; the jobs as they are then."""
        worker = worker or self.worker
        claimed = self.store.claim(worker.name, 30.0)
        worker.work(claimed)
        return [self.job(job.id) for job in claimed]

    def job(self, id: str) -> Job:
        found = self.store.job(id)
        assert found is not None
        return found

    def pictures(self, job: Job) -> list[Image.Image]:
        made = self.store.pictures_of([job.id])[job.id]
        return [Image.open(io.BytesIO(self.files.read(picture.sha256))) for picture in made]

    def of(self, job: Job, kind: str) -> list[Event]:
        return [event for event in self.said if event.get("job") == job.id and event["event"] == kind]


@pytest.fixture
def bench(tmp_path: Path, tiny_folder: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LIMNER_MODELS", "")
    monkeypatch.setattr(module, "tidy", lambda: None)
    made = Bench(tmp_path, tiny_folder, tiny)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Model:
    return load(str(tiny_folder), PLACE)


def alone(model: Model, wishes: dict[str, Any], count: int = 1) -> list[np.ndarray[Any, Any]]:
    """What `painting` makes of wishes with nobody beside them."""
    events = painting(model, begin(model, **wishes), count)
    return [np.asarray(one.image) for event in events if isinstance(event, list) for one in event]


def near(found: list[Image.Image], wanted: list[np.ndarray[Any, Any]]) -> bool:
    """The same but for rounding: matrix products of other sizes add up in another order."""

    def laid(picture: Any) -> np.ndarray[Any, Any]:
        pixels = np.asarray(picture, np.float32)
        return np.concatenate([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3:]], -1)

    pairs = zip(found, wanted, strict=True)
    return len(found) == len(wanted) and all(np.abs(laid(a) - laid(b)).max() <= 1.5 for a, b in pairs)


def same(found: list[Image.Image], wanted: list[np.ndarray[Any, Any]]) -> bool:
    return len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_job_becomes_the_pictures_that_painting_makes(bench: Bench, tiny: Model):
    job = bench.add(count=3)
    (done,) = bench.work()
    assert (done.state, done.steps_done, done.attempt) == ("done", 3, 1)
    found = bench.pictures(job)
    assert same(found, alone(tiny, job.wishes, 3))
    rows = bench.store.pictures_of([job.id])[job.id]
    assert [(row.number, row.seed, row.width, row.height) for row in rows] == [(i, 7 + i, 64, 64) for i in range(3)]
    assert bench.of(job, "done")[0]["pictures"] == [row.id for row in rows]
    receipt = read_receipt(found[1], "it")
    assert receipt.recipe == begin(tiny, **job.wishes).but(seed=8) and receipt.weights
    assert Recipe.of(rows[1].recipe) == receipt.recipe and is_marked(found[1])


def test_jobs_of_several_owners_are_painted_together_and_unchanged(bench: Bench, tiny: Model):
    jobs = [
        bench.add("a red apple", "ann", seed=1),
        bench.add("a blue house", "bob", seed=2, count=2),
        bench.add("", "cid", seed=3),  # it walks unguided, and so by itself
        bench.add("a cat", "dan", seed=4, negative="a dog", style="pixel art"),
        bench.add("a cat", "eve", seed=4, steps=4),  # of another key
    ]
    assert [job.id for job in bench.work()] == [job.id for job in jobs[:4]]
    first = {event["job"]: n for n, event in enumerate(bench.said) if event["event"] == "done"}
    assert max(n for n, e in enumerate(bench.said) if e["event"] == "step" and e["job"] == jobs[1].id) > min(
        n for n, e in enumerate(bench.said) if e["event"] == "step" and e["job"] == jobs[0].id
    )
    assert len(first) == 4
    assert [job.state for job in bench.work()] == ["done"]
    for job in jobs:
        assert near(bench.pictures(job), alone(tiny, job.wishes, job.count)), job.wishes["prompt"]


def test_the_best_of_several_seeds_is_kept_in_a_batch_too(bench: Bench, tiny: Model):
    job = bench.add(count=2, best_of=5)
    assert [done.state for done in bench.work()] == ["done"]
    assert same(bench.pictures(job), alone(tiny, job.wishes, 2))
    assert [event["steps_done"] for event in bench.of(job, "step")] == [2, 2, 2, 3, 3]


def test_steps_and_previews_are_told(bench: Bench):
    job = bench.add(count=2)
    bench.work()
    steps = bench.of(job, "step")
    assert [(e["i"], e["n"], e["steps_done"]) for e in steps] == [(0, 3, 1), (1, 3, 2), (2, 3, 3)]
    assert [e["number"] for e in bench.of(job, "preview")[:2]] == [0, 1]
    kinds = [event["event"] for event in bench.said if event.get("job") == job.id]
    assert kinds[:3] == ["step", "preview", "preview"]  # after the first step, one for each picture
    image = Image.open(io.BytesIO(base64.b64decode(bench.of(job, "preview")[1]["webp"])))
    assert (image.format, image.size) == ("WEBP", (SIDE, SIDE))


def test_every_step_of_a_job_that_is_watched_is_shown_with_its_latents(bench: Bench):
    job = bench.store.add_job("ann", SMALL | {"prompt": "a cat"}, 1, None, 3)
    bench.work()
    shown = bench.of(job, "preview")
    assert [(event["i"], event["t"]) for event in shown] == [(0, 0.666667), (1, 0.333333), (2, 0.0)]
    assert all(event["noisy"] != event["webp"] for event in shown[:2])


@pytest.mark.parametrize("step", [0, 1])
def test_a_cancelled_job_stops_within_a_step(bench: Bench, step: int):
    job = bench.add(steps=8)

    def cancel(event: Event) -> None:
        if event["event"] == "step" and event["i"] == step:
            assert bench.store.cancel(job.id, "ann")
            bench.worker.obey({"cancel": job.id})

    bench.on = cancel
    assert [each.state for each in bench.work()] == ["cancelled"]
    assert len(bench.of(job, "step")) == step + 1
    assert len(bench.of(job, "cancelled")) == 1 and not bench.of(job, "done")
    assert not bench.pictures(job)


def test_one_cancelled_of_a_batch_leaves_the_others_as_they_are(bench: Bench, tiny: Model):
    first, second = bench.add("a cat", "ann", steps=5), bench.add("a dog", "bob", steps=5)

    def cancel(event: Event) -> None:
        if event["event"] == "step" and event["job"] == second.id and event["i"] == 1:
            bench.store.cancel(first.id, "ann")
            bench.worker.obey({"cancel": first.id})

    bench.on = cancel
    assert [job.state for job in bench.work()] == ["cancelled", "done"]
    assert len(bench.of(first, "step")) == 2 and len(bench.of(second, "step")) == 5
    assert near(bench.pictures(second), alone(tiny, second.wishes))


def test_a_command_alone_cancels_nothing(bench: Bench):
    job = bench.add()
    bench.on = lambda event: bench.worker.obey({"cancel": job.id}) if event["event"] == "step" else None
    assert [each.state for each in bench.work()] == ["done"]


def test_a_job_that_was_lost_is_dropped_without_a_trace(bench: Bench):
    job = bench.add(steps=6)
    thief = bench.another("thief")

    def steal(event: Event) -> None:
        if event["event"] == "step" and event["i"] == 1:
            bench.store.give_back("w")
            assert [each.id for each in bench.store.claim("thief", 30.0)] == [job.id]
            bench.worker.obey({"cancel": job.id})

    bench.on = steal
    bench.work()
    assert {event["event"] for event in bench.said if event.get("job") == job.id} == {"step", "preview"}
    bench.on = lambda _: None
    thief.work([bench.job(job.id)])
    assert bench.job(job.id).state == "done" and len(bench.pictures(job)) == 1


def test_an_old_attempt_finishes_nothing(bench: Bench):
    """Who lost a job without knowing ends its walk, and the store refuses its pictures."""
    job = bench.add(steps=2)

    def steal(event: Event) -> None:
        if event["event"] == "step" and event["i"] == 1 and bench.job(job.id).attempt == 1:
            bench.store.give_back("w")
            bench.store.claim("thief", 30.0)

    bench.on = steal
    bench.work()
    assert (bench.job(job.id).state, bench.job(job.id).worker) == ("running", "thief")
    assert not bench.of(job, "done") and not bench.pictures(job)


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"model": "nonesuch"}, "no model is called 'nonesuch': There are: mini."),
        ({"width": 65}, "mini cannot paint 65x64"),
        ({"style": "cubist"}, "no style is called 'cubist'"),
        ({"prompt": "<lora:x:1>", "syntax": "a1111"}, "LoRA"),
        ({"task": "edit", "image": "upload:u_0000000000000000"}, "there is no upload:u_0000000000000000 any more"),
        ({"sampler": "nosuch"}, "no sampler is called 'nosuch'"),
    ],
)
def test_what_cannot_be_painted_fails_in_a_sentence_and_the_worker_lives_on(
    bench: Bench, wishes: dict[str, Any], sentence: str
):
    bad, good = bench.add(**wishes), bench.add(seed=9)
    ended = bench.work()
    ended += bench.work() if len(ended) == 1 else []
    assert [job.state for job in ended] == ["failed", "done"]
    assert sentence in ended[0].error and "\n" not in ended[0].error
    assert bench.of(bad, "failed")[0]["error"] == ended[0].error
    assert bench.pictures(good)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), NO_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), NO_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), NO_MEMORY),
        (ZeroDivisionError("of two\nlines"), "an error inside: ZeroDivisionError: of two"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_error_inside_fails_its_own_job_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
):
    """A batch that meets it is painted again one by one, so that it finds its own job."""
    real = painting

    def faulty(model: Model, recipes: list[Recipe], **more: Any) -> Any:
        if any(recipe.prompt == "a dog" for recipe in recipes):
            raise error
        return real(model, recipes, **more)

    monkeypatch.setattr(module, "painting", faulty)
    jobs = [bench.add(prompt, owner) for prompt, owner in (("a cat", "ann"), ("a dog", "bob"), ("a sword", "cid"))]
    ended = bench.work()
    assert [job.id for job in ended] == [job.id for job in jobs]
    assert [job.state for job in ended] == ["done", "failed", "done"]
    assert ended[1].error == sentence == sentence_of(error)


def test_a_full_disk_fails_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def full(_: bytes) -> str:
        raise NotSaved("the picture could not be written: No space left on device")

    monkeypatch.setattr(bench.files, "put", full)
    bench.add()
    (job,) = bench.work()
    assert (job.state, job.error) == ("failed", "the picture could not be written: No space left on device")


@pytest.mark.parametrize(("most", "loads"), [(1, "abaca"), (2, "abc")])
def test_as_many_models_are_kept_as_the_limit_says(tiny: Model, monkeypatch: pytest.MonkeyPatch, most: int, loads: str):
    alive: list[weakref.ref[Model]] = []

    def loaded(recipe: Recipe, place: Any) -> Model:
        assert sum(one() is not None for one in alive) < most  # one went before this one comes
        model = replace(tiny, files=())
        alive.append(weakref.ref(model))
        return model

    said: list[Event] = []
    monkeypatch.setattr(shelves, "load_for", loaded)
    monkeypatch.setattr(shelves, "Previews", lambda _: None)
    monkeypatch.setattr(shelves, "tidy", lambda: None)  # which looks at every object there is
    shelf = Shelf(PLACE, most, said.append)
    for name in "abaca":  # with room for two, the one used longest ago goes
        shelf(Recipe(model=name))
    assert "".join(event["model"] for event in said if event["event"] == "loading") == loads
    assert len(shelf) == most
    shelf.clear()
    assert not any(one() for one in alive)


def test_a_model_that_does_not_load_is_told_and_the_next_one_loads(bench: Bench):
    bench.add(model="nonesuch")
    bench.work()
    assert [event["event"] for event in bench.said] == ["loading", "loaded", "failed"]


def test_a_picture_of_the_owner_is_where_a_job_begins(bench: Bench, tiny: Model, tmp_path: Path):
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 30, 30, 255)).save(file, "PNG")
    upload = bench.store.add_upload("ann", bench.files.put(file.getvalue()), len(file.getvalue()), "image/png")
    name = f"upload:{upload.id}"
    wishes = {"model": bench.model, "task": "edit", "image": name, "prompt": "a cat", "seed": 1, "steps": 4}
    mine = bench.store.add_job("ann", wishes, 1, None, 4)
    theirs = bench.store.add_job("bob", wishes, 1, None, 4)
    bench.work(), bench.work()
    assert bench.job(theirs.id).error == f"there is no {name} any more"
    (picture,) = bench.store.pictures_of([mine.id])[mine.id]
    path = str(bench.files.path(upload.sha256))
    assert same(bench.pictures(mine), alone(tiny, wishes | {"image": path}))
    assert picture.recipe["image"] == name and picture.recipe["image_sha256"] == upload.sha256
    assert str(tmp_path) not in str({**picture.recipe, "model": ""})
    again = bench.store.add_job("ann", wishes | {"image": f"picture:{picture.id}", "mask": name}, 1, None, 4)
    bench.work()
    assert bench.job(again.id).state == "done"


def test_a_sentence_tells_no_path_of_this_machine(bench: Bench):
    upload = bench.store.add_upload("ann", bench.files.put(b"no picture"), 10, "image/png")
    job = bench.add(task="edit", image=f"upload:{upload.id}")
    bench.work()
    assert bench.job(job.id).error.startswith(f"upload:{upload.id} cannot be read")


def test_it_runs_until_it_is_told_to_stop_and_gives_back_what_it_holds(bench: Bench):
    left = bench.add(steps=9, seed=1)
    bench.store.claim("w", 30.0)  # by an earlier process of this name, which died
    right = bench.add(steps=2, seed=2)

    def stop(event: Event) -> None:
        if event["event"] == "done":
            bench.on = lambda event: bench.worker.stop() if event["event"] == "step" else None

    bench.on = stop
    runs = threading.Thread(target=bench.worker.run)
    runs.start()
    runs.join(20)
    assert not runs.is_alive()
    assert bench.said[0]["event"] == "ready"
    assert (bench.job(left.id).state, bench.job(right.id).state) == ("done", "queued")
    assert (bench.job(left.id).attempt, bench.job(left.id).returned) == (2, 0)  # a death counts
    assert (bench.job(right.id).attempt, bench.job(right.id).returned) == (1, 1)  # a good end does not


def test_a_long_job_is_held_on_to(bench: Bench):
    worker = bench.another("slow", lease=0.3, beat=0.05)
    job = bench.add(steps=4)
    bench.on = lambda event: threading.Event().wait(0.2) if event["event"] == "step" else None
    beats = threading.Thread(target=worker._beats)
    beats.start()
    claimed = bench.store.claim("slow", 0.3)
    worker.work(claimed)
    worker.stop()
    beats.join(5)
    assert bench.job(job.id).state == "done" and bench.job(job.id).attempt == 1


def test_capabilities_tell_models_samplers_and_that_nothing_is_checked(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    told: list[Event] = []
    bench.on = told.append
    bench.worker.stop()
    bench.worker.run()
    able = told[0]["capabilities"]
    models = {model["name"]: model for model in able["models"]}
    assert set(models) == {bench.model, "mini"} and able["default"] == bench.model
    assert models["mini"]["defaults"] == {
        "width": 128, "height": 128, "steps": 24, "sampler": "euler_ancestral", "schedule": "uniform",
        "cfg_scale": 5.0, "cfg_interval": [0.1, 1.0], "pag_scale": 1.5, "pag_interval": [0.7, 1.0],
    }  # fmt: skip
    mini = models["mini"]
    assert (mini["sizes"], mini["multiple"], mini["alpha"], "pixel art" in mini["styles"]) == (
        [64, 512],
        16,
        True,
        True,
    )
    assert {"paint", "edit", "inpaint", "outpaint", "upscale", "tile"} == set(mini["tasks"])
    assert able["efforts"]["balanced"]["ask_apart"] > 0 and "fp32" in able["precisions"]
    euler = next(sampler for sampler in able["samplers"] if sampler["name"] == "euler_ancestral")
    assert "k_euler_a" in euler["aliases"] and "karras" in {schedule["name"] for schedule in able["schedules"]}
    assert able["checks"]["safety"] == "none" and able["device"] == "cpu" and able["marks"]


def test_networks_beside_models_are_called_by_name(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
):
    (tmp_path / "m" / "controlnet").mkdir(parents=True)
    (tmp_path / "m" / "vae").mkdir()
    file = tmp_path / "m" / "controlnet" / "lines.safetensors"
    file.write_bytes(b"")
    shutil.copy(tiny_folder / "autoencoder.safetensors", tmp_path / "m" / "vae" / "sharp.safetensors")
    monkeypatch.setenv("LIMNER_MODELS", str(tmp_path / "m"))
    worker = bench.another("other")
    wishes = {"controls": [{"net": "lines", "image": "canny:upload:x"}, {"net": "depth", "image": "y"}]}
    bench.store.upload = lambda _: bench.store.add_upload("ann", "0" * 64, 1, "image/png")  # type: ignore[method-assign]
    job = bench.add(**wishes)
    said: dict[str, str] = {}
    found = worker._found(job, said)
    assert [one["net"] for one in found["controls"]] == [str(file), "depth"]
    assert found["controls"][0]["image"] == f"canny:{bench.files.path('0' * 64)}"
    assert said[str(file)] == "lines"
    worker.stop()
    worker.run()
    able = next(event for event in bench.said if event["event"] == "ready")["capabilities"]
    assert able["networks"] == {"control": ["lines"], "part": ["sharp"]}


def test_a_drawn_map_shows_what_the_decoder_would(tiny: Model):
    """The shipped model, whose encoder knows its latents: the map explains most of what its decoder paints."""
    mini = load("mini", PLACE)
    drawn = shapes(2, 128, clear=True, seed=5)
    z = mini.to_latent(drawn)
    shown, decoded = Previews(mini)(z), mini.to_image(z)
    left = (shown - decoded).square().sum() / (decoded - decoded.mean((2, 3), keepdim=True)).square().sum()
    assert shown.shape == (2, 4, 128, 128) and float(left) < 0.2
    assert bool((shown[:, :3] <= shown[:, 3:]).all())


def test_previews_fall_back_to_the_decoder_of_small_latents(tiny: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(previews, "GOOD", 1.1)
    assert linear_map(tiny) is None
    z = torch.randn(3, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    shown = Previews(tiny)(z)
    assert shown.shape == (3, 4, 64, 128)
    assert len(webp(shown)) == 3
    assert neighbours(z).shape == (3 * 8 * 16, 9 * 8 + 1)


def test_events_are_lines_and_a_closed_end_stops_the_worker():
    gone: list[bool] = []
    stream = io.StringIO()
    say = Lines(stream, lambda: gone.append(True))
    say({"event": "step", "job": "j\n"})
    assert stream.getvalue() == '{"event": "step", "job": "j\\n"}\n' and not gone
    stream.close()
    say({"event": "step"})
    assert gone


def test_a_killed_worker_is_started_again_and_the_job_finishes_once(bench: Bench, tiny: Model):
    """The real process: SIGKILL in the midst of a walk, and the end of its input once it is done."""
    database, folder = f"sqlite:///{bench.store.engine.url.database}", str(bench.files.folder)
    line = [sys.executable, "-m", "limner.serve.worker", "--name", "real", "--database", database, "--folder", folder]
    hands = Hands({"real": [*line, "--model", bench.model, "--device", "cpu"]})
    job = bench.add(steps=60)
    killed: list[int] = []

    async def scene() -> None:
        with hands.subscribe() as events:
            hands.start()
            async for event in events:
                if event["event"] == "preview" and event["job"] == job.id and not killed and hands.each[0].pid:
                    killed.append(hands.each[0].pid)
                    os.kill(killed[0], signal.SIGKILL)
                if event["event"] == "done":
                    break
        await hands.stop()

    asyncio.run(asyncio.wait_for(scene(), 90))
    done = bench.job(job.id)
    assert (done.state, done.attempt) == ("done", 2) and killed
    (found,), (wanted,) = bench.pictures(job), alone(tiny, job.wishes)
    assert np.abs(np.asarray(found).astype(int) - wanted).max() <= 1  # other threads sum in another order
    assert len(list(bench.files.folder.rglob("*/*"))) == 1  # and nothing half-written


def test_a_worker_tells_the_memory_of_a_device_that_has_its_own(monkeypatch: pytest.MonkeyPatch):
    assert "memory" not in capabilities(PLACE, "mini", {})
    card = SimpleNamespace(total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _=None: card)
    place = Place(torch.device("cuda"), torch.float16, "a test")
    known = capabilities(place, "mini", {})
    assert known["precisions"][-1] == "fp8" and known["engines"][:2] == ("torch", "recorded")
    assert known["memory"] == 80 * 2**30 and budget(Config(), known) == int(0.8 * 80 * 2**30)


@pytest.mark.skipif(not computes_int8(), reason="oneDNN has no products of 8 bits here")
def test_a_job_is_painted_in_the_precision_that_it_names(bench: Bench):
    jobs = [bench.add(), bench.add(precision="int8"), bench.add(precision="fp16")]
    while any(bench.job(job.id).state == "queued" for job in jobs):
        bench.work()
    own, small, never = (bench.job(job.id) for job in jobs)
    assert (own.state, small.state, never.state) == ("done", "done", "failed")
    assert "cpu cannot compute in fp16 here; it can in" in never.error
    assert bench.pictures(own)[0].tobytes() != bench.pictures(small)[0].tobytes()


def test_a_card_that_failed_ends_the_process_and_the_next_paints_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    job = bench.add()
    with monkeypatch.context() as card, pytest.raises(torch.AcceleratorError):
        card.setattr(module, "painting", broken)
        bench.worker.run()
    assert bench.job(job.id).state == "running"  # nobody said that it failed
    after = bench.another("w")
    bench.on = lambda event: after.stop() if event["event"] == "done" else None
    after.run()
    assert (bench.job(job.id).state, bench.job(job.id).attempt) == ("done", 2)

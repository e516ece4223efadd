"""What a job would take is told before it is taken: estimates against the painter's rules, and against a process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limner.families import FAMILIES
from limner.memory import TILE, TILED, machine
from limner.place import find_place
from limner.recipe import Recipe
from limner.serve import admission
from limner.serve.admission import affordable, budget, canvas, estimate, room, soon
from limner.serve.config import Config
from limner.serve.seams import Refused
from limner.tasks import run, task

GB = 10**9
KNOWN = {"device": "cpu", "dtype": "float32", "models": [{"name": "refiner", "parameters": 3e9}]}
MINI = {"name": "mini", "family": "mini", "sizes": [64, 512], "multiple": 16, "parameters": 5.4e7,
        "defaults": {"width": 128, "height": 128}}  # fmt: skip
SD15 = {"name": "sd15", "family": "sd15", "sizes": [256, 2048], "multiple": 8, "parameters": 1.1e9,
        "defaults": {"width": 512, "height": 512}}  # fmt: skip
SIDES = st.integers(1, 2**16)


def status(config: Config, wishes: dict[str, Any], model: dict[str, Any] = MINI, start: Any = None) -> int:
    try:
        affordable(wishes, model, KNOWN, config, start)
    except Refused as refused:
        return refused.status
    return 202


def test_the_rules_are_the_painter_s():
    assert (admission.BATCH, admission.BATCH_PIXELS) == (run.BATCH, run.BATCH_PIXELS)
    assert admission.MOST == task.MOST
    assert set(admission.PARAMETERS) <= set(FAMILIES)  # an example of the docs may have added one
    place = find_place("cpu")
    told = {"device": str(place.device), "dtype": str(place.dtype).removeprefix("torch.")}
    assert admission._one_by_one(told) == place.one_by_one


@settings(max_examples=150)
@given(
    wishes=st.fixed_dictionaries(
        {"width": SIDES, "height": SIDES},
        optional={"hires": st.floats(1, 8), "best_of": st.integers(1, 64), "prompt": st.just("a cat"),
                  "task": st.sampled_from(["paint", "tile"])},
    ),
    memory=st.integers(1, 64).map(lambda n: n * GB),
    others=st.integers(0, 40),
    model=st.sampled_from([MINI, SD15]),
)  # fmt: skip
def test_nothing_that_is_admitted_exceeds_the_budget(
    wishes: dict[str, Any], memory: int, others: int, model: dict[str, Any]
):
    """With whatever others of the same kind the worker paints it: the walks of `tasks.run`, at the measured bytes."""
    if status(Config(memory=memory), wishes, model) != 202:
        return
    recipe = Recipe.of(wishes | {"seed": 1})
    measured = (470, 470) if model is MINI else (2681, 4434)  # bytes a pixel: the walk, the autoencoder
    area = recipe.width * recipe.height * recipe.hires**2
    decoded = area if area <= TILED else TILE**2
    weights = 4 * model["parameters"]
    for walk in run.walks([recipe.but(seed=i) for i in range(1 + others)]):
        group = walk.recipes
        walked = area if max(recipe.width, recipe.height) * recipe.hires <= model["sizes"][1] else 0  # else in windows
        work = len(group) * max(measured[0] * walked, measured[1] * decoded)
        pictures = len(group) * area * (16 + 16 + 4 + 4)  # made, brought back, as a picture, as a file
        assert 500 * 2**20 + weights + work + pictures <= memory


@settings(max_examples=100)
@given(
    wishes=st.fixed_dictionaries(
        {"width": st.integers(16, 4096), "height": st.integers(16, 4096)},
        optional={"task": st.sampled_from(["paint", "tile", "edit", "upscale", "outpaint"]), "hires": st.floats(1, 4),
                  "scale": st.floats(1, 8), "extend": st.tuples(*[st.integers(0, 512)] * 4)},
    ),
    start=st.tuples(st.integers(16, 4096), st.integers(16, 4096)),
    more=st.sampled_from(["refiner", "controls", "parts", "upscaler"]),
)  # fmt: skip
@example(wishes={"width": 16, "height": 16, "task": "edit"}, start=(16, 681), more="refiner")
def test_more_never_costs_less(wishes: dict[str, Any], start: tuple[int, int], more: str):
    before = estimate(wishes, SD15, KNOWN, start)
    added = {"refiner": "refiner", "controls": [{"net": "x"}], "parts": ["x"], "upscaler": "x"}[more]
    assert estimate(wishes | {more: added}, SD15, KNOWN, start) > before
    assert before <= estimate(wishes, SD15, KNOWN, None) if wishes.get("task") in admission.MASKED else True
    assert before > 4 * SD15["parameters"]


@pytest.mark.parametrize(
    ("wishes", "start", "size"),
    [
        ({}, None, (512, 512)),
        ({"width": 640, "height": 384}, None, (640, 384)),
        ({"width": 513, "height": 1}, None, (520, 8)),
        ({"width": 512, "height": 512, "hires": 2.0}, None, (1024, 1024)),
        ({"task": "edit"}, (700, 500), (704, 504)),
        ({"task": "edit"}, (100, 50), (256, 256)),  # enlarged to what the family paints
        ({"task": "edit"}, None, (4096, 4096)),  # nobody looked
        ({"task": "inpaint", "only_masked": True}, (300, 300), (512, 512)),
        ({"task": "outpaint", "extend": (64, 0, 0, 128)}, (512, 512), (576, 640)),
        ({"task": "upscale"}, (512, 512), (1024, 1024)),
        ({"task": "upscale", "scale": 4.0}, (512, 256), (2048, 1024)),
    ],
)
def test_the_canvas_is_what_the_task_makes(wishes: dict[str, Any], start: Any, size: tuple[int, int]):
    assert canvas(wishes, SD15, start) == size


@pytest.mark.parametrize(
    ("wishes", "start", "code"),
    [
        ({"width": 128, "height": 128}, None, 202),
        ({"width": 512, "height": 512}, None, 202),
        ({"width": 100_000, "height": 10_000}, None, 422),  # what has killed servers
        ({"width": 65_536, "height": 65_536}, None, 422),
        ({"width": 8192, "height": 8193}, None, 422),
        ({"width": 8192, "height": 8192}, None, 413),
        ({"width": 512, "height": 512, "hires": 8.0}, None, 202),  # 4096 x 4096, in windows and tiles
        ({"task": "upscale", "scale": 8.0}, (2048, 2048), 422),
        ({"task": "edit"}, (4000, 4000), 202),
        ({"task": "outpaint", "extend": [65_536, 0, 0, 0]}, (2048, 2048), 422),
        ({"width": 128, "height": 128, "controls": [{"net": "x"}] * 200}, None, 413),
    ],
)
def test_sizes_are_refused_at_once(wishes: dict[str, Any], start: Any, code: int):
    began = time.perf_counter()
    assert status(Config(memory=5 * GB), wishes, MINI, start) == code
    assert time.perf_counter() - began < 0.05


def test_the_refusal_says_how_much():
    with pytest.raises(Refused, match=r"about 5\.\d GB of memory, and a job may take 1\.0 GB") as refused:
        affordable({"width": 128, "height": 128}, SD15, KNOWN, Config(memory=GB))
    assert (refused.value.status, refused.value.field) == (413, "width")


def test_rows_that_are_computed_alone_take_less():
    wishes = {"width": 512, "height": 512}
    half = KNOWN | {"dtype": "bfloat16"}
    assert estimate(wishes, MINI, half) < estimate(wishes, MINI, KNOWN)
    assert estimate(wishes, MINI, half | {"device": "cuda"}) > estimate(wishes, MINI, half)


def test_what_keeps_less_takes_less():
    wishes, told = {"width": 512, "height": 512}, SD15 | {"largest": 8.6e8}
    all_, one, layer = (estimate(wishes, told, KNOWN | {"keep": keep}) for keep in ("all", "one", "layer"))
    assert all_ - one == 4 * (SD15["parameters"] - told["largest"])
    assert layer < one - 3 * GB
    beside = {"refiner": "refiner"}  # of 3e9, which then is the largest
    assert estimate(wishes | beside, told, KNOWN | {"keep": "one"}) <= one + 4 * (3e9 - 8.6e8)


def test_nothing_known_is_no_reason_to_refuse():
    assert estimate({"width": 128, "height": 128}, {}, {}) < 3 * GB


def test_the_budget_is_the_operator_s_else_the_device_s_else_the_machine_s():
    assert budget(Config(memory=5), KNOWN) == 5
    assert budget(Config(), KNOWN | {"memory": 100}) == 80
    assert budget(Config(), KNOWN) == int(0.8 * machine())
    assert machine() > 2**28


PEAK = """
import json, sys, threading, time
from limner.tasks.run import begin, painting
import limner
def grown(): return int(open("/proc/self/statm").read().split()[1]) * 4096
peak, on = [0], [True]
def watch():
    while on: peak[0] = max(peak[0], grown()); time.sleep(0.002)
model, wishes, count = limner.load(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
threading.Thread(target=watch, daemon=True).start()
for _ in painting(model, begin(model, prompt="a red apple", steps=1, **wishes), count): pass
print(peak[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", [(64, 64), (256, 256), (512, 512), (512, 128)])
def test_a_process_stays_below_the_estimate(size: tuple[int, int]):
    wishes = dict(zip(("width", "height"), size, strict=True))
    said = subprocess.run(
        [sys.executable, "-c", PEAK, "mini", json.dumps(wishes), "8"], capture_output=True, text=True, check=True
    )
    assert int(said.stdout) < estimate(wishes, MINI, KNOWN)


# room in the queue


def waits(own: int, everybody: int, **settings: int) -> int:
    """Seconds that Retry-After says; 0: there is room."""
    try:
        room(own, everybody, Config(**settings))  # type: ignore[arg-type]
    except Refused as refused:
        assert refused.status == 429
        assert refused.retry_after
        return refused.retry_after
    return 0


def test_limits_of_the_queue():
    assert not waits(0, 0)
    assert not waits(99, 99)
    assert waits(100, 100)
    assert waits(0, 1000)
    assert not waits(0, 999)
    assert not waits(2, 2, max_queue_all=3)  # who is alone may use it all
    assert waits(3, 3, max_queue_all=3)


@given(greedy=st.integers(1, 30), most=st.integers(10, 200))
def test_who_comes_next_finds_a_place(greedy: int, most: int):
    """Owners take turns to fill the queue as far as they can; each gets about as much, and one more gets in."""
    held = [0] * greedy
    while True:
        before = list(held)
        for i in range(greedy):
            if not waits(held[i], sum(held), max_queue=most // 2, max_queue_all=most):
                held[i] += 1
        if held == before:
            break
    assert max(held) - min(held) <= 1
    assert sum(held) <= most
    if greedy < most // 2:
        assert not waits(0, sum(held), max_queue=most // 2, max_queue_all=most)


@pytest.mark.parametrize(("waiting", "seconds", "told"), [(0, 1.0, 1), (100, 1.0, 10), (1000, 9.0, 60), (3, 0.1, 1)])
def test_when_to_come_again(waiting: int, seconds: float, told: int):
    assert soon(waiting, seconds) == told

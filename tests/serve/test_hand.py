"""The server's side of a worker, with workers that are a few lines of Python."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from limner.serve import hand
from limner.serve.config import Config
from limner.serve.hand import BACKLOG, Event, Hands, Subscription, command

ECHO = """
import json, os, sys
def say(**event): print(json.dumps(event), flush=True)
say(event="ready", capabilities={"pid": os.getpid()})
for line in sys.stdin:
    told = json.loads(line)
    if told.get("stop"): break
    if "cancel" in told: say(event="cancelled", job=told["cancel"])
    if not told.get("wake"): continue
    say(event="step", job="j", i=0, n=2, number=0)
    say(event="preview", job="j", number=0, webp="")
"""


def hands_of(*programs: str) -> Hands:
    return Hands({f"w{i}": [sys.executable, "-c", program] for i, program in enumerate(programs)})


async def until(events: Subscription, kind: str) -> Event:
    async for event in events:
        if event["event"] == kind:
            return event
    raise AssertionError(f"the events ended before {kind}")


def play(hands: Hands, scene: Callable[[Subscription], Awaitable[Any]], seconds: float = 20) -> Any:
    """Start hands, listen, and stop them whatever happens."""

    async def whole() -> Any:
        with hands.subscribe() as events:
            hands.start()
            try:
                return await asyncio.wait_for(scene(events), seconds)
            finally:
                await hands.stop(grace=5)

    return asyncio.run(whole())


def test_a_worker_is_woken_told_of_cancels_and_stopped():
    hands = hands_of(ECHO)

    async def scene(events: Subscription) -> None:
        assert hands.states == {"w0": "stopped"} or hands.states == {"w0": "starting"}
        ready = await until(events, "ready")
        assert hands.ready and hands.capabilities == ready["capabilities"]
        hands.wake()
        await until(events, "preview")
        step, preview = hands.step("j"), hands.preview("j")
        assert step and preview and (step["n"], preview["worker"]) == (2, "w0")
        await asyncio.to_thread(hands.cancel, "j")  # from another thread
        assert (await until(events, "cancelled"))["job"] == "j"
        assert hands.preview("j") is None and hands.step("j") is None  # it runs no more

    play(hands, scene)
    assert hands.states == {"w0": "stopped"} and hands.each[0].starts == 1


def test_a_worker_that_is_killed_is_started_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hand, "FIRST_DELAY", 0.05)
    hands = hands_of(ECHO)

    async def scene(events: Subscription) -> tuple[int, int]:
        first = (await until(events, "ready"))["capabilities"]["pid"]
        hands.wake()
        await until(events, "preview")
        os.kill(first, signal.SIGKILL)
        assert (await until(events, "died"))["code"] == -signal.SIGKILL
        assert hands.preview("j") is None  # what it showed is gone with it
        return first, (await until(events, "ready"))["capabilities"]["pid"]

    first, second = play(hands, scene)
    assert first != second and hands.each[0].starts == 2


def test_one_that_always_dies_is_started_less_and_less_often(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    real = asyncio.wait_for

    async def no_wait(coming: Any, seconds: float | None = None) -> Any:
        if seconds is None or seconds > 30:
            return await real(coming, seconds)
        waited.append(seconds)
        coming.close()
        await asyncio.sleep(0)
        raise TimeoutError

    hands = Hands({"w": ["/no/such/program"]})

    async def scene() -> None:
        monkeypatch.setattr(asyncio, "wait_for", no_wait)
        hands.start()
        while len(waited) < 9:
            await asyncio.sleep(0)
        monkeypatch.undo()
        await hands.stop()

    asyncio.run(scene())
    assert waited[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert not hands.ready


def test_each_worker_hears_and_other_lines_are_passed_over():
    odd = "print('no event'); print('[]'); print('{}');" + ECHO
    hands = hands_of(ECHO, odd)

    async def scene(events: Subscription) -> set[str]:
        for _ in range(2):
            await until(events, "ready")
        hands.cancel("j_1")
        return {(await until(events, "cancelled"))["worker"] for _ in range(2)}

    assert play(hands, scene) == {"w0", "w1"}


def test_a_worker_that_does_not_stop_is_killed():
    deaf = "import signal,sys,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf += 'print(\'{"event": "ready", "capabilities": {}}\', flush=True)\ntime.sleep(60)'
    hands = hands_of(deaf)

    async def scene() -> None:
        with hands.subscribe() as events:
            hands.start()
            await until(events, "ready")
            process = hands.each[0].pid
            await hands.stop(grace=0.05)
            assert process and not _alive(process)

    asyncio.run(asyncio.wait_for(scene(), 20))


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_stopping_before_the_start_or_in_it_ends_everything():
    hands = hands_of(ECHO)

    async def scene() -> None:
        await hands.stop()
        hands.start()
        await hands.stop(grace=5)

    asyncio.run(asyncio.wait_for(scene(), 20))
    assert hands.states == {"w0": "stopped"} and not hands.each[0].pid


def test_who_is_slow_misses_passing_events_and_no_end():
    ear = Subscription(lambda _: None)
    for i in range(BACKLOG):
        ear.put({"event": "step", "job": "j", "i": i})
    ear.put({"event": "done", "job": "j"})
    ear.close()

    async def all_of_them() -> list[Event]:
        return [event async for event in ear]

    heard = asyncio.run(all_of_them())
    assert len(heard) == BACKLOG
    assert heard[0]["i"] == 1 and heard[-1]["event"] == "done"


def test_the_command_line_is_what_the_config_says(tmp_path: Any):
    config = Config(folder=tmp_path, model="tiny", device="cpu", cache_models=2, workers=3)
    told = command(config, "w")
    assert told[1:3] == ["-m", "limner.serve.worker"]
    assert dict(zip(told[3::2], told[4::2], strict=True)) == {
        "--name": "w",
        "--database": f"sqlite:///{tmp_path / 'limner.db'}",
        "--folder": str(tmp_path / "pictures"),
        "--model": "tiny",
        "--device": "cpu",
        "--cache-models": "2",
        "--keep": "all",
    }
    assert len({each.name for each in Hands.of(config).each}) == 3


def test_the_server_side_never_imports_torch():
    program = "import sys, limner.serve.hand, limner.serve.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

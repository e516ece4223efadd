"""The server's side of its workers: starts them, starts them again, tells them what to do, hears what they say.

A worker is a process that paints (`worker.py`); commands go to its standard input and events come from its standard
output, a line of JSON each. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from limner.serve.config import Config

Event = dict[str, Any]
LOG = logging.getLogger("limner.serve")
LINE = 2**24  # bytes of one event at most: capabilities of a thousand models fit
FIRST_DELAY, LAST_DELAY = 0.5, 30.0  # seconds before a worker that died is started again, doubled each time
STEADY = 60.0  # seconds after which a worker that dies had been in good health
GRACE = 10.0  # seconds that a worker has to finish its step, once it is told to stop
BACKLOG = 512  # events that wait for a subscriber at most
PASSING = ("step", "preview")  # of these a subscriber who is slow may miss some
ENDS = ("done", "failed", "cancelled")


class Hand:
    """One worker process, kept alive from `start` to `stop`; `hear` is called in the loop with each of its events.

    Beside the worker's own events there is {"event": "died", "code": ...}, with the process' exit status.
    """

    def __init__(self, name: str, command: Sequence[str], hear: Callable[[Event], None]) -> None:
        self.name, self._command, self._hear = name, tuple(command), hear
        self.state = "stopped"  # starting, loading, ready, stopped, dead
        self.starts = 0
        self._delay = FIRST_DELAY
        self._process: asyncio.subprocess.Process | None = None
        self._life: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the process that lives now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        """In a running loop; returns at once."""
        self._over.clear()
        self._life = asyncio.create_task(self._keep(), name=f"worker {self.name}")

    async def stop(self, grace: float = GRACE) -> None:
        """Ask the process to end after its step, and end it when it takes longer than `grace` seconds."""
        self._over.set()
        life, self._life = self._life, None
        if life is None:
            return
        for end, seconds in ((self._ask, grace), (self._terminate, 2.0), (self._kill, None)):
            end()
            if (await asyncio.wait({life}, timeout=seconds))[0]:
                break
        await life

    def _ask(self) -> None:
        self.tell({"stop": True})
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def tell(self, command: Event) -> None:
        """Send a command, from the loop's own thread; a process that is dead hears nothing."""
        process = self._process
        if process is None or process.returncode is not None or process.stdin is None or process.stdin.is_closing():
            return
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.write(json.dumps(command).encode() + b"\n")

    async def _keep(self) -> None:
        """Start the process, and again whenever it ends, a little later each time."""
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                code = await self._once()
            except OSError as error:
                LOG.error("worker %s cannot be started: %s", self.name, error)
                code = -1
            self.state = "stopped" if self._over.is_set() else "dead"
            self._hear({"event": "died", "worker": self.name, "code": code})
            if self._over.is_set():
                return
            if time.monotonic() - begun > STEADY:
                self._delay = FIRST_DELAY
            LOG.warning("worker %s ended with %s; it is started again in %g s", self.name, code, self._delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), self._delay)
            self._delay = min(2 * self._delay, LAST_DELAY)

    async def _once(self) -> int:
        """One life of the process; its exit status."""
        self.state, self.starts = "starting", self.starts + 1
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE, start_new_session=True
        )  # a session of its own: Ctrl-C in a terminal is for the server, which tells the worker
        assert process.stdin and process.stdout and process.stderr
        if self._over.is_set():  # while it was started
            process.stdin.close()
        await asyncio.gather(self._events(process.stdout), self._notes(process.stderr))
        return await process.wait()

    async def _events(self, lines: asyncio.StreamReader) -> None:
        async for line in _lines(lines):
            try:
                event = json.loads(line)
                kind = str(event["event"])
            except (ValueError, TypeError, KeyError):
                LOG.warning("worker %s said what is no event: %.200r", self.name, line)
                continue
            if kind in ("ready", "loaded", "loading", "unloaded"):
                self.state = "loading" if kind == "loading" else "ready"
            self._hear(event | {"worker": self.name})

    async def _notes(self, lines: asyncio.StreamReader) -> None:
        async for line in _lines(lines):
            LOG.info("worker %s: %s", self.name, line.decode("utf-8", "replace").rstrip())


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Each line; one that is longer than LINE is passed over."""
    while True:
        try:
            line = await reader.readline()
        except ValueError:  # the reader has dropped what was too long
            continue
        if not line:
            return
        yield line


class Subscription:
    """The events from now on: `async for event in subscription`, until it is closed or the hands stop.

    Who is slow misses steps and previews, the oldest first, and never an end.
    """

    def __init__(self, leave: Callable[[Subscription], None]) -> None:
        self._events: deque[Event] = deque()
        self._some = asyncio.Event()
        self._closed = False
        self._leave = leave

    def put(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) > BACKLOG:
            passing = next((i for i, one in enumerate(self._events) if one["event"] in PASSING), 0)
            del self._events[passing]
        self._some.set()

    def close(self) -> None:
        self._closed = True
        self._some.set()
        self._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._some.clear()
            await self._some.wait()
        return self._events.popleft()


class Hands:
    """All the workers of a server. `known`: capabilities that an earlier worker told, until one tells its own."""

    def __init__(self, commands: Mapping[str, Sequence[str]], known: dict[str, Any] | None = None) -> None:
        self.capabilities = known
        self.each = [Hand(name, command, self._hear) for name, command in commands.items()]
        self._subscriptions: set[Subscription] = set()
        self._previews: dict[str, Event] = {}
        self._steps: dict[str, Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def of(cls, config: Config, known: dict[str, Any] | None = None) -> Hands:
        """Those that a config asks for; their names tell the machine and the process that started them."""
        first = f"{socket.gethostname()}-{os.getpid()}"
        return cls({f"{first}-{i}": command(config, f"{first}-{i}") for i in range(config.workers)}, known)

    def start(self) -> None:
        """In a running loop; returns at once, while the workers are starting."""
        self._loop = asyncio.get_running_loop()
        for hand in self.each:
            hand.start()

    async def stop(self, grace: float = GRACE) -> None:
        """End all workers, at most `grace` seconds for a step; what they were painting waits for the next claim."""
        await asyncio.gather(*(hand.stop(grace) for hand in self.each))
        for subscription in tuple(self._subscriptions):
            subscription.close()

    @property
    def ready(self) -> bool:
        """Whether a worker can claim jobs."""
        return any(hand.state in ("ready", "loading") for hand in self.each)

    @property
    def states(self) -> dict[str, str]:
        """Of each worker by its name: starting, loading, ready, stopped or dead."""
        return {hand.name: hand.state for hand in self.each}

    def wake(self) -> None:
        """There may be a job to claim. From any thread."""
        self._tell({"wake": True})

    def cancel(self, job: str) -> None:
        """A job was cancelled in the store: who paints it looks there after its present step. From any thread."""
        self._tell({"cancel": job})

    def subscribe(self) -> Subscription:
        """The events from now on; to be closed, or entered with `with`."""
        subscription = Subscription(self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    def preview(self, job: str) -> Event | None:
        """The last preview of a job that is being painted."""
        return self._previews.get(job)

    def step(self, job: str) -> Event | None:
        """The last step of a job that is being painted."""
        return self._steps.get(job)

    def _tell(self, command: Event) -> None:
        for hand in self.each:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(hand.tell, command)

    def _hear(self, event: Event) -> None:
        kind, job = event["event"], event.get("job")
        if kind == "ready":
            self.capabilities = event.get("capabilities")
        elif kind == "preview":
            self._previews[event["job"]] = event
        elif kind == "step":
            self._steps[event["job"]] = event
        elif kind in ENDS:
            self._previews.pop(str(job), None)
            self._steps.pop(str(job), None)
        elif kind == "died":
            for kept in (self._previews, self._steps):
                for gone in [name for name, last in kept.items() if last["worker"] == event["worker"]]:
                    del kept[gone]
        for subscription in tuple(self._subscriptions):
            subscription.put(event)


def command(config: Config, name: str) -> list[str]:
    """The command line of a worker."""
    told = {
        "--name": name,
        "--database": config.url,
        "--folder": str(config.pictures),
        "--model": config.model,
        "--device": config.device,
        "--keep": config.keep,
        "--cache-models": str(config.cache_models),
    }
    return [sys.executable, "-m", "limner.serve.worker", *(part for pair in told.items() for part in pair)]

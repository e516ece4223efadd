"""What happens, told to whom it concerns: from the hands to streams of server-sent events.

A stream begins with the present state and goes on with what the hands tell. Every other second it looks at the
store as well: another server on the same database tells nothing here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from limner.serve import desk
from limner.serve.hand import Hands, Subscription
from limner.serve.seams import Parts
from limner.serve.shapes import JobShape

Told = tuple[str, dict[str, Any]]  # "state", "step", "preview" or "worker", and its data
OVER = frozenset({"done", "failed", "cancelled"})
LOOK = 2.0  # seconds between two looks at the store
ALIVE = 15.0  # seconds after which a silent stream sends a comment, so that nobody in between closes it
AT_ONCE = 200  # unfinished jobs that the stream of an owner tells of
STRANGERS = 10_000  # jobs that a stream remembers to pass over
AGAIN = 1000  # milliseconds after which a browser that lost the stream should ask again


class News:
    """Everything that the hands and the desk tell, to every stream that listens; it lives on the server's loop."""

    def __init__(self) -> None:
        self._ears: dict[Subscription, str | None] = {}  # each with the one job that it is about, or with none
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._ears)

    def tell(self, event: dict[str, Any]) -> None:
        for ear, id in tuple(self._ears.items()):
            if id is None or event.get("job") in (None, id):
                ear.put(event)

    def listen(self, id: str | None = None) -> Subscription:
        """What is told from now on, of one job or of all; to be entered with `with`."""
        ear = Subscription(self._leave)
        self._ears[ear] = id
        if self._closed:
            ear.close()
        return ear

    def _leave(self, ear: Subscription) -> None:
        self._ears.pop(ear, None)

    async def repeat(self, hands: Hands) -> None:
        """Tell what the hands tell, until they stop."""
        self._loop = asyncio.get_running_loop()
        with hands.subscribe() as heard:
            async for event in heard:
                self.tell(event)

    def close(self) -> None:
        """End every stream, now and to come: the server is about to end."""
        self._closed = True
        for ear in tuple(self._ears):
            ear.close()

    def close_soon(self) -> None:
        """The same from a signal's handler, which interrupts the loop anywhere."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)


class Scene:
    """What one stream has told of its jobs, so that it tells changes alone."""

    def __init__(self, parts: Parts, owner: str, id: str | None) -> None:
        self.parts, self.owner, self.id = parts, owner, id
        self._known: dict[str, tuple[object, ...]] = {}  # job -> what was told of it last
        self._strangers: set[str] = set()  # jobs that are passed over: others', and those that were told to be over
        self._near: set[str] = set()  # jobs whose steps are heard; of others the store tells how far they are

    @property
    def over(self) -> bool:
        """Whether the one job that it is about has ended."""
        return self.id is not None and self._known.get(self.id, ("",))[0] in OVER

    async def look(self) -> AsyncIterator[Told]:
        """The state of each job that changed since it was told."""
        store, rows = self.parts.store, []
        if self.id is None:
            rows = (await desk.aside(store.jobs, self.owner, ("queued", "running"), AT_ONCE))[::-1]  # as they came
        for id in {self.id, *self._known} - {None, *(row.id for row in rows)}:  # the one, and those that are over
            row = await desk.aside(store.job, str(id))
            rows += [row] if row else []
        for shape in await desk.told_all(self.parts, rows):
            for one in self._changed(shape):
                yield one

    async def state(self, id: str) -> list[Told]:
        """The state of one job, where it changed."""
        row = await desk.aside(self.parts.store.job, id)
        if row is None or row.owner != self.owner:
            self._known.pop(id, None)
            self._pass_over(id)
            return []
        return self._changed(await desk.told(self.parts, row))

    def _pass_over(self, id: str) -> None:
        if len(self._strangers) >= STRANGERS:
            self._strangers.clear()
        self._strangers.add(id)
        self._near.discard(id)

    def _changed(self, shape: JobShape) -> list[Told]:
        far = 0 if shape.id in self._near or shape.state != "running" else shape.steps_done
        mark = (shape.state, shape.ahead, far)
        before = self._known.get(shape.id)
        self._known[shape.id] = mark
        if shape.state in OVER and shape.id != self.id:
            del self._known[shape.id]
            self._pass_over(shape.id)
        return [("state", shape.model_dump(mode="json"))] if mark != before else []

    async def hear(self, event: dict[str, Any]) -> AsyncIterator[Told]:
        """What an event means for this stream."""
        kind, id = event["event"], event.get("job")
        if kind == "died":
            self._near.clear()
        if id is None:
            if self.id is None and kind in ("ready", "loading", "loaded", "died"):
                yield "worker", {name: event[name] for name in ("event", "model", "seconds") if name in event}
        elif id not in self._strangers:
            if passing := kind in ("step", "preview"):
                self._near.add(id)
            if not passing or self._known.get(id, ("",))[0] != "running":
                for one in await self.state(id):
                    yield one
            if passing and self._known.get(id, ("",))[0] == "running":
                yield kind, {name: value for name, value in event.items() if name not in ("event", "worker")}


async def watch(parts: Parts, owner: str, id: str | None = None) -> AsyncGenerator[Told]:
    """What becomes of one job of an owner, to its end, or of all of them, for as long as somebody listens."""
    scene = Scene(parts, owner, id)
    with parts.news.listen(id) as heard:
        due = 0.0
        while not scene.over:
            if (wait := due - time.monotonic()) <= 0:
                async for one in scene.look():
                    yield one
                due = time.monotonic() + LOOK
                continue
            try:
                async with asyncio.timeout(wait):  # wait_for of Python 3.11 can lose a cancellation to an event
                    event = await anext(heard)
            except TimeoutError:
                continue
            except StopAsyncIteration:
                return
            async for one in scene.hear(event):
                yield one


async def stream(parts: Parts, owner: str, id: str | None = None) -> AsyncIterator[str]:
    """`watch` in the form of text/event-stream, with a comment whenever nothing was said for a while."""
    yield f"retry: {AGAIN}\n\n"
    told = watch(parts, owner, id)
    coming = asyncio.ensure_future(anext(told))
    try:
        while True:
            if not (await asyncio.wait({coming}, timeout=ALIVE))[0]:
                yield ": still here\n\n"
                continue
            try:
                one = coming.result()
            except StopAsyncIteration:
                return
            yield message(*one)
            coming = asyncio.ensure_future(anext(told))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await told.aclose()


def message(event: str, data: dict[str, Any]) -> str:
    """One event as it goes over the wire: in ASCII, for Unicode knows line breaks that JSON lets pass."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"

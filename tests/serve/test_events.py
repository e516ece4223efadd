"""Streams of server-sent events: what they begin with, what they tell, how they end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from tests.serve.conftest import PREVIEW, Here, crowd

from limner.serve import events
from limner.serve.config import Config
from limner.serve.events import News, message, stream, watch
from limner.serve.seams import parts_of
from limner.serve.store import Store

Told = tuple[str, dict[str, Any]]


def parsed(text: str) -> list[Told]:
    """The events of a stream's text; comments are passed over."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines())
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


async def first(told: AsyncIterator[Told], kind: str, seconds: float = 5.0, **wanted: Any) -> dict[str, Any]:
    """The first event of a kind whose data hold what is wanted."""

    async def look() -> dict[str, Any]:
        async for name, data in told:
            if name == kind and wanted.items() <= data.items():
                return data
        raise AssertionError("the stream ended")

    return await asyncio.wait_for(look(), seconds)


def test_a_stream_of_a_job_goes_from_its_state_to_its_end(served):
    async def test(here: Here) -> None:
        here.hands.held.clear()
        job = await here.order("a cat", 2)
        asyncio.get_running_loop().call_later(0.05, here.hands.held.set)
        answer = await here.client.get(f"/v1/jobs/{job['id']}/events")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        told = parsed(answer.text)
        assert answer.text.startswith("retry: 1000\n\n")
        states = [data["state"] for kind, data in told if kind == "state"]
        assert states[-1] == "done" and set(states) <= {"queued", "running", "done"} and "running" in states
        steps = [data for kind, data in told if kind == "step"]
        assert [one["i"] for one in steps] == [0, 1, 2] and {one["n"] for one in steps} == {3}
        assert [data for kind, data in told if kind == "preview"] == [{"job": job["id"], "number": 0, "webp": PREVIEW}]
        assert told[-1][0] == "state" and len(told[-1][1]["pictures"]) == 2
        assert len(here.app.state.news) == 0

    served(test, speed=0.02)


def test_a_stream_of_a_job_that_is_over_tells_so_and_ends(served):
    async def test(here: Here) -> None:
        job = await here.order("fail")
        await here.done(job["id"])
        told = parsed((await here.client.get(f"/v1/jobs/{job['id']}/events")).text)
        assert [(kind, data["state"], data["error"]) for kind, data in told] == [
            ("state", "failed", "this prompt cannot be painted")
        ]

    served(test)


def test_a_stream_of_all_jobs_begins_with_those_that_are_not_over(served):
    async def test(here: Here) -> None:
        here.hands.held.clear()
        await asyncio.sleep(0.05)
        jobs = [await here.order(f"cat {i}") for i in range(3)]
        async with aclosing(watch(parts_of(here.app), "local")) as told:
            seen = [await anext(told) for _ in jobs]
            assert [(kind, data["id"], data["ahead"]) for kind, data in seen] == [
                ("state", job["id"], i) for i, job in enumerate(jobs)
            ]
            late = await here.order("one more")
            assert (await first(told, "state", id=late["id"]))["state"] == "queued"
            await here.client.post(f"/v1/jobs/{jobs[1]['id']}/cancel")
            assert (await first(told, "state", id=jobs[1]["id"]))["state"] == "cancelled"
            assert (await first(told, "state", id=late["id"]))["ahead"] == 2
            here.hands.held.set()
            ends = []
            while len(ends) < 3:
                kind, data = await asyncio.wait_for(anext(told), 5)
                ends += [data["id"]] if kind == "state" and data["state"] == "done" else []
            assert ends == [jobs[0]["id"], jobs[2]["id"], late["id"]]  # each once

    served(test)


def test_nobody_hears_of_anothers_jobs(served):
    async def test(here: Here) -> None:
        async with aclosing(watch(parts_of(here.app), "somebody else")) as told:
            nothing = asyncio.ensure_future(anext(told))
            await here.done((await here.order("a cat"))["id"])
            here.hands.say("loading", model="mini")
            kind, data = await asyncio.wait_for(nothing, 5)
            assert (kind, data) == ("worker", {"event": "loading", "model": "mini"})

    served(test)


def test_what_another_server_paints_is_seen_in_the_store(served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "LOOK", 0.05)

    async def test(here: Here) -> None:
        here.hands.held.clear()
        await asyncio.sleep(0.05)
        job = await here.order("a cat", steps=10)
        async with aclosing(watch(parts_of(here.app), "local", job["id"])) as told:
            assert (await anext(told))[1]["state"] == "queued"
            (mine,) = here.store.claim("elsewhere", 30)
            assert (await first(told, "state"))["state"] == "running"
            here.store.progress(mine.id, mine.attempt, 4)
            assert (await first(told, "state"))["steps_done"] == 4
            here.store.finish(mine.id, mine.attempt, "elsewhere", [])
            assert (await first(told, "state"))["state"] == "done"
            with pytest.raises(StopAsyncIteration):
                await anext(told)

    served(test)


def test_a_silent_stream_sends_comments(served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "ALIVE", 0.05)

    async def test(here: Here) -> None:
        async with aclosing(stream(parts_of(here.app), "local")) as told:  # type: ignore[type-var]
            assert await anext(told) == "retry: 1000\n\n"
            assert await anext(told) == await anext(told) == ": still here\n\n"

    served(test)


def test_who_closes_the_news_ends_every_stream(served):
    async def test(here: Here) -> None:
        news: News = here.app.state.news
        told = watch(parts_of(here.app), "local")
        waits = asyncio.ensure_future(anext(told))
        await asyncio.sleep(0.05)
        assert len(news) == 1
        news.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waits, 5)
        assert [one async for one in watch(parts_of(here.app), "local")] == []

    served(test)


def test_a_client_that_goes_away_leaves_nothing_behind_and_its_job_is_made(config: Config):
    """Over a real connection, which is cut in the middle of a stream."""
    with crowd(config, speed=0.1) as url, httpx.Client(base_url=url, headers={"authorization": "Bearer x"}) as client:
        job = client.post("/v1/jobs", json={"recipe": {"prompt": "a cat"}}).json()
        with httpx.Client(base_url=url) as away, away.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            next(answer.iter_text())
        with httpx.Client(base_url=url) as away, away.stream("GET", "/v1/events") as answer:
            next(answer.iter_text())
        until = time.monotonic() + 10
        while client.get(f"/v1/jobs/{job['id']}").json()["state"] != "done":
            assert time.monotonic() < until
            time.sleep(0.05)
        assert client.get("/health").status_code == 200


def test_a_slow_reader_misses_steps_and_no_end(served):
    async def test(here: Here) -> None:
        news: News = here.app.state.news
        with news.listen() as heard:
            news.tell({"event": "done", "job": "j_1"})
            for i in range(2000):
                news.tell({"event": "step", "job": "j_2", "i": i})
            assert (await anext(heard))["event"] == "done"
            assert (await anext(heard))["i"] > 1000

    served(test)


def test_an_event_is_a_line_of_json_whatever_it_holds():
    text = message("state", {"prompt": "a\nb\r\n\n\u2028event: done"})
    assert text.count("\n") == 3 and "\r" not in text
    assert parsed(text) == [("state", {"prompt": "a\nb\r\n\n\u2028event: done"})]


def test_streams_do_not_hold_threads(config: Config):
    """Eighty of them wait on the loop; the store's threads stay few."""
    with crowd(config) as url:

        async def listen() -> int:
            limits = httpx.Limits(max_connections=300)
            async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:

                async def one() -> None:
                    async with client.stream("GET", "/v1/events") as answer:
                        await anext(answer.aiter_text())
                        await asyncio.sleep(0.2)

                await asyncio.gather(*(one() for _ in range(80)))
                return threading.active_count()

        assert asyncio.run(listen()) < 70


def test_the_store_is_looked_at_seldom(served, monkeypatch: pytest.MonkeyPatch):
    async def test(here: Here) -> None:
        looks = 0
        whole = Store.jobs

        def count(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            return whole(*args)

        monkeypatch.setattr(Store, "jobs", count)
        async with aclosing(watch(parts_of(here.app), "local")) as told:
            waits = asyncio.ensure_future(anext(told))
            for _ in range(50):
                here.hands.say("step", job="j_0000000000000000", i=1, n=2, number=0)
                await asyncio.sleep(0.01)
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
        assert looks <= 3

    served(test)

"""Jobs, pictures, uploads: what each route does, what it refuses, and that others' things are not there."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.serve.conftest import Here, png

from limner.provenance.metadata import Receipt, chunks
from limner.recipe import MAX_SEED, Recipe
from limner.serve.tokens import add
from limner.serve.wishes import Order as Body
from limner.serve.wishes import complete, key, read


async def post(here: Here, body: object, path: str = "/v1/jobs", **headers: str) -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return await here.client.post(path, content=content, headers={"content-type": "application/json"} | headers)


async def brought(here: Here, data: bytes, kind: str = "image/png") -> httpx.Response:
    return await here.client.post("/v1/uploads", content=data, headers={"content-type": kind})


def another(here: Here, name: str, scopes: str = "paint,read") -> httpx.AsyncClient:
    """Somebody with a token of their own."""
    token, _ = add(here.store, name, scopes)
    transport = httpx.ASGITransport(here.app, raise_app_exceptions=False)
    return httpx.AsyncClient(
        transport=transport, base_url=here.client.base_url, headers={"authorization": f"Bearer {token}"}
    )


# --- jobs


def test_from_an_order_to_the_files_of_its_pictures(served):
    async def test(here: Here) -> None:
        job = await here.order("a red apple", 2, seed=41, steps=7, style="icon")
        assert job["state"] == "queued" and job["count"] == 2 and job["pictures"] == [] and job["steps"] == 7
        assert job["recipe"] == {
            "version": 9, "model": "mini", "prompt": "a red apple", "seed": 41, "steps": 7, "style": "icon",
        }  # fmt: skip
        done = await here.done(job["id"])
        assert done["state"] == "done" and done["started"] >= done["created"] and done["ahead"] == 0
        assert [(one["number"], one["seed"]) for one in done["pictures"]] == [(0, 41), (1, 42)]
        for one in done["pictures"]:
            answer = await here.client.get(one["url"])
            assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
            assert hashlib.sha256(answer.content).hexdigest() == one["sha256"]
            assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-disposition"].startswith("inline")
            full = (await here.client.get(f"/v1/pictures/{one['id']}")).json()
            assert Recipe.of(full["recipe"]).seed == one["seed"]
        saved = await here.client.get(done["pictures"][0]["url"], params={"download": True})
        assert saved.headers["content-disposition"] == 'attachment; filename="limner-41-0.png"'

    served(test)


@pytest.mark.parametrize("seed", [{}, {"seed": -1}])
def test_a_seed_that_is_not_said_is_drawn_when_the_job_is_taken(served, seed: dict[str, int]):
    async def test(here: Here) -> None:
        drawn = {(await here.order("a cat", **seed))["recipe"]["seed"] for _ in range(3)}
        assert len(drawn) == 3 and all(0 <= one < 2**32 for one in drawn)

    served(test)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_recipes_of_old_versions_are_taken(served, version: int):
    async def test(here: Here) -> None:
        job = await here.order("a cat", version=version, cfg_scale=3, cfg_interval=[0, 1])
        assert job["recipe"]["version"] == 9 and job["recipe"]["cfg_scale"] == 3.0
        assert (await here.done(job["id"]))["state"] == "done"

    served(test)


def test_an_effort_is_taken_as_the_fields_it_stands_for(served):
    async def test(here: Here) -> None:
        job = await here.order("a cat", effort="fast")
        assert (job["recipe"]["ask_apart"], job["recipe"]["ask_every"]) == (0.25, 1)
        assert "effort" not in job["recipe"]

    served(test)


REFUSED: list[tuple[Any, str | None, str]] = [
    ({"recipe": {"stepps": 3}}, "stepps", "did you mean steps"),
    ({"recipe": {"steps": "3"}}, "steps", "steps should be a valid integer, not '3'"),
    ({"recipe": {"steps": 0}}, "steps", "greater than or equal to 1"),
    ({"recipe": {"width": 100}}, "width", "cannot paint 100x128: sides are multiples of 16 from 64 to 512"),
    ({"recipe": {"width": 2**15, "height": 2**15, "task": "tile"}}, "width", "at most 67,108,864 are made"),
    ({"recipe": {"cfg_scale": float("nan")}}, "cfg_scale", "from 0 to 100"),
    ({"recipe": {"sampler": "eulerr"}}, "sampler", "no sampler is called 'eulerr'"),
    ({"recipe": {"schedule": "karas"}}, "schedule", "did you mean karras"),
    ({"recipe": {"style": "cubism"}}, "style", "no style is called 'cubism'"),
    ({"recipe": {"task": "dance"}}, "task", "'paint', 'edit'"),
    ({"recipe": {"version": 10}}, "version", "1, 2, 3, 4, 5, 6, 7, 8 or 9, not 10"),
    ({"recipe": {"effort": "bold"}}, "effort", "no effort is called 'bold'"),
    ({"recipe": {"effort": ["fast"]}}, "effort", "no effort is called"),
    ({"recipe": {"model": "../../etc/passwd"}}, "model", "no network is called"),
    ({"recipe": {"model": "hf:someone/something"}}, "model", "no network is called"),
    ({"recipe": {"parts": ["/etc/passwd"]}}, "parts.0", "no network is called"),
    ({"recipe": {"controls": [{"net": "x", "image": "upload:u_0123456789abcdef"}]}}, "controls.0.net", "no network"),
    ({"recipe": {"image": "/etc/passwd"}}, "image", "should be upload:ID or picture:ID"),
    ({"recipe": {"image": "http://127.0.0.1/x.png"}}, "image", "should be upload:ID or picture:ID"),
    ({"recipe": {"image": "upload:u_0123456789abcdef"}}, "image", "no such picture of yours"),
    ({"recipe": {"mask": "../mask.png"}}, "mask", "should be upload:ID or picture:ID"),
    ({"recipe": {"prompt": "a\0b"}}, None, "should hold no NUL"),
    ({"recipe": {"seed": MAX_SEED}, "count": 2}, "seed", "the last picture's seed"),
    ({"recipe": {"regions": [{"prompt": "x"}]}}, "regions.0.box", "regions.0.box is missing"),
    ({"recipe": {"regions": [{"prompt": "x", "box": "1", "bx": "1"}]}}, "regions.0.bx", "did you mean box"),
    ({"recipe": {}, "count": 65}, "count", "from 1 to 64"),
    ({"recipe": {}, "count": 0}, "count", "greater than or equal to 1"),
    ({"recipe": {}, "cuont": 1}, "cuont", "did you mean count"),
    ({}, "recipe", "recipe is missing"),
    ([], None, "the body should be an object"),
    ("{", None, "the body is not JSON"),
    (b"\xff\xfe", None, "the body is not JSON"),
    ('{"recipe": {"prompt": "\\ud800"}}', None, "JSON"),
    ("[" * 100_000, None, "the body is not JSON"),
]


@pytest.mark.parametrize(("body", "field", "said"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_is_wrong_is_refused_in_a_sentence_that_names_the_field(served, body: Any, field: str | None, said: str):
    async def test(here: Here) -> None:
        answer = await post(here, body)
        assert answer.status_code == 422, answer.text
        told = answer.json()["error"]
        assert said in told["message"] and (field is None or told["field"] == field)
        assert len(told["message"]) < 600 and here.store.queue_length() == 0

    served(test)


def test_names_of_samplers_are_read_as_the_registry_reads_them(served):
    async def test(here: Here) -> None:
        for name in ("Euler A", "dpm++ 2m", "DPMPP-2M"):
            await here.order("a cat", sampler=name)

    served(test)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_does_not_say_it_is_json_is_refused(served, kind: str):
    async def test(here: Here) -> None:
        answer = await here.client.post("/v1/jobs", content=b'{"recipe": {}}', headers={"content-type": kind})
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]

    served(test)


def test_a_job_that_memory_would_not_hold_is_refused(served):
    async def test(here: Here) -> None:
        answer = await post(here, {"recipe": {"width": 512, "height": 512, "hires": 8}})
        assert answer.status_code == 413 and "memory" in answer.json()["error"]["message"]

    served(test, memory=10**9)


def test_a_full_queue_answers_429_and_when_to_come_again(served):
    async def test(here: Here) -> None:
        here.hands.held.clear()
        for _ in range(3):
            await here.order()
        answers = await asyncio.gather(*(post(here, {"recipe": {}}) for _ in range(8)))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses.count(429) >= 7 and here.store.queue_length() <= 4
        full = next(answer for answer in answers if answer.status_code == 429)
        assert int(full.headers["retry-after"]) >= 1 and "wait already" in full.json()["error"]["message"]

    served(test, max_queue=4)


def test_a_queue_is_told_moved_and_emptied(served):
    async def test(here: Here) -> None:
        here.hands.held.clear()
        await asyncio.sleep(0.05)
        first = await here.order("0")  # the hand, which waits at the door, may have taken none of them
        jobs = [first, *[await here.order(str(i)) for i in range(1, 4)]]
        a, b, c, d = (one["id"] for one in jobs)

        async def line() -> list[str]:
            rows = (await here.client.get("/v1/jobs", params={"state": "queued"})).json()["jobs"]
            return [row["recipe"]["prompt"] for row in sorted(rows, key=lambda row: row["ahead"])]

        assert await line() == ["0", "1", "2", "3"]
        moved = await post(here, {"before": a}, f"/v1/jobs/{d}/move")
        assert moved.status_code == 200 and moved.json()["ahead"] == 0
        assert await line() == ["3", "0", "1", "2"]
        assert (await post(here, {"before": None}, f"/v1/jobs/{a}/move")).json()["ahead"] == 3
        gone = await here.client.post(f"/v1/jobs/{b}/cancel")
        assert gone.status_code == 200 and gone.json()["state"] == "cancelled" and gone.json()["finished"]
        assert await line() == ["3", "2", "0"]
        assert (await here.client.post(f"/v1/jobs/{b}/cancel")).status_code == 409
        assert (await post(here, {"before": b}, f"/v1/jobs/{c}/move")).status_code == 409
        assert (await post(here, {"before": c}, f"/v1/jobs/{c}/move")).status_code == 409
        assert (await post(here, {"before": "j_nothing"}, f"/v1/jobs/{c}/move")).status_code == 404
        assert (await post(here, {}, f"/v1/jobs/{c}/move")).status_code == 422
        here.hands.held.set()
        assert [(await here.done(id))["state"] for id in (d, c, a)] == ["done"] * 3
        assert here.hands.painted == [d, c, a]

    served(test)


def test_a_running_job_is_stopped(served):
    async def test(here: Here) -> None:
        job = await here.order()
        while (await here.client.get(f"/v1/jobs/{job['id']}")).json()["state"] != "running":
            await asyncio.sleep(0.01)
        assert (await here.client.post(f"/v1/jobs/{job['id']}/cancel")).json()["state"] == "cancelled"
        assert (await here.done((await here.order("next"))["id"]))["state"] == "done"
        assert (await here.client.get("/v1/pictures")).json()["pictures"][0]["prompt"] == "next"

    served(test, speed=0.05)


def test_a_job_that_is_watched_is_painted_alone(served):
    async def test(here: Here) -> None:
        here.hands.held.clear()
        await asyncio.sleep(0.05)
        plain = await here.order("a cat")
        watched = (await post(here, {"recipe": {"prompt": "a cat"}, "watch": True})).json()
        assert here.store.job(plain["id"]).key is not None and here.store.job(watched["id"]).key is None

    served(test)


def test_a_number_without_a_fraction_is_a_whole_one(served):
    async def test(here: Here) -> None:
        body = '{"recipe": {"steps": 5.0, "cfg_scale": 3, "extend": [0.0, 0, 0, 0]}, "count": 2.0}'
        job = (await post(here, body)).json()
        assert job["recipe"]["steps"] == 5 and job["recipe"]["cfg_scale"] == 3.0 and job["count"] == 2
        assert (await post(here, '{"recipe": {"steps": 5.5}}')).status_code == 422
        assert (await post(here, '{"recipe": {"cfg_scale": 1e999, "seed": 1e400}}')).status_code == 422

    served(test)


def test_a_job_that_fails_says_why(served):
    async def test(here: Here) -> None:
        told = await here.done((await here.order("fail"))["id"])
        assert told["state"] == "failed" and told["error"] == "this prompt cannot be painted"

    served(test)


def test_lists_come_in_pages(served):
    async def test(here: Here) -> None:
        ids = [(await here.order(f"cat {i}"))["id"] for i in range(5)]
        for id in ids:
            await here.done(id)
        for path, name in (("/v1/jobs", "jobs"), ("/v1/pictures", "pictures")):
            found, more, pages = [], None, 0
            while True:
                told = (await here.client.get(path, params={"limit": 2} | ({"before": more} if more else {}))).json()
                found, more, pages = found + told[name], told["more"], pages + 1
                if more is None:
                    break
            assert len(found) == len({one["id"] for one in found}) == 5 and pages == 3
        assert [one["id"] for one in (await here.client.get("/v1/jobs")).json()["jobs"]] == ids[::-1]
        odd = await here.client.get("/v1/jobs", params={"limt": 3})
        assert odd.status_code == 422 and "did you mean limit" in odd.json()["error"]["message"]
        for bad in ({"limit": 0}, {"limit": "x"}, {"state": "asleep"}, {"before": "x" * 65}):
            answer = await here.client.get("/v1/jobs", params=bad)
            assert (answer.status_code == 422 and answer.json()["error"]["field"] == next(iter(bad))) or "state" in bad

    served(test)


# --- pictures


def test_a_deleted_picture_is_gone_until_it_is_restored(served):
    async def test(here: Here) -> None:
        (one,) = (await here.done((await here.order("a cat"))["id"]))["pictures"]
        path = f"/v1/pictures/{one['id']}"
        assert (await here.client.post(f"{path}/restore")).status_code == 409
        deleted = await here.client.delete(path)
        assert deleted.status_code == 200 and deleted.json()["deleted"] > 0
        for gone in (path, f"{path}/file"):
            assert (await here.client.get(gone)).status_code == 404
        assert (await here.client.delete(path)).status_code == 404
        assert (await here.client.get("/v1/pictures")).json()["pictures"] == []
        assert len((await here.client.get("/v1/pictures", params={"deleted": True})).json()["pictures"]) == 1
        assert (await here.client.post(f"{path}/restore")).json()["deleted"] is None
        assert (await here.client.get(f"{path}/file")).status_code == 200
        assert [line.what for line in here.store.audits()] == ["restore", "delete", "job"]

    served(test)


def test_a_file_that_is_gone_from_the_folder_is_told(served):
    async def test(here: Here) -> None:
        (one,) = (await here.done((await here.order("a cat"))["id"]))["pictures"]
        here.files.path(one["sha256"]).unlink()
        answer = await here.client.get(one["url"])
        assert answer.status_code == 404 and "gone" in answer.json()["error"]["message"]

    served(test)


def test_words_find_pictures(served):
    async def test(here: Here) -> None:
        for prompt in ("a red cat", "a red dog", "100% blue"):
            await here.done((await here.order(prompt))["id"])

        async def find(q: str) -> list[str]:
            return [
                one["prompt"] for one in (await here.client.get("/v1/pictures", params={"q": q})).json()["pictures"]
            ]

        assert await find("RED cat") == ["a red cat"]
        assert await find("red") == ["a red dog", "a red cat"]
        assert await find("100%") == ["100% blue"] and await find("0%%") == [] and await find("\0%") == ["100% blue"]

    served(test)


# --- uploads


def told_png(receipt: Receipt | None = None, parameters: str = "") -> bytes:
    out, info = io.BytesIO(), chunks(receipt).png if receipt else PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    Image.new("RGB", (24, 16), "red").save(out, "PNG", pnginfo=info)
    return out.getvalue()


def test_a_picture_of_ours_brings_its_settings(served):
    async def test(here: Here) -> None:
        recipe = Recipe.of(
            {"prompt": "a cat", "seed": 7, "steps": 12, "image": "/home/somebody/x.png", "strength": 0.5}
        )
        answer = await brought(here, told_png(Receipt(recipe, {}, "float32")))
        assert answer.status_code == 201
        told = answer.json()
        assert (told["width"], told["height"], told["kind"], told["name"]) == (
            24,
            16,
            "image/png",
            f"upload:{told['id']}",
        )
        assert told["recipe"] == {"prompt": "a cat", "seed": 7, "steps": 12, "strength": 0.5}
        assert told["parameters"].startswith("a cat\nSteps: 12")
        assert (await here.done((await here.order(**told["recipe"]))["id"]))["state"] == "done"
        job = await here.order("a dog", task="edit", image=told["name"], strength=0.6)
        assert job["recipe"]["image"] == told["name"]

    served(test)


def test_a_picture_of_automatic1111_brings_its_settings(served):
    async def test(here: Here) -> None:
        text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"
        told = (await brought(here, told_png(parameters=text))).json()
        assert told["parameters"] == text
        assert told["recipe"]["prompt"] == "a cat" and told["recipe"]["seed"] == 5 and told["recipe"]["steps"] == 20

    served(test)


def test_a_picture_without_words_brings_none(served):
    async def test(here: Here) -> None:
        told = (await brought(here, png())).json()
        assert told["recipe"] is None and told["parameters"] is None
        again = (await brought(here, png())).json()
        assert again["sha256"] == told["sha256"] and again["id"] != told["id"]

    served(test)


def bomb() -> bytes:
    out = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_is_refused(served):
    gif = io.BytesIO()
    Image.new("P", (4, 4)).save(gif, "GIF")
    cases = [
        (b"", "image/png", 415), (b"<svg onload=alert(1)>", "image/png", 415), (gif.getvalue(), "image/png", 415),
        (png(), "image/gif", 415), (png(), "text/html", 415), (png()[:30], "image/png", 415),
        (bomb(), "image/png", 422),
    ]  # fmt: skip

    async def test(here: Here) -> None:
        for data, kind, status in cases:
            answer = await brought(here, data, kind)
            assert answer.status_code == status, (data[:20], answer.text)
        assert not list(here.config.pictures.rglob("*/*"))

    served(test)


def test_a_body_that_is_too_large_is_refused(served):
    async def test(here: Here) -> None:
        assert (await brought(here, png() + b"\0" * 5000)).status_code == 413

    served(test, max_body=4000)


# --- whose things are whose


def test_what_is_anothers_is_not_there(served):
    async def test(here: Here) -> None:
        async with another(here, "anna") as anna, another(here, "ben") as ben:
            job = (await anna.post("/v1/jobs", json={"recipe": {"prompt": "hers"}})).json()
            held = (await anna.post("/v1/uploads", content=png(), headers={"content-type": "image/png"})).json()
            while (told := (await anna.get(f"/v1/jobs/{job['id']}")).json())["state"] != "done":
                await asyncio.sleep(0.01)
            (one,) = told["pictures"]
            asked = [
                ("GET", f"/v1/jobs/{job['id']}"), ("POST", f"/v1/jobs/{job['id']}/cancel"),
                ("GET", f"/v1/jobs/{job['id']}/events"), ("GET", f"/v1/pictures/{one['id']}"), ("GET", one["url"]),
                ("DELETE", f"/v1/pictures/{one['id']}"), ("POST", f"/v1/pictures/{one['id']}/restore"),
            ]  # fmt: skip
            for way, path in asked:
                assert (await ben.request(way, path)).status_code == 404, path
                assert (await here.client.request(way, path)).status_code == 401, path
            moved = await ben.post(f"/v1/jobs/{job['id']}/move", json={"before": None})
            assert moved.status_code == 404
            for name in (held["name"], f"picture:{one['id']}"):
                answer = await ben.post("/v1/jobs", json={"recipe": {"task": "edit", "image": name}})
                assert answer.status_code == 422 and "no such picture of yours" in answer.json()["error"]["message"]
                mine = await anna.post("/v1/jobs", json={"recipe": {"task": "edit", "image": name, "strength": 0.5}})
                assert mine.status_code == 202
            for path, name in (("/v1/jobs", "jobs"), ("/v1/pictures", "pictures")):
                assert (await ben.get(path)).json()[name] == [] != (await anna.get(path)).json()[name]

    served(test)


def test_a_scope_bounds_what_a_token_may(served):
    async def test(here: Here) -> None:
        async with another(here, "reader", "read") as reader:
            assert (await reader.get("/v1/jobs")).status_code == 200
            answer = await reader.post("/v1/jobs", json={"recipe": {}})
            assert answer.status_code == 403
        answer = await here.client.get("/v1/jobs")
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"

    served(test)


@pytest.mark.parametrize("told", [False, True])
def test_the_audit_log_tells_no_words_unless_it_should(served, told: bool):
    async def test(here: Here) -> None:
        await here.order("secret words", negative="more of them")
        (line,) = here.store.audits()
        assert line.who == "local" and line.what == "job" and line.target.startswith("j_")
        assert ("secret" in line.detail) == told

    served(test, audit_prompts=told)


# --- what makes jobs alike


def test_jobs_of_one_key_differ_in_words_and_seeds_alone():
    first = complete({"prompt": "a cat", "seed": 1, "style": "icon"}, "mini")
    same = [{"prompt": "a dog", "seed": 2}, {"negative": "x", "subseed": 3}, {"style": None}]
    other = [{"steps": 3}, {"width": 64}, {"model": "other"}, {"task": "tile"}]
    assert {key(complete(wishes, "mini")) for wishes in same} == {key(first)}
    assert key(first) not in {key(complete(wishes, "mini")) for wishes in other}
    assert len({key(complete(wishes, "mini")) for wishes in other}) == len(other)


def test_an_order_holds_what_was_said_and_nothing_else():
    order = read(Body, b'{"recipe": {"prompt": "x", "regions": [{"box": "left:0-1", "prompt": "y"}]}}')
    assert order.recipe.given() == {"version": 9, "prompt": "x", "regions": [{"box": "left:0-1", "prompt": "y"}]}

"""The application as a whole: what it imports, how it describes itself, what it keeps, how it takes a crowd."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.serve.conftest import CAPABILITIES, Here, crowd, serving

from limner.serve.app import create_app
from limner.serve.config import Config
from limner.serve.routes import router
from limner.serve.tokens import add


def test_the_server_process_never_imports_torch():
    code = "import sys; import limner.serve.run; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "tokenizers", "transformers"} & set(said.stdout.split())


def test_openapi_describes_every_route(served):
    async def test(here: Here) -> None:
        told = (await here.client.get("/v1/openapi.json")).json()
        ours = {(route.path, way.lower()) for route in router.routes for way in route.methods}  # type: ignore[attr-defined]
        assert len(ours) == 16
        for path, way in ours:
            about = told["paths"][path][way]
            assert about["description"] and about["operationId"]
            assert path == "/health" or about["security"] == [{"token": []}]
            assert all(
                answer.get("content", {}).get("application/json", {}).get("schema")
                == {"$ref": "#/components/schemas/Error"}
                for status, answer in about["responses"].items()
                if int(status) >= 400
            )
        body = told["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        order = told["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        recipe = told["components"]["schemas"][order["properties"]["recipe"]["$ref"].rpartition("/")[2]]
        assert {"prompt", "seed", "regions", "version"} <= set(recipe["properties"])

    served(test)


def refs(value: object) -> set[str]:
    if isinstance(value, dict):
        found = {str(value["$ref"])} if "$ref" in value else set()
        return found.union(*(refs(one) for one in value.values()))
    return set().union(*(refs(one) for one in value)) if isinstance(value, list) else set()


def test_every_reference_of_openapi_leads_somewhere(config: Config):
    told = create_app(config, None).openapi()
    assert {ref.removeprefix("#/components/schemas/") for ref in refs(told)} <= set(told["components"]["schemas"])


@pytest.mark.parametrize(
    ("way", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/jobs/", 404), ("PUT", "/v1/jobs", 405), ("POST", "/health", 405)],
)
def test_a_refusal_is_one_sentence_of_json(served, way: str, path: str, status: int):
    async def test(here: Here) -> None:
        answer = await here.client.request(way, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "field"}

    served(test)


def test_an_error_inside_is_told_without_its_words(served, monkeypatch: pytest.MonkeyPatch):
    async def test(here: Here) -> None:
        monkeypatch.setattr(type(here.store), "jobs", lambda *_: 1 / 0)
        answer = await here.client.get("/v1/jobs")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "an error inside; the server's log says more"

    served(test)


def test_health_needs_nothing_and_a_worker_that_starts_is_told(served):
    async def test(here: Here) -> None:
        bare = httpx.AsyncClient(transport=here.client._transport, base_url=here.client.base_url)
        answer = await bare.get("/health")
        assert answer.json() == {"status": "ok", "version": "0.1.0", "ready": True}

    served(test)


def test_before_the_first_worker_told_the_servers_own_model_is_taken(served):
    async def test(here: Here) -> None:
        here.hands.capabilities = None
        here.hands.held.clear()
        assert (await here.order("a cat"))["state"] == "queued"
        answer = await here.client.post("/v1/jobs", json={"recipe": {"model": "other"}})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        assert (await here.client.get("/v1/capabilities")).status_code == 503
        here.hands.say("ready", capabilities=CAPABILITIES)
        assert (await here.client.get("/v1/capabilities")).json() == CAPABILITIES

    served(test)


def test_a_restart_keeps_queue_pictures_and_what_the_workers_told(config: Config):
    async def first() -> tuple[list[str], str]:
        async with serving(config) as here:
            done = await here.done((await here.order("a red cat"))["id"])
            here.hands.say("ready", capabilities=CAPABILITIES | {"device": "another"})
            here.hands.held.clear()
            await asyncio.sleep(0)
            ids = [(await here.order(f"picture {i}"))["id"] for i in range(3)]
            await asyncio.sleep(0.05)
            return ids, done["pictures"][0]["url"]

    async def second(ids: list[str], url: str) -> None:
        app = create_app(config)
        assert app.state.hands.capabilities["device"] == "another"
        app.state.store.close()
        async with serving(config) as here:
            assert [(await here.done(id))["state"] for id in ids] == ["done"] * 3
            assert here.hands.painted == ids
            assert (await here.client.get(url)).headers["content-type"] == "image/png"
            found = (await here.client.get("/v1/pictures", params={"q": "RED cat"})).json()["pictures"]
            assert [one["prompt"] for one in found] == ["a red cat"]

    asyncio.run(second(*asyncio.run(first())))


def test_a_crowd_is_taken_up_to_the_limit_and_health_stays_quick(config: Config):
    """128 clients at once over real connections: no 5xx; past the queue's limit 429 and when to come again."""
    with crowd(replace(config, max_queue=16), speed=0.5) as url:

        async def everybody() -> tuple[list[httpx.Response], list[float]]:
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(
                base_url=url, limits=limits, timeout=60, headers={"authorization": "Bearer x"}
            ) as c:
                body = {"recipe": {"prompt": "a cat", "steps": 2}}
                orders = [asyncio.create_task(c.post("/v1/jobs", json=body)) for _ in range(128)]
                waits = []
                while not all(order.done() for order in orders):
                    begun = time.monotonic()
                    assert (await c.get("/health")).status_code == 200
                    waits.append(time.monotonic() - begun)
                    await asyncio.sleep(0.02)
                return [order.result() for order in orders], waits

        answers, waits = asyncio.run(everybody())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {202, 429} and 16 <= statuses.count(202) < 40
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 429)
    assert sorted(waits)[len(waits) // 2] < 0.25


def ask(strategy: SearchStrategy[schemathesis.Case], headers: dict[str, str], excluded: list[object]) -> None:
    """A few cases of one operation, the same ones every day."""

    @settings(max_examples=6, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(case: schemathesis.Case) -> None:
        case.validate_response(case.call(headers=headers), headers=headers, excluded_checks=excluded)

    run()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_schemathesis_finds_no_failure(config: Config):
    """Every operation, in process, with data by its description and against it: schemathesis' own checks, all of them.

    But for one: orders can be right by the schema and ask for what is not there, and are refused with 422.
    """
    app = create_app(replace(config, hosts=("testserver",), max_queue=10_000, max_queue_all=10_000))
    app.state.hands.capabilities = CAPABILITIES
    headers = {"authorization": f"Bearer {add(app.state.store, 'somebody', 'admin')[0]}"}
    refused = {"negative_data_rejection": {"expected-statuses": ["4xx"]}}  # 414 too, for words that are too many
    known = schemathesis.Config.from_dict({"generation": {"allow-extra-parameters": False}, "checks": refused})
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", app, config=known, headers=headers)
    seen = set()
    for found in schema.exclude(path_regex="events$").get_all_operations():
        one = found.ok()
        strategy = one.as_strategy(generation_mode=GenerationMode.POSITIVE)
        if one.path != "/health":  # which takes nothing that could be wrong
            strategy |= one.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        excluded = [positive_data_acceptance] if one.label == "POST /v1/jobs" else []
        ask(strategy, headers, excluded)
        seen.add(one.label)
    assert len(seen) == 14
    app.state.store.close()


def test_json_of_refusals_and_jobs_is_plain(served):
    async def test(here: Here) -> None:
        told = await here.order("a \u2028 cat <script>", 2)
        assert json.loads(json.dumps(told)) == told
        assert told["recipe"]["prompt"] == "a \u2028 cat <script>"

    served(test)

"""`limner.Client`, against a fake hand over real connections and against the real thing."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.serve.conftest import Real, crowd, png, running

from limner.client import Client, NoServer
from limner.errors import BadInput
from limner.provenance.metadata import is_marked, read_receipt
from limner.recipe import Recipe
from limner.serve.config import Config


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    with crowd(config, speed=0.01) as url, Client(url, patience=5) as client:
        yield client


def test_paint_gives_pictures_in_order(client: Client):
    first, second = client.paint("a cat", 2, seed=7)
    assert first.size == (16, 16) and (first.getpixel((0, 0)), second.getpixel((0, 0))) == (
        (7, 0, 7, 255),
        (8, 1, 7, 255),
    )
    assert [one["seed"] for one in client.pictures("cat")] == [8, 7]
    assert client.recipe(client.pictures()[0]["id"])["prompt"] == "a cat"
    assert client.jobs("done", limit=1)[0]["count"] == 2 and client.jobs("queued") == []
    assert client.models()[0]["name"] == "mini" and client.capabilities()["device"] == "cpu"


def test_pictures_of_this_machine_are_brought_along(client: Client, tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(png())
    for image in (path, str(path), png(), Image.new("RGB", (4, 4)), Image.new("P", (4, 4))):
        job = client.job(client.order("a cat", task="inpaint", image=image, mask="1,2,3,4", strength=0.5)["id"])
        assert job["recipe"]["image"].startswith("upload:u_") and job["recipe"]["mask"] == "1,2,3,4"
    known = job["recipe"]["image"]
    again = client.order("a cat", task="inpaint", image=known, mask=path, strength=0.5)["recipe"]
    assert again["image"] == known and again["mask"].startswith("upload:u_")
    gif = io.BytesIO()
    Image.new("P", (4, 4)).save(gif, "GIF")
    assert client.send(gif.getvalue()).startswith("upload:u_")  # as a PNG
    with pytest.raises(BadInput, match="no picture that can be read"):
        client.send(b"nothing")
    with pytest.raises(BadInput, match="No such file"):
        client.send(tmp_path / "nowhere.png")


def test_a_sentence_of_the_server_is_the_error(client: Client):
    with pytest.raises(BadInput, match="did you mean steps"):
        client.order("a cat", stepps=3)
    with pytest.raises(BadInput, match="this prompt cannot be painted"):
        client.paint("fail")
    with pytest.raises(BadInput, match="no such job of yours"):
        client.job("j_0000000000000000")
    job = client.order("a cat")
    client.wait(job["id"])
    with pytest.raises(BadInput, match="over already"):
        client.cancel(job["id"])


def test_steps_and_previews_are_seen(config: Config):
    with crowd(config, speed=0.3) as url, Client(url) as client:
        kinds = [kind for kind, _ in client.watch(client.order("a cat")["id"])]
    assert kinds[0] == kinds[-1] == "state" and "step" in kinds


def test_a_server_that_is_not_there_is_told_at_once():
    begun = time.monotonic()
    with Client("127.0.0.1:9") as client, pytest.raises(NoServer, match="`limner serve` starts a server"):
        client.jobs()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("url", ["ftp://x", "http://x:port", "file:///etc/passwd", "http://"])
def test_what_is_no_address_is_refused(url: str):
    with pytest.raises(BadInput, match="is no address of a server"):
        Client(url)


def test_another_programs_server_is_told():
    page = httpx.MockTransport(lambda _: httpx.Response(404, text="nothing"))
    with Client(transport=page) as client, pytest.raises(BadInput, match="is it a server of Limner"):
        client.jobs()


def test_a_full_server_is_asked_again():
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["authorization"])
        if len(asked) < 3:
            return httpx.Response(429, json={"error": {"message": "full"}}, headers={"retry-after": "0"})
        return httpx.Response(202, json={"id": "j_1"})

    with Client(token="lim_x", transport=httpx.MockTransport(answer)) as client:
        assert client.order("a cat") == {"id": "j_1"}
    assert asked == ["Bearer lim_x"] * 3
    asked.clear()
    full = httpx.MockTransport(
        lambda _: httpx.Response(429, json={"error": {"message": "full"}}, headers={"retry-after": "60"})
    )
    with Client(transport=full, patience=1) as client, pytest.raises(NoServer, match="full"):
        client.order("a cat")


def test_a_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMNER_TOKEN", "lim_secret")
    said = []
    told = httpx.MockTransport(
        lambda request: said.append(request.headers["authorization"]) or httpx.Response(200, json={"jobs": []})
    )
    with Client(transport=told) as client:
        client.jobs()
    assert said == ["Bearer lim_secret"]


def test_a_watch_goes_on_over_a_restart(config: Config):
    """The server ends in the middle of a job; another one on the same folder and port finishes it."""
    seen: list[str] = []
    with crowd(config, speed=0.5) as url:
        client = Client(url, patience=20)
        job = client.order("a cat")

        def follow() -> None:
            seen.extend(data["state"] for kind, data in client.watch(job["id"]) if kind == "state")

        thread = threading.Thread(target=follow)
        thread.start()
        while "running" not in seen:
            time.sleep(0.01)
    store_gives_back(config)
    with crowd(replace(config, port=int(url.rpartition(":")[2])), same_port=True) as again:
        assert again == url
        store_gives_back(config)
        thread.join(20)
    client.close()
    assert not thread.is_alive() and seen[-1] == "done"


def store_gives_back(config: Config) -> None:
    """What a worker does when it starts again under its name."""
    from limner.serve.store import Store

    store = Store(config.url)
    store.give_back("fake", died=True)
    store.close()


# --- the real thing


def test_the_whole_path_from_an_order_to_a_file_with_its_recipe_and_mark(real_server: Real):
    with Client(real_server.url) as client:
        begun = time.monotonic()
        first, second = client.paint("a red apple", 2, width=64, height=64, steps=2, seed=5)
        assert time.monotonic() - begun < 60
        assert first.size == (64, 64) and first.tobytes() != second.tobytes()
        receipt = read_receipt(first, "the answer")
        assert receipt.recipe.prompt == "a red apple" and receipt.recipe.seed == 5 and receipt.weights
        assert is_marked(first) and first.info["parameters"].startswith("a red apple\nSteps: 2")
        again = client.paint(**(receipt.recipe.model_dump(exclude_defaults=True) | {"count": 2}))[0]
        assert again.tobytes() == first.tobytes()  # of two again: alone, some processors round otherwise
        begun = time.monotonic()
        edited = client.paint("a cat", task="edit", image=first, strength=0.5, steps=2, seed=1)[0]
        assert edited.size == (64, 64)
        told = client.recipe(client.pictures("cat")[0]["id"])
        assert told["image"].startswith("upload:u_")  # no path of the server is told
        with pytest.raises(BadInput, match="sides are multiples of"):
            client.paint("a cat", width=65)


@pytest.mark.slow
def test_a_real_server_keeps_queue_and_pictures_over_kill_and_restart(tmp_path: Path, tiny_folder: Path):
    folder = tmp_path / "kept"
    with running(folder, tiny_folder) as real, Client(real.url) as client:
        made = client.paint("a red cat", width=64, height=64, steps=2, seed=3)[0]
        jobs = [client.order(f"cat {i}", width=64, height=64, steps=2, seed=i)["id"] for i in range(3)]
        real.process.kill()
        real.process.communicate()
    with running(folder, tiny_folder) as real, Client(real.url) as client:
        ends = [client.wait(id) for id in jobs]
        assert [len(job["pictures"]) for job in ends] == [1, 1, 1]
        assert client.picture(client.pictures("red")[0]["id"]).tobytes() == made.tobytes()
        assert Recipe.of(client.recipe(ends[2]["pictures"][0]["id"])).seed == 2
        assert client.capabilities()["dtype"] in ("float32", "bfloat16")
        status, said = real.stop()
        assert status == 0 and "Traceback" not in said

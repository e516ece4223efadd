"""`limner serve`, its tokens, and `limner paint --server`."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.serve.conftest import crowd, running

from limner.cli.making import Output
from limner.cli.remote import paint_there
from limner.cli.serve import _known
from limner.errors import BadInput
from limner.provenance.metadata import read_receipt
from limner.serve.config import Config, home
from limner.serve.run import address, listen
from limner.serve.store import Store
from limner.serve.tokens import digest


def test_a_token_is_shown_once_and_kept_as_a_digest(limner, tmp_path: Path):
    said = limner("serve", "token", "add", "anna", "--scopes", "read,paint", "--expires", "30d", "--folder", tmp_path)
    assert said.status == 0 and said.lines[0].startswith("lim_") and len(said.lines) == 1
    token, id = said.lines[0], said.err.split()[0]
    store = Store(Config(folder=tmp_path).url)
    (kept,) = store.tokens()
    assert (kept.id, kept.name, kept.scopes, kept.hash) == (id, "anna", "paint read", digest(token))
    assert abs(kept.expires - time.time() - 30 * 86_400) < 60
    assert [line.what for line in store.audits()] == ["token add"]
    store.close()
    listed = limner("serve", "token", "list", "--folder", tmp_path)
    assert id in listed.out and "anna" in listed.out and "until " in listed.out and token not in listed.out
    (row,) = limner("serve", "token", "list", "--json", "--folder", tmp_path).rows
    assert row["id"] == id and "hash" not in row
    assert limner("serve", "token", "revoke", "anna", "--folder", tmp_path).status == 0
    assert "revoked" in limner("serve", "token", "list", "--folder", tmp_path).out
    again = limner("serve", "token", "revoke", "anna", "--folder", tmp_path)
    assert again.status == 2 and "no token is called 'anna'" in again.err
    assert not (tmp_path / token).exists() and token.encode() not in (tmp_path / "limner.db").read_bytes()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("token", "add", "x", "--expires", "soon"), "--expires should look like"),
        (("token", "add", "x", "--scopes", "paint,fly"), "no scope is called 'fly'"),
        (("token", "add", " "), "a token needs a name"),
        (("--host", "0.0.0.0", "--port", 0), "can be reached from elsewhere needs a token"),
        (("--host", "192.0.2.1", "--port", 0), "cannot be listened on"),
        (("--host", "no such host", "--port", 0), "is no address of this machine"),
        (("--token-required", "--port", 0), "needs a token"),
        (("--allow-host", "example.org", "--port", 0), "needs a token"),
        (("--port", 70_000), "--port should be"),
        (("--workers", 0), "--workers should be 1 or more"),
        (("--memory", "nan"), "--memory should be 0 or more"),
        (("--database", "mysql://x/y", "--port", 0), "is no database"),
    ],
)
def test_what_is_wrong_is_one_sentence(limner, tmp_path: Path, flags: tuple[object, ...], said: str):
    told = limner("serve", *flags, "--folder", tmp_path)
    assert told.status == 2 and said in told.err and told.err.count("\n") == 1 and told.out == ""


def test_a_port_that_is_taken_is_told_with_the_next(limner, tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = limner("serve", "--port", port, "--folder", tmp_path)
    assert told.status == 2 and f"port {port} of 127.0.0.1 is taken; --port {port + 1}" in told.err


def test_addresses_are_ones_that_a_browser_opens():
    shown = {"127.0.0.1": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]", "localhost": "localhost"}
    assert {host: address(Config(host=host, port=7)) for host in shown} == {
        host: f"http://{name}:7/" for host, name in shown.items()
    }
    with listen("127.0.0.1", 0) as ours:
        assert ours.getsockname()[1] > 0


def test_pictures_are_kept_beside_the_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path))
    assert home() == tmp_path / "serve"
    assert Config(folder=tmp_path).url == f"sqlite:///{tmp_path}/limner.db"
    assert Config(database="postgresql://x/y").url == "postgresql://x/y"


def test_a_model_that_ships_is_not_taken_for_a_folder_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "mine"):
        (tmp_path / name).mkdir()
    assert _known("mini") == "mini"
    assert _known("mine") == str(tmp_path / "mine")
    assert _known("other") == "other"


def test_the_address_is_printed_the_page_answers_while_the_model_loads_and_ctrl_c_ends_it(
    tmp_path: Path, tiny_folder: Path
):
    with running(tmp_path / "serve", tiny_folder) as real:
        begun = time.monotonic()
        with httpx.Client(base_url=real.url, headers={"authorization": "Bearer local"}, timeout=10) as client:
            page = client.get("/")
            health = client.get("/health").json()
            order = client.post("/v1/jobs", json={"recipe": {"prompt": "a cat", "steps": 1, "width": 64, "height": 64}})
        spent = time.monotonic() - begun
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]
        assert health["status"] == "ok" and order.status_code == 202
        assert spent < 5  # under 1 on an idle machine
        status, said = real.stop(signal.SIGINT)
    assert status == 0 and said == ""


# --- pictures from a server


def test_pictures_of_a_server_are_saved_as_they_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with crowd(Config(folder=tmp_path / "serve")) as url:
        paint_there(url, ["a red cat", "a dog"], {"seed": 5, "steps": 3}, 2, Output(str(tmp_path / "out")))
        said = capsys.readouterr().out.splitlines()
        assert [Path(line.split("  ")[0]).name for line in said] == [
            "a-red-cat-5.png", "a-red-cat-6.png", "a-dog-5.png", "a-dog-6.png",
        ]  # fmt: skip
        with Image.open(tmp_path / "out" / "a-red-cat-6.png") as image:
            assert read_receipt(image, "it").recipe.seed == 6 and image.getpixel((0, 0)) == (6, 1, 7, 255)
        paint_there(url, ["a cat"], {"seed": 5}, 1, Output(str(tmp_path / "one.webp"), as_json=True))
        row = json.loads(capsys.readouterr().out)
        assert row["path"] == str(tmp_path / "one.webp") and row["recipe"]["prompt"] == "a cat" and row["seed"] == 5
        with Image.open(tmp_path / "one.webp") as image:
            assert image.format == "WEBP" and read_receipt(image, "it").recipe.prompt == "a cat"
        paint_there(url, ["a cat"], {"seed": 5}, 1, Output(str(tmp_path / "bare.png"), quiet=True, no_metadata=True))
        with Image.open(tmp_path / "bare.png") as image:
            assert "limner" not in image.info and "parameters" not in image.info


def test_what_a_server_refuses_takes_the_other_jobs_back(tmp_path: Path):
    config = Config(folder=tmp_path / "serve")
    with crowd(config, speed=0.5) as url:
        with pytest.raises(BadInput, match="did you mean steps"):
            paint_there(url, ["a cat"], {"stepps": 5}, 1, Output(str(tmp_path)))
        with pytest.raises(BadInput, match="cannot be painted"):
            paint_there(url, ["fail", "a dog", "a cat"], {"seed": 1}, 1, Output(str(tmp_path)))
        store = Store(config.url)
        assert sorted(job.state for job in store.jobs()) == ["cancelled", "cancelled", "failed"]
        store.close()

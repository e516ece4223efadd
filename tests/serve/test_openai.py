"""OpenAI's own client against a server on a real port."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from tests.serve.dialects import Live, live, picture

from limner.provenance.metadata import is_marked, parameters_of, read_receipt
from limner.recipe import Recipe

RED, CLEAR = (200, 30, 40, 255), (0, 0, 0, 0)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("serve")) as found:
        yield found


def client_of(here: Live, key: str = "none", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{here.url}/v1", api_key=key, max_retries=retries, timeout=20)


@pytest.fixture
def client(here: Live) -> Iterator[openai.OpenAI]:
    with client_of(here) as found:
        yield found


def opened(text: str | None) -> Image.Image:
    assert text
    return Image.open(io.BytesIO(base64.b64decode(text)))


def file(width: int = 64, height: int = 64, image: Image.Image | None = None) -> tuple[str, bytes, str]:
    out = io.BytesIO()
    (image or Image.new("RGB", (width, height), "green")).save(out, "PNG")
    return "a.png", out.getvalue(), "image/png"


def test_pictures_from_words(here: Live, client: openai.OpenAI):
    made = client.images.generate(
        prompt="a red apple", model="mini", n=2, size="96x64", response_format="b64_json", user="somebody",
        extra_body={"negative_prompt": "blue", "num_inference_steps": 5, "guidance_scale": 3.5, "seed": 7},
    )  # fmt: skip
    wished = {"prompt": "a red apple", "negative": "blue", "steps": 5, "cfg_scale": 3.5, "seed": 7}
    assert here.last() == wished | {"width": 96, "height": 64, "model": "mini"}
    assert made.data and len(made.data) == 2 and made.size == "96x64" and made.output_format == "png"
    images = [opened(one.b64_json) for one in made.data]
    assert [image.size for image in images] == [(96, 64), (96, 64)]
    assert [read_receipt(image, "x").recipe.seed for image in images] == [7, 8]
    assert made.model_dump()["ignored"] == ["user"]
    assert [one.model_dump()["seed"] for one in made.data] == [7, 8]
    assert made.created > 1.7e9


def test_width_and_height_of_other_servers(here: Live, client: openai.OpenAI):
    client.images.generate(prompt="x", extra_body={"width": 80, "height": 64})
    assert (here.last()["width"], here.last()["height"]) == (80, 64)
    client.images.generate(prompt="x", size="auto", style="icon")  # type: ignore[call-overload]
    assert "width" not in here.last() and here.last()["style"] == "icon"


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_formats_and_backgrounds(client: openai.OpenAI, kind: Any):
    made = client.images.generate(prompt="a cat", output_format=kind, background="opaque")
    assert made.data and made.output_format == kind and made.background == "opaque"
    image = opened(made.data[0].b64_json)
    assert image.format == kind.upper() and image.mode == "RGB"
    assert image.getpixel((2, 2)) == pytest.approx((255, 255, 255), abs=4)
    assert read_receipt(image, "x").recipe.prompt == "a cat" and is_marked(image) and parameters_of(image)
    if kind != "jpeg":
        clear = client.images.generate(prompt="a cat", output_format=kind, background="transparent").data
        assert clear and opened(clear[0].b64_json).convert("RGBA").getpixel((2, 2))[3] == 0  # type: ignore[index]


def test_a_url_leads_to_the_picture(here: Live, client: openai.OpenAI):
    made = client.images.generate(prompt="x", response_format="url").data
    assert made and made[0].url and made[0].url.startswith(here.url)
    answer = httpx.get(made[0].url, headers={"authorization": "Bearer none"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"size": "huge"}, "size", "size should be auto or WIDTHxHEIGHT"),
        ({"size": "64x64", "extra_body": {"width": 80, "height": 64}}, "size", "size says 64x64"),
        ({"extra_body": {"width": 80}}, "height", "belong together"),
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"quality": "high"}, "quality", "should be 'auto' or 'standard'"),
        ({"style": "vivid"}, "style", "no style is called 'vivid'"),
        ({"partial_images": 2}, "partial_images", "stream is false"),
        ({"output_format": "gif"}, "output_format", "should be 'png', 'jpeg' or 'webp'"),
        ({"output_format": "jpeg", "background": "transparent"}, "background", "JPEG"),
        ({"output_compression": 50}, "output_compression", "jpeg and webp"),
        ({"model": "sd", "background": "transparent"}, "background", "paints no transparent"),
        ({"response_format": "url", "output_format": "webp"}, "response_format", "b64_json"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "steps"),
        ({"extra_body": {"guidance_scale": "much"}}, "guidance_scale", "number"),
        ({"extra_body": {"negativ_prompt": "x"}}, "negativ_prompt", "did you mean negative_prompt"),
        ({"extra_body": {"seed": -7}}, "seed", "seed"),
    ],
)
def test_what_cannot_be_done_is_refused(client: openai.OpenAI, asked: dict[str, Any], param: str, words: str):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        client.images.generate(prompt="x", **asked)
    assert refused.value.param == param and refused.value.type == "invalid_request_error"
    assert (refused.value.code == "unknown_parameter") == (param == "negativ_prompt")


def test_models_that_are_not_here(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="no model is called 'dall-e-3'") as refused:
        client.images.generate(prompt="x", model="dall-e-3")
    assert refused.value.code == "model_not_found" and refused.value.param == "model"


def test_a_job_that_fails(here: Live):
    with client_of(here, retries=2) as client:
        before = len(here.jobs())
        with pytest.raises(openai.BadRequestError, match="this prompt cannot be painted"):
            client.images.generate(prompt="fail")
        assert len(here.jobs()) == before + 1


def test_bodies_that_are_none(here: Live):
    auth = {"authorization": "Bearer x"}
    for path, sent in (
        ("generations", {"content": b"{", "headers": auth}),
        ("generations", {"content": b"[1]", "headers": auth}),
        ("generations", {"content": b"[" * 100_000, "headers": auth}),
        ("edits", {"json": {}, "headers": auth}),
        ("edits", {"content": b"x", "headers": auth | {"content-type": "multipart/form-data; boundary=y"}}),
        ("edits", {"content": b"x", "headers": auth | {"content-type": "multipart/form-data"}}),
        ("edits", {"files": {"image": ("a", b"no picture")}, "data": {"prompt": "x"}, "headers": auth}),
    ):
        answer = httpx.post(f"{here.url}/v1/images/{path}", **sent)  # type: ignore[arg-type]
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["type"] == "invalid_request_error" and error["message"], sent


def test_an_edit(here: Live, client: openai.OpenAI):
    made = client.images.edit(image=file(64, 48), prompt="bluer", extra_body={"strength": 0.4, "seed": 3})
    wishes = here.last()
    assert wishes["task"] == "edit" and wishes["strength"] == 0.4 and wishes["seed"] == 3 and "mask" not in wishes
    assert here.shown(wishes["image"]).size == (64, 48)
    assert made.size == "64x48"


def test_what_is_clear_in_the_mask_is_painted_anew(here: Live, client: openai.OpenAI):
    clear = Image.new("RGBA", (64, 48), "white")
    clear.paste((0, 0, 0, 0), (0, 0, 16, 48))
    client.images.edit(image=[file(64, 48)], mask=file(image=clear), prompt="a hat", size="auto", n=2)
    wishes = here.last()
    assert wishes["task"] == "inpaint"
    mask = here.shown(wishes["mask"])
    assert mask.mode == "L" and mask.size == (64, 48)
    assert (mask.getpixel((4, 4)), mask.getpixel((40, 4))) == (255, 0)


def test_an_edit_in_another_size(here: Live, client: openai.OpenAI):
    clear = Image.new("RGBA", (64, 64), CLEAR)
    client.images.edit(image=file(), mask=file(image=clear), prompt="x", size="128x128")  # type: ignore[call-overload]
    wishes = here.last()
    assert here.shown(wishes["image"]).size == here.shown(wishes["mask"]).size == (128, 128)
    for asked, words in (
        ({"image": file(), "size": "128x96"}, "has not the form of 128x96"),
        ({"image": file(), "mask": file()}, "nothing of the mask is clear"),
        ({"image": file(), "mask": file(image=Image.new("RGBA", (8, 8)))}, "the mask is 8x8"),
        ({"image": [file(), file()]}, "one image should be sent, not 2"),
        ({"image": ("a.gif", b"GIF89a" + bytes(50), "image/gif")}, "PNG, JPEG or WebP"),
        ({"image": file(), "size": "9999x9999"}, "pixels"),
        ({"image": file(), "background": "transparent"}, "the picture has no transparency"),
        ({"image": file(), "input_fidelity": "high"}, "no field is called 'input_fidelity'"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.images.edit(prompt="x", **asked)  # type: ignore[call-overload]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The `create_variation`:DeprecationWarning")
def test_variations(here: Live, client: openai.OpenAI):
    ours = base64.b64decode(picture(64, 80, Recipe(prompt="a cat", seed=5, steps=3, width=64, height=80)))
    before = len(here.jobs())
    made = client.images.create_variation(image=("a.png", ours, "image/png"), n=3)
    assert made.data and len(made.data) == 3
    new = [job.wishes for job in here.jobs()[: len(here.jobs()) - before]]
    assert [one["seed"] for one in new] == [5, 5, 5] and {one["variation"] for one in new} == {0.3}
    assert len({one["subseed"] for one in new}) == 3 and {one["prompt"] for one in new} == {"a cat"}
    client.images.create_variation(image=file(), n=2)
    assert here.last()["task"] == "edit" and here.jobs()[0].count == 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_stream_of_partial_images(tmp_path: Path, count: int):

    with live(tmp_path, speed=0.02, steps=6) as here, client_of(here) as client:
        told = list(client.images.generate(prompt="x", stream=True, partial_images=count, output_format="webp"))
        kinds = [one.type for one in told]
        assert kinds[-1] == "image_generation.completed" and kinds.count("image_generation.completed") == 1
        partial = [one for one in told if one.type == "image_generation.partial_image"]
        assert len(partial) == min(count, 1)  # this hand makes one preview alone
        for one in partial:
            assert one.partial_image_index == 0 and one.output_format == "webp" and one.size == "4x4"
            assert opened(one.b64_json).size == (4, 4)
        last = told[-1]
        assert last.type == "image_generation.completed" and last.usage.total_tokens == 0
        assert opened(last.b64_json).format == "WEBP" and last.size == "48x32"


def test_a_stream_ends_with_its_error(here: Live, client: openai.OpenAI):
    with pytest.raises(openai.APIError, match="this prompt cannot be painted"):
        list(client.images.generate(prompt="fail", stream=True))
    events = client.images.edit(image=file(), prompt="x", stream=True)
    assert [one.type for one in events] == ["image_edit.completed"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_takes_its_job_along(tmp_path: Path, stream: bool):
    with live(tmp_path, speed=0.05, steps=400) as here:
        here.leave("/v1/images/generations", {"prompt": "x", "stream": stream}, 1)
        here.until(lambda: here.jobs()[0].state == "cancelled")
        here.hands.speed = 0.0
        with client_of(here) as again:  # and the server goes on
            assert again.images.generate(prompt="y").data


def test_a_full_queue_and_a_cancelled_job(tmp_path: Path):
    with live(tmp_path, speed=0.05, steps=400, max_queue=1) as here, client_of(here) as client:
        errors: list[Exception] = []

        def ask() -> None:
            try:
                client.images.generate(prompt="x")
            except openai.OpenAIError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for count, thread in enumerate(threads, 1):
            thread.start()
            here.until(lambda count=count: len(here.jobs()) == count and here.store.queue_length() == count - 1)
        with pytest.raises(openai.RateLimitError, match="wait already") as refused:
            client.images.generate(prompt="z")
        assert refused.value.response.headers["retry-after"] and refused.value.type == "rate_limit_error"
        for job in here.jobs():
            httpx.post(f"{here.url}/v1/jobs/{job.id}/cancel", headers={"authorization": "Bearer x"}).raise_for_status()
        for thread in threads:
            thread.join(10)
        assert [type(error) for error in errors] == [openai.BadRequestError] * 2
        assert {getattr(error, "code", "") for error in errors} == {"cancelled"}


def test_tokens(tmp_path: Path):
    with live(tmp_path, token_required=True) as here, client_of(here, "nobody") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.images.generate(prompt="x")
        assert refused.value.type == "authentication_error"

"""Foreign clients and a real worker that paints with the tiny model; the server's side imports no torch."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import schemathesis
import webuiapi
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image
from schemathesis import GenerationMode
from tests.serve.conftest import Here
from tests.serve.dialects import Live, live, picture

from limner.provenance.metadata import read_receipt
from limner.serve.dialect import unpacked
from limner.serve.seams import Refused


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with live(tmp_path_factory.mktemp("serve"), worker=True, model=str(tiny_folder)) as found:
            found.until(lambda: found.hands.capabilities, 120)
            yield found


def opened(text: str | None) -> Image.Image:
    assert text
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_openai(here: Live):
    green, out = Image.new("RGB", (64, 64), "green"), io.BytesIO()
    green.save(out, "PNG")
    mask, cut = Image.new("RGBA", (64, 64), "white"), io.BytesIO()
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    mask.save(cut, "PNG")
    few = {"num_inference_steps": 24}  # so many that a picture is not done before it is looked for
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert [one.id for one in client.models.list()] == [one["name"] for one in here.hands.capabilities["models"]]
        told = list(
            client.images.generate(prompt="a red apple", size="64x64", stream=True, partial_images=2, extra_body=few)  # type: ignore[call-overload]
        )
        assert told[0].type == "image_generation.partial_image" and told[-1].type == "image_generation.completed"
        assert opened(told[0].b64_json).format == "WEBP"
        image = opened(told[-1].b64_json)
        assert image.size == (64, 64) and image.mode == "RGBA"
        recipe = read_receipt(image, "x").recipe
        assert (recipe.prompt, recipe.steps) == ("a red apple", 24)
        again = client.images.generate(prompt="a red apple", size="64x64", extra_body=few | {"seed": recipe.seed}).data  # type: ignore[call-overload]
        assert opened(again[0].b64_json).tobytes() == image.tobytes()
        edited = client.images.edit(
            image=("a.png", out.getvalue()), mask=("m.png", cut.getvalue()), prompt="a cat", extra_body=few
        ).data
        assert edited
        pixels = opened(edited[0].b64_json).convert("RGB")
        assert pixels.getpixel((60, 30)) == (0, 128, 0) and pixels.getpixel((4, 30)) != (0, 128, 0)


def test_automatic1111(here: Live):
    api = webuiapi.WebUIApi(port=here.port, username="any", password="any", steps=4)
    made = api.txt2img(prompt="a (red:1.2) apple", negative_prompt="blue", width=64, height=64, seed=7, batch_size=2)
    assert [image.size for image in made.images] == [(64, 64)] * 2 and made.info["all_seeds"] == [7, 8]
    assert made.info["infotexts"][0].startswith("a (red:1.2) apple\nNegative prompt: blue\nSteps: 4, Sampler: euler_an")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    green = Image.new("RGB", (64, 64), "green")
    edited = api.img2img(
        images=[green], mask_image=mask, prompt="a cat", width=64, height=64, inpaint_full_res=False, mask_blur=0
    )
    pixels = edited.image.convert("RGB")
    assert pixels.getpixel((60, 30)) == (0, 128, 0) and pixels.getpixel((4, 30)) != (0, 128, 0)
    larger = api.extra_single_image(green, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    assert larger.image.size == (96, 96)
    assert larger.image.convert("RGB").getpixel((50, 50)) == pytest.approx((0, 128, 0), abs=1)
    second = api.txt2img(prompt="a cat", width=64, height=64, enable_hr=True, hr_scale=1.5, denoising_strength=0.5)
    assert second.image.size == (96, 96) and "Lanczos" in second.info["differs"][0]


def test_no_torch_on_the_server_s_side():
    names = "limner.serve.openai, limner.serve.a1111, limner.provenance.foreign, limner.cli.remote, limner.files"
    code = f"import sys, {names}; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (7, "base64"), ("http://127.0.0.1/x.png", "fetches none"), ("HTTPS://x", "fetches none"), ("ä", "not base64"),
        ("data:image/png;base64,%%", "not base64"), ("file:///etc/passwd", "not base64"),
    ],
)  # fmt: skip
def test_pictures_are_base64_alone(text: object, words: str):
    with pytest.raises(Refused, match=words):
        unpacked(text, "image")


def test_base64_in_its_forms():
    assert unpacked("aGk=", "x") == unpacked("data:image/png;base64,aG\nk=", "x") == b"hi"


STRANGE = [
    b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b'{"prompt": "x", "zz": 1e999}', b'{"prompt": "x", "zz": "\\ud800"}',
    b'{"prompt": "\\udfff"}', b'{"\\ud800": 1, "prompt": "x"}', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}",
    b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", b'{"prompt": "x", "seed": ' + b"9" * 400 + b"}",
    b'{"prompt": "x\\u0000"}', b'{"prompt": {"a": 1}}', b'{"prompt": "x", "size": "0x0", "width": -1, "height": 0}',
    b'{"prompt": "x", "model": [], "override_settings": {"sd_model_checkpoint": {}}}',
    b'{"prompt": "x", "n": true, "n_iter": {}}', b'{"prompt": "x", "width": 1e300, "height": 1}',
    b'{"prompt": "x", "init_images": [null]}', b'{"prompt": "x", "mask": 7, "steps": -1, "num_inference_steps": -1}',
]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/options"]
)
def test_no_body_is_too_strange(path: str, served: Callable[..., None]):
    async def test(here: Here) -> None:
        for body in STRANGE:
            answer = await here.client.post(path, content=body)
            assert answer.status_code in (200, 400, 404, 422), (body[:80], answer.text)
            answer.json()
            answer.content.decode()

    served(test)


WHOLE, PART, TEXT = {"type": "integer"}, {"type": "number"}, {"type": "string"}
SIDE = WHOLE | {"minimum": 16, "maximum": 128}
PICTURE = {"enum": [picture(16, 16).decode(), "data:image/png;base64," + picture(8, 16).decode(), "no picture"]}
WORDS = {
    "prompt": TEXT, "negative_prompt": TEXT, "styles": {"type": "array", "items": TEXT}, "seed": WHOLE,
    "subseed": WHOLE, "subseed_strength": PART, "sampler_name": {"enum": ["Euler a", "DPM++ 2M Karras", "none"]},
    "scheduler": TEXT,
    "batch_size": WHOLE | {"minimum": 1, "maximum": 2}, "n_iter": WHOLE | {"minimum": 1, "maximum": 2},
    "steps": WHOLE | {"minimum": 1, "maximum": 9}, "cfg_scale": PART, "width": SIDE, "height": SIDE, "eta": PART,
    "tiling": {"type": "boolean"}, "override_settings": {"type": "object"}, "alwayson_scripts": {"type": "object"},
}  # fmt: skip
REPAIRED = {
    "init_images": {"type": "array", "items": PICTURE}, "mask": PICTURE, "mask_blur": WHOLE, "resize_mode": WHOLE,
    "denoising_strength": PART, "inpainting_fill": WHOLE, "inpaint_full_res": {"type": "boolean"},
    "inpainting_mask_invert": WHOLE,
}  # fmt: skip
HIGHER = {"enable_hr": {"type": "boolean"}, "hr_scale": PART, "hr_upscaler": TEXT, "denoising_strength": PART}
ENLARGED = {"image": PICTURE, "resize_mode": WHOLE, "upscaling_resize": PART, "upscaler_1": TEXT}
JSON: dict[str, dict[str, Any]] = {
    "/sdapi/v1/txt2img": WORDS | HIGHER,
    "/sdapi/v1/img2img": WORDS | REPAIRED,
    "/sdapi/v1/options": {"sd_model_checkpoint": TEXT, "CLIP_stop_at_last_layers": WHOLE},
    "/sdapi/v1/png-info": {"image": PICTURE},
    "/sdapi/v1/extra-single-image": ENLARGED,
    "/v1/images/generations": {
        "prompt": TEXT, "n": WHOLE | {"minimum": 1, "maximum": 2}, "size": {"enum": ["64x64", "auto", "9x"]},
        "model": TEXT, "response_format": {"enum": ["b64_json", "url"]},
        "output_format": {"enum": ["png", "jpeg", "webp"]},
        "output_compression": WHOLE, "background": TEXT, "stream": {"type": "boolean"}, "partial_images": WHOLE,
        "style": TEXT, "seed": WHOLE, "guidance_scale": PART,
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_schemathesis_finds_no_error_inside_in_the_dialects(tmp_path: Path):
    """What each dialect's clients may send, and what they may not, over real connections: never a 5xx."""
    paths = {
        path: {
            "post": {
                "requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": fields}}}},
                "responses": {"200": {"description": "as asked"}},
            }
        }
        for path, fields in JSON.items()
    }
    schema = schemathesis.openapi.from_dict({"openapi": "3.1.0", "info": {"title": "", "version": ""}, "paths": paths})
    answered: Counter[int] = Counter()

    def ask(one: schemathesis.APIOperation) -> None:
        both = [one.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

        @settings(max_examples=30, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(both[0] | both[1])
        def run(case: schemathesis.Case) -> None:
            status = case.call(base_url=here.url, headers={"authorization": "Bearer x"}).status_code
            assert status < 500, case.as_curl_command()
            answered[status // 100] += 1

        run()

    with live(tmp_path, max_queue=10_000, max_queue_all=10_000) as here:
        for found in schema.get_all_operations():
            ask(found.ok())
    assert answered[2] > 3 and answered[4] > 3, "both what is right and what is wrong was asked"

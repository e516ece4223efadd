"""webuiapi, a client of AUTOMATIC1111's API, against a server on a real port."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image
from tests.serve.dialects import Live, live, picture

from limner.provenance.metadata import read_receipt
from limner.recipe import Recipe

WHOLE = (64, 96)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("serve")) as found:
        yield found


@pytest.fixture
def api(here: Live) -> webuiapi.WebUIApi:
    return api_of(here)


def api_of(here: Live, password: str = "any") -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(port=here.port, username="any", password=password)


def post(here: Live, path: str, body: Any, **more: Any) -> httpx.Response:
    auth = {"authorization": "Bearer any"}
    return httpx.post(f"{here.url}/sdapi/v1/{path}", json=body, headers=auth, timeout=10, **more)


def green(width: int = 64, height: int = 96) -> Image.Image:
    return Image.new("RGB", (width, height), "green")


def test_pictures_from_words(here: Live, api: webuiapi.WebUIApi):
    made = api.txt2img(
        prompt="a (red:1.2) apple", negative_prompt="blue", seed=7, steps=5, cfg_scale=3.5, width=64, height=96,
        batch_size=2, n_iter=2, sampler_name="DPM++ 2M", scheduler="Karras",
    )  # fmt: skip
    assert here.last() == {
        "prompt": "a (red:1.2) apple", "negative": "blue", "seed": 7, "steps": 5, "cfg_scale": 3.5, "width": 64,
        "height": 96, "sampler": "dpmpp_2m", "schedule": "karras", "syntax": "a1111", "model": "mini",
    }  # fmt: skip
    assert [image.size for image in made.images] == [WHOLE] * 4
    assert made.info["all_seeds"] == [7, 8, 9, 10] and made.info["seed"] == 7
    assert made.info["all_prompts"] == ["a (red:1.2) apple"] * 4
    assert made.info["sampler_name"] == "DPM++ 2M" and made.info["sd_model_name"] == "mini"
    assert made.info["infotexts"][1].startswith("a (red:1.2) apple\nNegative prompt: blue\nSteps: 5, ")
    assert made.info["ignored"] == [] and made.info["differs"] == []
    assert made.images[0].info["parameters"] == made.info["infotexts"][0]
    assert made.parameters["cfg_scale"] == 3.5


def test_what_a_client_leaves_out_is_the_model_s(here: Live):
    answer = post(
        here, "txt2img", {"prompt": "x", "no_such_field": 3, "override_settings": {"eta_noise_seed_delta": 1}}
    )
    assert answer.status_code == 200
    assert here.last().keys() == {"prompt", "negative", "seed", "model", "syntax"}
    assert '"ignored": ["no_such_field", "override_settings.eta_noise_seed_delta"]' in answer.json()["info"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"sampler_name": "Euler a"}, {"sampler": "euler_ancestral"}),
        ({"sampler_index": "Euler"}, {"sampler": "euler"}),
        ({"sampler_name": "DPM++ 2M Karras"}, {"sampler": "dpmpp_2m", "schedule": "karras"}),
        ({"sampler_name": "heunpp2", "scheduler": "leading"}, {"sampler": "heunpp2", "schedule": "leading"}),
        ({"sampler_name": "Euler", "scheduler": "Uniform"}, {"sampler": "euler", "schedule": "linspace"}),
        ({"scheduler": "Simple"}, {"schedule": "simple"}),
        ({"sampler_name": "DDIM", "eta": 0}, {"sampler": "euler"}),
        ({"tiling": True}, {"seamless": "xy"}),
        ({"styles": ["icon"]}, {"style": "icon"}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2, "randn_source": "NV"}}, {"clip_skip": 2, "noise": "nv"}),
        ({"steps": "12", "width": "64", "height": 64}, {"steps": 12, "width": 64}),
        ({"seed": -1, "subseed": -1, "subseed_strength": 0}, {}),
        ({"alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": [{"enabled": False}]}}}, {}),
    ],
)  # fmt: skip
def test_fields(here: Live, asked: dict[str, Any], expected: dict[str, Any]):
    answer = post(here, "txt2img", {"prompt": "x"} | asked)
    assert answer.status_code == 200, answer.text
    found = here.last()
    assert found.items() >= expected.items()
    usual = {"prompt", "negative", "seed", "model", "syntax", "height"}
    assert found.keys() <= usual | expected.keys() and found["seed"] >= 0


def test_automatic_means_what_it_means_there(here: Live):
    checkpoint = {"override_settings": {"sd_model_checkpoint": "sd.safetensors [0123abcd]"}}
    for sampler, schedule in (("DPM++ 2M", "karras"), ("Euler a", "linspace"), ("DPM++ 2M Karras", "karras")):
        assert post(here, "txt2img", {"sampler_name": sampler} | checkpoint).status_code == 200
        assert here.last()["schedule"] == schedule and here.last()["model"] == "sd"


def test_variations_keep_the_seed(here: Live, api: webuiapi.WebUIApi):
    made = api.txt2img(prompt="x", seed=5, subseed=11, subseed_strength=0.25, batch_size=3, width=64, height=64)
    assert made.info["all_seeds"] == [5, 5, 5] and made.info["all_subseeds"] == [11, 12, 13]
    assert {job.key for job in here.jobs()[:3]} == {here.jobs()[0].key} and here.last()["variation"] == 0.25


def test_a_second_pass(here: Live, api: webuiapi.WebUIApi):
    made = api.txt2img(prompt="x", enable_hr=True, width=64, height=64, denoising_strength=0.4, hr_scale=1.5)
    assert here.last()["hires"] == 1.5 and here.last()["hires_strength"] == 0.4 and "upscaler" not in here.last()
    assert made.info["differs"] == ["hr_upscaler: Latent is not here; the pictures were enlarged by Lanczos"]
    assert made.info["denoising_strength"] == 0.4
    api.txt2img(prompt="x", enable_hr=True, width=64, height=64, hr_resize_x=128, hr_upscaler="4x-sharp")
    assert here.last()["hires"] == 2 and here.last()["upscaler"] == "4x-sharp"
    api.txt2img(prompt="x", width=64, height=64, hr_upscaler="ESRGAN", hr_prompt="y")  # without enable_hr: nothing
    assert "hires" not in here.last()


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({"restore_faces": True}, 422, "restore_faces"),
        ({"s_churn": 4}, 422, "s_churn"),
        ({"eta": 0.5}, 422, "eta"),
        ({"eta": 0, "sampler_name": "Euler a"}, 422, "eta"),
        ({"script_name": "x/y/z plot"}, 422, "script_name"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "x"}]}}}, 422, "alwayson_scripts"),
        ({"alwayson_scripts": {"ControlNet": 5}}, 422, "alwayson_scripts"),
        ({"sampler_name": "DPM fast"}, 404, "sampler_name"),
        ({"scheduler": "Nobody's"}, 404, "scheduler"),
        ({"override_settings": {"sd_model_checkpoint": "v1-5"}}, 404, "sd_model_checkpoint"),
        ({"override_settings": {"sd_vae": "vae.pt"}}, 422, "override_settings"),
        ({"override_settings": {"randn_source": "GPU"}}, 422, "override_settings"),
        ({"styles": ["masterpiece"]}, 422, "styles"),
        ({"steps": 1001}, 422, "steps"),
        ({"steps": "many"}, 422, "steps"),
        ({"prompt": ["x"]}, 422, "prompt"),
        ({"cfg_scale": 101}, 422, "cfg_scale"),
        ({"width": 70, "height": 64}, 422, None),
        ({"batch_size": 0}, 422, "batch_size"),
        ({"n_iter": 65}, 422, "count"),
        ({"n_iter": 65, "subseed_strength": 0.5}, 422, "batch_size"),
        ({"seed": -5}, 422, "seed"),
        ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, 422, "hr_upscaler"),
        ({"enable_hr": True, "hr_prompt": "y"}, 422, "hr_prompt"),
        ({"enable_hr": True, "hr_second_pass_steps": 9}, 422, "hr_second_pass_steps"),
        ({"enable_hr": True, "width": 64, "height": 64, "hr_resize_x": 128, "hr_resize_y": 100}, 422, "hr_resize_x"),
        ({"refiner_checkpoint": "unknown", "refiner_switch_at": 0.8}, 422, "refiner"),
        ({"prompt": "fail"}, 422, None),
        ([1], 400, None),
    ],
)
def test_what_cannot_be_done_is_refused(here: Live, asked: Any, status: int, field: str | None):
    answer = post(here, "txt2img", {"prompt": "x"} | asked if isinstance(asked, dict) else asked)
    told = answer.json()
    assert answer.status_code == status, told
    assert told["detail"] and told["errors"] == told["detail"] and told["error"] == "HTTPException"
    assert field is None or told["field"] == field


def test_a_picture_to_a_picture(here: Live, api: webuiapi.WebUIApi):
    made = api.img2img([green()], prompt="bluer", width=64, height=96, denoising_strength=0.4, seed=3)
    wishes = here.last()
    assert wishes["task"] == "edit" and wishes["strength"] == 0.4 and wishes["image_cfg"] == 1.5
    assert "width" not in wishes and "mask" not in wishes
    assert here.shown(wishes["image"]).size == WHOLE and made.image.size == WHOLE
    assert made.parameters["init_images"] is None
    assert made.info["ignored"] == [] and made.info["differs"] == []


@pytest.mark.parametrize(("mode", "border"), [(0, "green"), (1, "red")])
def test_another_size_is_stretched_or_cropped(here: Live, api: webuiapi.WebUIApi, mode: int, border: str):
    image = Image.new("RGB", (64, 128), "red")
    image.paste("green", (0, 0, 64, 16))
    api.img2img([image], prompt="x", width=64, height=64, resize_mode=mode)
    found = here.shown(here.last()["image"]).convert("RGB")
    assert found.size == (64, 64) and found.getpixel((30, 2)) == {"green": (0, 128, 0), "red": (255, 0, 0)}[border]
    with pytest.raises(RuntimeError, match="resize_mode should be 0"):
        api.img2img([image], prompt="x", width=64, height=64, resize_mode=2)


def test_a_mask(here: Live, api: webuiapi.WebUIApi):
    mask = Image.new("L", (32, 48), 0)
    mask.paste(255, (0, 0, 16, 48))
    made = api.img2img(
        [green()], mask_image=mask, prompt="a hat", width=64, height=96, mask_blur=3, inpaint_full_res_padding=20,
        inpainting_fill=1,
    )  # fmt: skip
    wishes = here.last()
    assert wishes["task"] == "inpaint" and wishes["feather"] == 3 and wishes["padding"] == 20 and wishes["only_masked"]
    found = here.shown(wishes["mask"])
    assert found.mode == "L" and found.size == WHOLE and (found.getpixel((4, 4)), found.getpixel((60, 4))) == (255, 0)
    assert len(made.info["differs"]) == 1 and made.info["ignored"] == []
    clear = Image.new("RGBA", WHOLE, (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 32, 96))
    made = api.img2img(
        [green()], mask_image=clear, inpainting_mask_invert=1, inpaint_full_res=False, width=64, height=96
    )
    found = here.shown(here.last()["mask"])
    assert (found.getpixel((4, 4)), found.getpixel((60, 4))) == (0, 255) and not here.last()["only_masked"]
    assert [said.partition(":")[0] for said in made.info["differs"]] == ["inpainting_fill", "mask_blur"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ([], 422), (["x", "y"], 422), (["no base64!"], 422), (["http://127.0.0.1/a.png"], 422), ("x", 422),
        ([base64.b64encode(b"no picture").decode()], 415), ([base64.b64encode(b"GIF89a" + bytes(99)).decode()], 415),
    ],
)  # fmt: skip
def test_what_is_no_picture(here: Live, given: Any, status: int):
    answer = post(here, "img2img", {"init_images": given})
    assert answer.status_code == status and answer.json()["detail"]


def test_a_picture_that_is_cut_short(here: Live):
    data = base64.b64decode(picture(640, 640))
    for body in ({"width": 64, "height": 64}, {"mask": base64.b64encode(data[:-400]).decode()}):
        answer = post(here, "img2img", {"init_images": [base64.b64encode(data[:-400]).decode()]} | body)
        assert answer.status_code == 422 and "cannot be read" in answer.json()["detail"]
    answer = post(here, "img2img", {"init_images": [picture(8, 8).decode()], "width": 90_000, "height": 90_000})
    assert answer.status_code == 422 and "pixels" in answer.json()["detail"]


def test_lists(here: Live, api: webuiapi.WebUIApi):
    assert [one["title"] for one in api.get_sd_models()] == ["mini", "sd"]
    assert api.util_get_model_names() == ["mini", "sd"]
    names = [one["name"] for one in api.get_samplers()]
    assert names == ["DPM++ 2M", "Euler a", "Euler", "LMS", "Heun", "DDIM", "heunpp2"]
    labels = {one["label"]: one["name"] for one in api.get_schedulers()}
    assert labels == {
        "Automatic": "automatic", "Uniform": "uniform", "Karras": "karras", "Simple": "simple", "Normal": "normal",
        "leading": "leading",
    }  # fmt: skip
    for sampler, schedule in zip(names, labels.values(), strict=False):  # what is listed can be asked for
        assert post(here, "txt2img", {"sampler_name": sampler, "scheduler": schedule}).status_code == 200
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "4x-sharp"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []} and api.get_loras() == [] == api.get_sd_vae()
    assert api.get_embeddings()["loaded"] == {} and api.refresh_checkpoints() is None
    assert api.get_memory()["detail"] == "there is nothing at this address"


def test_options_are_an_owner_s_own(here: Live, api: webuiapi.WebUIApi):
    assert api.util_get_current_model() == "mini"
    api.util_set_model("sd")
    assert api.util_get_current_model() == "sd"
    api.txt2img(prompt="x", width=64, height=64)
    assert here.last()["model"] == "sd"
    assert api.set_options({"CLIP_stop_at_last_layers": 2, "face_restoration_model": "x"}) == {
        "ignored": ["face_restoration_model"]
    }
    api.txt2img(prompt="x", width=64, height=64, override_settings={"sd_model_checkpoint": "mini"})
    assert here.last()["model"] == "mini" and here.last()["clip_skip"] == 2
    assert api.set_options({"sd_model_checkpoint": "mini", "CLIP_stop_at_last_layers": 1}) is None
    assert "no model is called" in api.set_options({"sd_model_checkpoint": "v1-5"})["detail"]
    assert post(here, "options", {"sd_model_checkpoint": []}).status_code == 404


def test_progress_and_interrupt(tmp_path: Path):
    with live(tmp_path, speed=0.03, steps=400) as here:
        api, answers = api_of(here), []
        assert api.get_progress()["progress"] == 0 and api.get_progress()["state"]["job_count"] == 0
        thread = threading.Thread(target=lambda: answers.append(api_of(here).txt2img(prompt="x", width=64, height=64)))
        thread.start()
        told = here.until(lambda: (now := api.get_progress())["state"]["sampling_step"] > 1 and now)
        assert 0 < told["progress"] < 1 and told["state"]["job_count"] == 1 and told["eta_relative"] > 0
        assert told["state"]["sampling_steps"] == 400 and told["current_image"]
        url = f"{here.url}/sdapi/v1/progress?skip_current_image=true"
        assert httpx.get(url, headers={"authorization": "Bearer x"}).json()["current_image"] is None
        assert api.interrupt() == {}
        thread.join(10)
        assert answers[0].images == [] and answers[0].info["interrupted"] is True
        assert here.jobs()[0].state == "cancelled"
        assert api.get_progress()["state"]["job_count"] == 0


def test_a_client_that_goes_away_takes_its_jobs_along(tmp_path: Path):
    with live(tmp_path, speed=0.05, steps=400) as here:
        for body, count in (({"prompt": "x"}, 1), ({"prompt": "x", "subseed_strength": 0.5, "batch_size": 3}, 3)):
            here.leave("/sdapi/v1/txt2img", body, count)
            here.until(lambda: {job.state for job in here.jobs()} == {"cancelled"})
        assert len(here.jobs()) == 4 and api_of(here).get_progress()["state"]["job_count"] == 0


def test_what_a_picture_carries(here: Live, api: webuiapi.WebUIApi):
    made = api.txt2img(prompt="a cat, sitting", seed=9, width=64, height=64)
    told = api.png_info(made.image)
    assert told.info == made.info["infotexts"][0]
    assert told.parameters["Prompt"] == "a cat, sitting" and told.parameters["Seed"] == "9"
    assert (told.parameters["Size-1"], told.parameters["Size-2"]) == ("64", "64")
    assert told.json["recipe"]["prompt"] == "a cat, sitting" and "parameters" in told.json["items"]
    empty = api.png_info(green())
    assert empty.info == "" and empty.parameters == {} and empty.json["recipe"] is None
    theirs = green()
    theirs.info["parameters"] = "a dog\nSteps: 20, Sampler: Euler a, Seed: 3, Size: 512x512"
    assert api.png_info(theirs).json["recipe"]["sampler"] == "euler_ancestral"


def test_a_picture_enlarged(here: Live, api: webuiapi.WebUIApi):
    made = api.extra_single_image(green(), upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    wishes = here.last()
    assert (wishes["task"], wishes["strength"], wishes["scale"]) == ("upscale", 0, 1.5) and "upscaler" not in wishes
    assert made.image.size == (96, 144)
    api.extra_single_image(
        green(), resize_mode=1, upscaling_resize_w=128, upscaling_resize_h=192, upscaler_1="4x-sharp"
    )
    assert here.last()["scale"] == 2 and here.last()["upscaler"] == "4x-sharp"
    before = len(here.jobs())
    assert api.extra_single_image(green()).image.size == WHOLE and len(here.jobs()) == before
    for asked in ({"gfpgan_visibility": 1}, {"upscaler_1": "SwinIR 4x"}, {"resize_mode": 1, "upscaler_1": "Lanczos"}):
        with pytest.raises(RuntimeError, match="422"):
            api.extra_single_image(green(), **asked)


def test_tokens(tmp_path: Path):
    with live(tmp_path, token_required=True) as here, pytest.raises(RuntimeError, match="401"):
        api_of(here).txt2img(prompt="x")


def test_a_receipt_is_kept(api: webuiapi.WebUIApi):
    made = api.txt2img(prompt="x", seed=1, width=64, height=64)
    assert read_receipt(made.image, "x").recipe == Recipe.of(
        {"prompt": "x", "seed": 1, "width": 64, "height": 64, "steps": 20, "syntax": "a1111", "cfg_scale": 7.0}
    )

"""AUTOMATIC1111's API below /sdapi/v1, as far as its clients use it, by the same desk as everything else.

Fields that are not known are passed over, as there, and listed in the answer's info as `ignored`. What changes the
picture there and cannot be done here is refused; what is done in another way is told in a sentence under `differs`.
Where no sampler, number of steps or size is said, the model's own is taken, or the picture's size.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps
from pydantic import Field, TypeAdapter, ValidationError

from limner import __version__
from limner.errors import UnknownName
from limner.provenance.foreign import LABELS, SCHEDULE_LABELS, sampler_of, schedule_of, split
from limner.provenance.metadata import parameters_of
from limner.serve import desk
from limner.serve.desk import aside
from limner.serve.dialect import (
    Made,
    Order,
    accepted,
    answering,
    decoded,
    json_object,
    kept,
    packed,
    painted,
    png,
    stretched,
    unpacked,
)
from limner.serve.routes import Here, Painter, Reader
from limner.serve.seams import Parts, Refused, Who
from limner.serve.tables import Job
from limner.serve.wishes import CHANCE

STRENGTH = 0.75  # of img2img and of the second pass, where none is said
BLUR = 4  # pixels around a mask, where none are said
MOST_FEATHER = 256
QUIET = {  # what changes no picture
    "do_not_save_samples", "do_not_save_grid", "save_images", "send_images", "override_settings_restore_afterwards",
    "force_task_id", "script_args", "s_tmax", "include_init_images", "disable_extra_networks",
}  # fmt: skip
NEUTRAL: dict[str, tuple[object, ...]] = {  # what must say nothing, because it cannot be done here
    "restore_faces": (False,), "s_churn": (0,), "s_tmin": (0,), "s_noise": (1,), "s_min_uncond": (0,),
    "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1), "script_name": ("", "None"), "infotext": ("",),
    "firstphase_width": (0,), "firstphase_height": (0,), "firstpass_image": ("",), "initial_noise_multiplier": (1,),
    "latent_mask": ("",),
}  # fmt: skip
SAME_AS_FIRST: dict[str, tuple[object, ...]] = {  # of a second pass
    "hr_checkpoint_name": ("", "Use same checkpoint"), "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"), "hr_prompt": ("",), "hr_negative_prompt": ("",),
}  # fmt: skip
HR = {"hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", *SAME_AS_FIRST}
EMPTY: dict[str, Any] = {  # lists that are empty here
    "sd-vae": [], "loras": [], "hypernetworks": [], "face-restorers": [], "prompt-styles": [],
    "latent-upscale-modes": [], "realesrgan-models": [], "embeddings": {"loaded": {}, "skipped": {}}, "cmd-flags": {},
    "scripts": {"txt2img": [], "img2img": []}, "script-info": [], "extensions": [],
}  # fmt: skip
T = TypeVar("T")


def refused(error: Refused) -> JSONResponse:
    """A refusal in the form that AUTOMATIC1111's errors have."""
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["www-authenticate"] = "Basic"
    names = {"error": "HTTPException", "detail": error.message, "body": "", "errors": error.message}
    return JSONResponse(names | {"field": error.field}, error.status, headers)


router = APIRouter(prefix="/sdapi/v1", route_class=answering(refused), include_in_schema=False)


class Asked:
    """The fields of a request: each is taken once, and what nobody took is known at the end."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.said = {name: value for name, value in body.items() if value is not None}
        self.left = set(self.said) - QUIET
        self.differs: list[str] = []

    def take(self, name: str, kind: TypeAdapter[T], default: T) -> T:
        """A field, as lenient as AUTOMATIC1111 is: a number may stand in quotes."""
        self.left.discard(name)
        if name not in self.said:
            return default
        try:
            return kind.validate_python(self.said[name])
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Input ")
            raise Refused(422, f"{name} {said}, not {self.said[name]!r:.60}", name) from None

    def only(self, neutral: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse what cannot be done here, unless it says nothing."""
        for name, values in neutral.items():
            self.left.discard(name)
            if name in self.said and self.said[name] not in values:
                usual = " or ".join(repr(value) for value in values)
                raise Refused(422, f"{name} cannot be done here; it should be left out, or {usual}", name)

    def pass_over(self, *names: str) -> None:
        self.left.difference_update(names)


Number = TypeAdapter(Annotated[float, Field(allow_inf_nan=False)])
Whole, Text, Flag = TypeAdapter(int), TypeAdapter(str), TypeAdapter(bool)
Texts, Names = TypeAdapter(list[str]), TypeAdapter(dict[str, Any])


# --- pictures


@router.post("/txt2img")
async def txt2img(request: Request, here: Here, me: Painter) -> dict[str, Any]:
    """Pictures from words, and a second pass over them enlarged."""
    body = await json_object(request)
    asked = Asked(body)
    wishes, count = await common(here, me, asked)
    sides = {side: asked.take(side, Whole, 0) for side in ("width", "height")}
    wishes |= {side: size for side, size in sides.items() if size}
    if asked.take("enable_hr", Flag, False):
        wishes |= second_pass(here, asked, wishes)
    asked.pass_over("denoising_strength", *HR)  # of a second pass alone
    return await answer(request, here, me, asked, wishes, count, body)


@router.post("/img2img")
async def img2img(request: Request, here: Here, me: Painter) -> dict[str, Any]:
    """A picture and words to a picture; with a mask, only a part of it."""
    body = await json_object(request)
    asked = Asked(body)
    wishes, count = await common(here, me, asked)
    given = asked.take("init_images", Texts, [])
    if len(given) != 1:
        raise Refused(422, f"one picture should be sent as init_images, not {len(given)}", "init_images")
    data = await aside(unpacked, given[0], "init_images")
    size = (await aside(desk.look, data))[1]
    sides = (asked.take("width", Whole, 0) or size[0], asked.take("height", Whole, 0) or size[1])
    mode = asked.take("resize_mode", Whole, 0)
    if min(sides) < 1 or (sides != size and mode not in (0, 1)):
        raise Refused(422, "resize_mode should be 0, to stretch, or 1, to crop; the others are not here", "resize_mode")
    if sides != size:
        data = await aside(lambda: png(brought(data, sides, mode, "init_images")))
    wishes |= {"task": "edit", "image": await kept(here, me, data)}
    wishes["strength"] = asked.take("denoising_strength", Number, STRENGTH)
    if (follow := asked.take("image_cfg_scale", Number, -1.0)) >= 0:
        wishes["image_cfg"] = follow
    if mask := asked.take("mask", Text, ""):
        wishes |= await masked(here, me, asked, mask, sides, mode, wishes["strength"])
    asked.pass_over("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_fill", "inpaint_full_res")
    asked.pass_over("inpaint_full_res_padding", "inpainting_mask_invert")  # of a mask alone
    return await answer(request, here, me, asked, wishes, count, body)


async def masked(
    here: Parts, me: Who, asked: Asked, text: str, sides: tuple[int, int], mode: int, strength: float
) -> dict[str, Any]:
    """What is painted anew, and how it is joined."""
    data = await aside(unpacked, text, "mask")
    invert = bool(asked.take("inpainting_mask_invert", Whole, 0))
    mask = await aside(lambda: png(white(data, sides, mode, invert)))
    blur = asked.take("mask_blur", Whole, BLUR)
    sideways = (asked.take("mask_blur_x", Whole, blur), asked.take("mask_blur_y", Whole, blur))
    if asked.take("inpainting_fill", Whole, 0) != 1 and strength < 1:
        asked.differs.append("inpainting_fill: what was under the mask is the start, as 1 says, for strengths below 1")
    if max(sideways):
        asked.differs.append("mask_blur: the border fades over so many pixels outside of the mask, evenly")
    return {
        "task": "inpaint",
        "mask": await kept(here, me, mask),
        "feather": max(0, min(MOST_FEATHER, max(sideways))),
        "only_masked": asked.take("inpaint_full_res", Flag, True),
        "padding": asked.take("inpaint_full_res_padding", Whole, 0),
    }


def brought(data: bytes, sides: tuple[int, int], mode: int, field: str) -> Image.Image:
    """A picture stretched to a size, or cropped to its form and brought to it."""
    if mode == 0:
        return stretched(data, sides, field)
    stretched(png(Image.new("L", (1, 1))), sides, field)  # refuses what is too large
    return ImageOps.fit(decoded(data, field), sides, Image.Resampling.LANCZOS)


def white(data: bytes, sides: tuple[int, int], mode: int, invert: bool) -> Image.Image:
    """A mask there, its alpha where it has any, as ours: white where it is painted anew."""
    image = brought(data, sides, mode, "mask")
    has_alpha = image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255)
    light = image.getchannel("A") if has_alpha else image.convert("L")
    return ImageOps.invert(light) if invert else light


async def common(here: Parts, me: Who, asked: Asked) -> tuple[dict[str, Any], int]:
    """What both have: words, seeds, walk, model; and how many pictures."""
    asked.only(NEUTRAL)
    scripts(asked)
    wishes: dict[str, Any] = {"prompt": asked.take("prompt", Text, ""), "syntax": "a1111"}
    wishes["negative"] = asked.take("negative_prompt", Text, "")
    if steps := asked.take("steps", Whole, 0):
        wishes["steps"] = steps
    if "cfg_scale" in asked.said:
        wishes["cfg_scale"] = asked.take("cfg_scale", Number, 0.0)
    wishes |= await settings(here, me, asked)
    facts = model_of(here, str(wishes["model"]))
    wishes |= walk(here, asked, facts)
    for style in asked.take("styles", Texts, []):
        if style not in facts.get("styles", ()):
            raise Refused(422, str(UnknownName("style", str(style), facts.get("styles") or ["none"])), "styles")
        wishes["style"] = style
    if asked.take("tiling", Flag, False):
        wishes["seamless"] = "xy"
    if refiner := asked.take("refiner_checkpoint", Text, ""):
        wishes |= {"refiner": refiner, "refine_at": asked.take("refiner_switch_at", Number, 0.8)}
    asked.pass_over("refiner_switch_at")
    seed = asked.take("seed", Whole, -1)
    wishes["seed"] = secrets.randbelow(CHANCE) if seed == -1 else seed
    subseed, amount = asked.take("subseed", Whole, -1), asked.take("subseed_strength", Number, 0.0)
    if amount:
        wishes |= {"subseed": secrets.randbelow(CHANCE) if subseed == -1 else subseed, "variation": amount}
    size, times = asked.take("batch_size", Whole, 1), asked.take("n_iter", Whole, 1)
    if min(size, times) < 1:
        raise Refused(422, "batch_size and n_iter should be 1 or more", "batch_size")
    return wishes, size * times


def scripts(asked: Asked) -> None:
    """Extensions are not here; one that is sent, but does nothing, may stay."""
    for name, told in asked.take("alwayson_scripts", Names, {}).items():
        args = told.get("args") if isinstance(told, dict) else told
        each = args if isinstance(args, list) else [args]
        if any(one.get("enabled", True) if isinstance(one, dict) else one for one in each):
            raise Refused(422, f"always on script {name} not found: extensions are not here", "alwayson_scripts")


def walk(here: Parts, asked: Asked, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Sampler and schedule. "Automatic" means there what it means, on the families that both know."""
    found: dict[str, Any] = {}
    said = asked.take("sampler_name", Text, "") or asked.take("sampler_index", Text, "")
    asked.pass_over("sampler_index")
    known = desk.capabilities(here)
    of_name = ""
    if said:
        names = [one["name"] for one in known["samplers"]]
        pair = sampler_of(said) or ((said, "") if said in names else None)
        if pair is None:
            raise Refused(404, str(UnknownName("sampler", said, [*LABELS, *names])), "sampler_name")
        found["sampler"], of_name = pair
    eta = asked.take("eta", Number, 1.0)
    if eta != 1 and not (eta == 0 and said.lower() in ("ddim", "plms", "unipc", "ddim cfg++")):
        raise Refused(422, "eta cannot be changed here; it should be left out, or 1", "eta")
    schedule = asked.take("scheduler", Text, "Automatic")
    if schedule.lower() in ("automatic", "", "none"):
        usual = schedule_of("automatic", said) if said and facts.get("family") != "mini" else ""
        schedule = of_name or usual or ""
        return found | ({"schedule": schedule} if schedule else {})
    names = [one["name"] for one in known["schedules"]]
    ours = schedule_of(schedule) or (schedule if schedule in names else None)
    if ours is None:
        raise Refused(404, str(UnknownName("scheduler", schedule, [*SCHEDULE_LABELS, *names])), "scheduler")
    return found | {"schedule": ours}


def second_pass(here: Parts, asked: Asked, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """The pictures enlarged and painted over."""
    asked.only(SAME_AS_FIRST)
    factor = asked.take("hr_scale", Number, 2.0)
    wide, high = asked.take("hr_resize_x", Whole, 0), asked.take("hr_resize_y", Whole, 0)
    if wide or high:
        first = (wishes.get("width"), wishes.get("height"))
        if None in first or (wide and high and wide * first[1] != high * first[0]):  # type: ignore[operator]
            raise Refused(422, "hr_resize_x and hr_resize_y should have the form of width and height", "hr_resize_x")
        factor = wide / first[0] if wide else high / first[1]  # type: ignore[operator]
    if (steps := asked.take("hr_second_pass_steps", Whole, 0)) not in (0, wishes.get("steps")):
        said = f"hr_second_pass_steps should be 0, as many as the first pass, not {steps}"
        raise Refused(422, said, "hr_second_pass_steps")
    upscaler = asked.take("hr_upscaler", Text, "Latent")
    found: dict[str, Any] = {"hires": factor, "hires_strength": asked.take("denoising_strength", Number, STRENGTH)}
    if upscaler.startswith("Latent"):
        asked.differs.append(f"hr_upscaler: {upscaler} is not here; the pictures were enlarged by Lanczos")
    elif name := enlarger(here, upscaler, "hr_upscaler"):
        found["upscaler"] = name
    return found


def enlarger(here: Parts, name: str, field: str) -> str:
    """The network of an upscaler's name; "" is Lanczos."""
    networks = desk.capabilities(here).get("networks", {}).get("upscaler", [])
    if name in ("Lanczos", "None", ""):
        return ""
    if name not in networks:
        raise Refused(422, str(UnknownName("upscaler", name, ["Lanczos", *networks])), field)
    return name


# --- settings and models


async def settings(here: Parts, me: Who, asked: Asked) -> dict[str, Any]:
    """The model, and what `override_settings` says of how it is read."""
    options = await chosen(here, me) | asked.take("override_settings", Names, {})
    found: dict[str, Any] = {"model": model_name(here, options.pop("sd_model_checkpoint", "") or here.config.model)}
    skip = options.pop("CLIP_stop_at_last_layers", 1)
    if skip not in (0, 1):
        found["clip_skip"] = skip
    if noise := options.pop("randn_source", ""):
        if noise not in ("CPU", "NV"):
            raise Refused(422, f"randn_source should be CPU or NV, not {noise!r:.20}", "override_settings")
        found["noise"] = noise.lower()
    if options.pop("sd_vae", "Automatic") not in ("Automatic", "None"):
        raise Refused(422, "sd_vae cannot be changed here; add the model with its autoencoder", "override_settings")
    asked.left.update(f"override_settings.{name}" for name in options)
    return found


async def chosen(here: Parts, me: Who) -> dict[str, Any]:
    """The options that this owner set."""
    said = await aside(here.store.meta, _option(me))
    return dict(json.loads(said or "{}"))


def _option(me: Who) -> str:
    return f"a1111 {me.owner}"


def model_name(here: Parts, said: object) -> str:
    """Our name of a checkpoint: a title, with or without its hash or its file's suffix."""
    name = re.sub(r"( \[[0-9a-f]+\])?$", "", str(said)).removesuffix(".safetensors")
    for one in (str(said), name):
        if model_of(here, one) or here.config.allow_paths:
            return one
    raise Refused(
        404, str(UnknownName("model", str(said), [one["name"] for one in models(here)])), "sd_model_checkpoint"
    )


def models(here: Parts) -> list[dict[str, Any]]:
    return list(desk.capabilities(here)["models"])


def model_of(here: Parts, name: str) -> dict[str, Any]:
    """What is known of a model; nothing, where it is not known."""
    return next((model for model in models(here) if model["name"] == name), {})


@router.get("/options")
async def options(here: Here, me: Reader) -> dict[str, Any]:
    """The few settings that mean something here."""
    mine = await chosen(here, me)
    usual = {"sd_model_checkpoint": here.config.model, "CLIP_stop_at_last_layers": 1, "samples_format": "png"}
    return usual | {"sd_checkpoint_hash": "", "sd_vae": "Automatic", "randn_source": "CPU"} | mine


@router.post("/options")
async def set_options(request: Request, here: Here, me: Painter) -> dict[str, list[str]] | None:
    """The model of this owner's next pictures; other settings are listed as ignored."""
    body = await json_object(request)
    mine = await chosen(here, me)
    if (name := body.pop("sd_model_checkpoint", None)) is not None:
        mine["sd_model_checkpoint"] = model_name(here, name)
    for name, kinds in (("CLIP_stop_at_last_layers", int), ("randn_source", str)):
        if isinstance(body.get(name), kinds):
            mine[name] = body.pop(name)
    await aside(here.store.set_meta, _option(me), json.dumps(mine))
    return {"ignored": sorted(body)} if body else None


@router.get("/sd-models")
async def sd_models(here: Here, _: Reader) -> list[dict[str, Any]]:
    """The models that paint here. Files are not named."""
    empty = {"hash": None, "sha256": None, "config": None}
    return [{"title": one["name"], "model_name": one["name"], "filename": one["name"]} | empty for one in models(here)]


@router.get("/samplers")
async def samplers(here: Here, _: Reader) -> list[dict[str, Any]]:
    """AUTOMATIC1111's names of what it has, too, and our names of the others."""
    ours = {one["name"]: one.get("aliases", []) for one in desk.capabilities(here)["samplers"]}
    theirs = {label: name for label, name in LABELS.items() if name in ours}
    rest = {name: name for name in ours if name not in theirs.values()}
    named = theirs | rest
    return [{"name": label, "aliases": [name, *ours[name]], "options": {}} for label, name in named.items()]


@router.get("/schedulers")
async def schedulers(here: Here, _: Reader) -> list[dict[str, Any]]:
    ours = {one["name"] for one in desk.capabilities(here)["schedules"]}
    theirs = {label: name for label, name in SCHEDULE_LABELS.items() if schedule_of(name) in ours}
    rest = {name: name for name in sorted(ours - {schedule_of(name) or "" for name in theirs.values()} - {"uniform"})}
    listed = {"Automatic": "automatic"} | theirs | rest
    more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": name, "label": label} | more for label, name in listed.items()]


@router.get("/upscalers")
async def upscalers(here: Here, _: Reader) -> list[dict[str, Any]]:
    networks = desk.capabilities(here).get("networks", {}).get("upscaler", [])
    empty = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    return [{"name": name} | empty for name in ("None", "Lanczos", *networks)]


@router.post("/refresh-checkpoints")
async def refresh_checkpoints(_: Painter) -> None:
    """Models are looked for when a worker starts."""


# --- the wait


async def answer(
    request: Request, here: Parts, me: Who, asked: Asked, wishes: dict[str, Any], count: int, body: dict[str, Any]
) -> dict[str, Any]:
    """Paint, and tell in the form of AUTOMATIC1111 what was painted."""
    orders: list[Order] = [(wishes, count)]
    if wishes.get("variation"):  # the seed stays, and the other one goes on
        if count > here.config.max_count:
            raise Refused(422, f"at most {here.config.max_count} pictures are made at once", "batch_size")
        orders = [(wishes | {"subseed": wishes["subseed"] + i}, 1) for i in range(count)]
    jobs = await accepted(here, me, orders)
    interrupted = False
    try:
        async with waiting(request.app, me, jobs):
            made = await painted(request, here, me, jobs)
    except Refused as error:
        if error.field != "cancelled":
            raise
        made, interrupted = [], True
    send = body.get("send_images") is not False
    echo = body if body.get("include_init_images") else body | {"init_images": None, "mask": None}
    info = await aside(told, made, wishes, asked)
    info["interrupted"] = interrupted
    images = [await aside(packed, one.data) for one in made] if send else []
    return {"images": images, "parameters": echo, "info": json.dumps(info)}


def told(made: list[Made], wishes: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """The info of an answer: what each picture was painted with, what was ignored, and what is done in another way."""
    recipes = [one.picture.recipe for one in made]
    first: Mapping[str, Any] = recipes[0] if recipes else wishes
    texts = []
    for one in made:
        with Image.open(io.BytesIO(one.data)) as image:
            texts.append(parameters_of(image) or "")
    sampler = str(first.get("sampler", ""))
    return {
        "prompt": first["prompt"],
        "all_prompts": [one["prompt"] for one in recipes],
        "negative_prompt": first.get("negative", ""),
        "all_negative_prompts": [one.get("negative", "") for one in recipes],
        "seed": first["seed"],
        "all_seeds": [one.picture.seed for one in made],
        "subseed": first.get("subseed", 0),
        "all_subseeds": [one.get("subseed", 0) for one in recipes],
        "subseed_strength": first.get("variation", 0),
        "width": made[0].picture.width if made else wishes.get("width"),
        "height": made[0].picture.height if made else wishes.get("height"),
        "sampler_name": next((label for label, name in LABELS.items() if name == sampler), sampler),
        "cfg_scale": first.get("cfg_scale"),
        "steps": first.get("steps"),
        "batch_size": len(made),
        "restore_faces": False,
        "sd_model_name": first.get("model"),
        "sd_model_hash": None,
        "denoising_strength": first.get("hires_strength" if first.get("hires", 1) > 1 else "strength"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [wishes["style"]] if wishes.get("style") else [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.get("clip_skip") or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"limner {__version__}",
        "ignored": sorted(asked.left),
        "differs": asked.differs,
    }


@asynccontextmanager
async def waiting(app: FastAPI, me: Who, jobs: list[Job]) -> AsyncIterator[None]:
    """Jobs that a client of this dialect waits for: what `progress` tells of and `interrupt` stops."""
    mine = _waits(app).setdefault(me.owner, [])
    mine += jobs
    try:
        yield
    finally:
        for job in jobs:
            mine.remove(job)
        if not mine:
            _waits(app).pop(me.owner, None)


def _waits(app: FastAPI) -> dict[str, list[Job]]:
    if not hasattr(app.state, "a1111"):
        app.state.a1111 = {}
    return app.state.a1111


async def running(request: Request, here: Parts, me: Who) -> list[Job]:
    """Those of them that are painted now."""
    rows = [await aside(here.store.job, job.id) for job in _waits(request.app).get(me.owner, [])]
    return [row for row in rows if row is not None and row.state == "running"]


@router.get("/progress")
async def progress(request: Request, here: Here, me: Reader, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the present picture of this client is. The picture is a small WebP."""
    count = len(_waits(request.app).get(me.owner, []))
    now = (await running(request, here, me))[:1]
    step = here.hands.step(now[0].id) if now else None
    preview = here.hands.preview(now[0].id) if now else None
    i, n = (step["i"] + 1, step["n"]) if step else (0, 0)
    share = min(1.0, 0.01 + 0.99 * i / n) if n else 0.01 if count else 0.0
    since = time.time() - (now[0].started or time.time()) if now else 0.0
    state = {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": now[0].id if now else "",
        "job_count": count, "job_timestamp": time.strftime("%Y%m%d%H%M%S"), "job_no": 0, "sampling_step": i,
        "sampling_steps": n,
    }  # fmt: skip
    eta = max(0.0, since / share - since) if share else 0.0
    shown = preview["webp"] if preview and not skip_current_image else None
    return {"progress": share, "eta_relative": eta, "state": state, "current_image": shown, "textinfo": None}


@router.post("/interrupt")
async def interrupt(request: Request, here: Here, me: Painter) -> dict[str, Any]:
    """Stop what is painted for this client; what waits goes on. Nothing half-painted is answered."""
    for job in await running(request, here, me):
        await desk.cancel(here, me, job.id)
    return {}


# --- pictures that are there


@router.post("/png-info")
async def png_info(request: Request, here: Here, _: Reader) -> dict[str, Any]:
    """What a picture carries, and what of it is understood as a recipe."""
    asked = Asked(await json_object(request))
    data = await aside(unpacked, asked.take("image", Text, ""), "image")
    _kind, _sides, recipe, text = await aside(desk.look, data)
    prompt, negative, named = split(text or "")
    found: dict[str, Any] = {"Prompt": prompt, "Negative prompt": negative} | named if text else {}
    if size := re.fullmatch(r"(\d+)x(\d+)", named.get("Size", "")):
        found |= {"Size-1": size[1], "Size-2": size[2]}
    return {"info": text or "", "items": await aside(_texts, data), "parameters": found, "recipe": recipe}


def _texts(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        return {str(name): value for name, value in image.info.items() if isinstance(value, str)}


@router.post("/extra-single-image")
async def extra_single_image(request: Request, here: Here, me: Painter) -> dict[str, Any]:
    """A picture enlarged, and nothing painted over it."""
    asked = Asked(await json_object(request))
    asked.only(dict.fromkeys(("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"), (0,)))
    data = await aside(unpacked, asked.take("image", Text, ""), "image")
    size = (await aside(desk.look, data))[1]
    upscaler = asked.take("upscaler_1", Text, "None")
    factor = asked.take("upscaling_resize", Number, 2.0)
    if asked.take("resize_mode", Whole, 0) == 1:
        wide = asked.take("upscaling_resize_w", Whole, 512)
        high = asked.take("upscaling_resize_h", Whole, 512)
        if wide * size[1] != high * size[0]:
            raise Refused(
                422, f"{wide}x{high} has not the form of the picture, {size[0]}x{size[1]}", "upscaling_resize_w"
            )
        factor = wide / size[0]
    if upscaler == "None":  # there, too, nothing happens
        return {"image": await aside(packed, data), "html_info": ""}
    network = enlarger(here, upscaler, "upscaler_1")
    wishes: dict[str, Any] = {"task": "upscale", "strength": 0.0, "scale": factor, "seed": 0}
    wishes |= {"image": await kept(here, me, data)} | ({"upscaler": network} if network else {})
    jobs = await accepted(here, me, [(wishes, 1)])
    async with waiting(request.app, me, jobs):
        made = await painted(request, here, me, jobs)
    return {"image": await aside(packed, made[0].data), "html_info": ""}


@router.get("/{name}")
async def nothing(name: str, _: Reader) -> Any:
    """Lists that clients ask for, and that are empty here."""
    if name not in EMPTY:
        raise Refused(404, "there is nothing at this address")
    return EMPTY[name]

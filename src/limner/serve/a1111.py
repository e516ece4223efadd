"""AUTOMATIC1111's API below /sdapi/v1, as far as its clients use it, by the same desk as everything else.

What is asked becomes wishes in `a1111_wishes.py`, which says what is refused, told and passed over.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image

from limner import __version__
from limner.provenance.foreign import LABELS, SCHEDULE_LABELS, schedule_of, split
from limner.provenance.metadata import parameters_of
from limner.serve import desk
from limner.serve.a1111_wishes import (
    HR,
    STRENGTH,
    Asked,
    Flag,
    Number,
    Text,
    Texts,
    Whole,
    brought,
    chosen,
    common,
    enlarger,
    masked,
    model_name,
    models,
    option_of,
    second_pass,
)
from limner.serve.desk import aside
from limner.serve.dialect import (
    Made,
    Order,
    accepted,
    answering,
    json_object,
    kept,
    packed,
    painted,
    png,
    unpacked,
)
from limner.serve.routes import Here, Painter, Reader
from limner.serve.seams import Parts, Refused, Who
from limner.serve.tables import Job

EMPTY: dict[str, Any] = {  # lists that are empty here
    "sd-vae": [], "loras": [], "hypernetworks": [], "face-restorers": [], "prompt-styles": [],
    "latent-upscale-modes": [], "realesrgan-models": [], "embeddings": {"loaded": {}, "skipped": {}}, "cmd-flags": {},
    "scripts": {"txt2img": [], "img2img": []}, "script-info": [], "extensions": [],
}  # fmt: skip


def refused(error: Refused) -> JSONResponse:
    """A refusal in the form that AUTOMATIC1111's errors have."""
    headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["www-authenticate"] = "Basic"
    names = {"error": "HTTPException", "detail": error.message, "body": "", "errors": error.message}
    return JSONResponse(names | {"field": error.field}, error.status, headers)


router = APIRouter(prefix="/sdapi/v1", route_class=answering(refused), include_in_schema=False)


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


# --- settings and models


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
    await aside(here.store.set_meta, option_of(me), json.dumps(mine))
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

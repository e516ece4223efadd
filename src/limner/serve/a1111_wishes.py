"""What clients of AUTOMATIC1111 ask for, field by field, as wishes of ours; `a1111.py` answers them.

Fields that are not known are passed over, as there, and listed in the answer's info as `ignored`. What changes the
picture there and cannot be done here is refused; what is done in another way is told in a sentence under `differs`.
Where no sampler, number of steps or size is said, the model's own is taken, or the picture's size.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from PIL import Image, ImageOps
from pydantic import Field, TypeAdapter, ValidationError

from limner.errors import UnknownName
from limner.provenance.foreign import LABELS, SCHEDULE_LABELS, sampler_of, schedule_of
from limner.serve import desk
from limner.serve.desk import aside
from limner.serve.dialect import decoded, kept, png, stretched, unpacked
from limner.serve.seams import Parts, Refused, Who
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
T = TypeVar("T")


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
    said = await aside(here.store.meta, option_of(me))
    return dict(json.loads(said or "{}"))


def option_of(me: Who) -> str:
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

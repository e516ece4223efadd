"""What other programs wrote into their pictures, read into fields of a Recipe; what is not understood is named.

AUTOMATIC1111's `parameters` text, as it, Forge, reForge, SD.Next and stable-diffusion.cpp write it (and we do, too),
and ComfyUI's graph as far as one sampler's inputs stand in it as plain values. Nothing here runs, loads or fetches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from limner.errors import BadInput, LimnerError
from limner.recipe import Recipe

LABELS = {  # of AUTOMATIC1111's list of samplers, in its order -> our name
    "DPM++ 2M": "dpmpp_2m", "DPM++ SDE": "dpmpp_sde", "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde_heun", "DPM++ 2S a": "dpmpp_2s_ancestral", "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_ancestral", "Euler": "euler", "LMS": "lms", "Heun": "heun", "DPM2": "dpm2",
    "DPM2 a": "dpm2_ancestral", "Restart": "restart", "DDIM": "euler", "DDIM CFG++": "euler_cfg_pp", "PLMS": "plms",
    "UniPC": "unipc", "LCM": "lcm",
}  # fmt: skip
NAMES = {  # of ComfyUI and stable-diffusion.cpp, where they are not ours
    "dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_ancestral", "dpmpp_sde_gpu": "dpmpp_sde", "ddpm": "euler_ancestral",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde", "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde_heun", "uni_pc": "unipc_bh1",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde", "uni_pc_bh2": "unipc", "ddim": "euler", "euler_a": "euler_ancestral",
    "dpm++2s_a": "dpmpp_2s_ancestral", "dpm++2m": "dpmpp_2m", "ddim_trailing": "euler",
    "euler_ge": "gradient_estimation", "euler_a_cfg_pp": "euler_ancestral_cfg_pp", "dpm++2m_sde": "dpmpp_2m_sde",
}  # fmt: skip
SAME = (  # names that mean the same there and here
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "lms", "dpm2",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde", "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_ancestral", "sa_solver",
    "gradient_estimation", "er_sde", "tcd",
)  # fmt: skip
SCHEDULES = {  # of all of them, in small letters; "uniform" means other times there than here
    "uniform": "linspace", "karras": "karras", "exponential": "exponential", "polyexponential": "exponential",
    "sgm uniform": "sgm_uniform", "sgm_uniform": "sgm_uniform", "kl optimal": "kl_optimal", "kl_optimal": "kl_optimal",
    "align your steps": "align_your_steps", "align_your_steps": "align_your_steps", "ays": "align_your_steps",
    "simple": "simple", "normal": "linspace", "ddim": "ddim", "beta": "beta", "discrete": "linspace", "lcm": "lcm",
    "ddim_uniform": "leading", "linear_quadratic": "linear_quadratic",
}  # fmt: skip
SCHEDULE_LABELS = {  # of AUTOMATIC1111's list
    "Uniform": "uniform", "Karras": "karras", "Exponential": "exponential", "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform", "KL Optimal": "kl_optimal", "Align Your Steps": "align_your_steps",
    "Simple": "simple", "Normal": "normal", "DDIM": "ddim", "Beta": "beta",
}  # fmt: skip
AUTOMATIC = {  # the schedule that "Automatic" means for a sampler there; linspace for all others
    "DPM++ 2M": "karras", "DPM++ SDE": "karras", "DPM++ 2M SDE": "exponential", "DPM++ 2M SDE Heun": "exponential",
    "DPM++ 2S a": "karras", "DPM++ 3M SDE": "exponential", "DPM2": "karras", "DPM2 a": "karras", "Restart": "karras",
    "DDIM": "ddim", "DDIM CFG++": "ddim", "PLMS": "ddim",
}  # fmt: skip
IDLE = {  # settings that no picture depends on
    "Version", "Model hash", "VAE hash", "Lora hashes", "TI hashes", "Hashes", "User", "App", "Backend", "Time",
    "Operations", "Created", "Pipeline", "Batch", "Batch size", "Batch pos", "Source Identifier", "Parser", "SDCPP",
    "Template", "Negative Template", "limner",
}  # fmt: skip
MOST = 2**20  # characters that are looked at; no program writes more


@dataclass(frozen=True)
class Foreign:
    """What a text says. `fields` is what `Recipe.of` takes; `unread` holds every other setting as it was written;
    `doubts` are sentences on what may differ all the same."""

    fields: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def understood(text: str) -> Foreign:
    """Fields of a recipe from a `parameters` text or from ComfyUI's `prompt` JSON; it raises nothing."""
    return from_parameters(text) if _graph(text) is None else from_graph(text)  # prompts may begin with {a|b}, too


def sampler_of(name: str) -> tuple[str, str] | None:
    """Our sampler and schedule ("": not said) by a name of another program, with its schedule behind it or not."""
    known = {label.lower(): ours for label, ours in LABELS.items()} | NAMES | {same: same for same in SAME}
    plain = " ".join(name.lower().split())
    if plain in known:
        return known[plain], ""
    for schedule, ours in SCHEDULES.items():
        if plain.endswith(f" {schedule}") and (sampler := known.get(plain.removesuffix(schedule).strip())):
            return sampler, ours
    return None


def schedule_of(name: str, sampler: str = "") -> str | None:
    """Our schedule by a name of another program; sampler: as that program calls it, for its "Automatic"."""
    plain = " ".join(name.lower().split())
    if plain != "automatic":
        return SCHEDULES.get(plain)
    return next((kind for label, kind in AUTOMATIC.items() if label.lower() == sampler.strip().lower()), "linspace")


# --- the text of AUTOMATIC1111


def split(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the settings, as they stand in a `parameters` text.

    The settings are the last line that reads like one; a negative prompt begins with its first "Negative prompt:".
    """
    lines = text[:MOST].replace("\r\n", "\n").rstrip().split("\n")
    settings: dict[str, str] = {}
    for i in reversed(range(len(lines))):
        found = dict(_pairs(lines[i]))
        if len(found) >= 3 and {"Steps", "Sampler", "Seed", "Size"} & found.keys():
            after = dict(pair for line in lines[i + 1 :] for pair in [line.partition(":")[::2]] if pair[0].strip())
            settings = found | {name.strip(): value.strip() for name, value in after.items()}
            lines = lines[:i]
            break
    for i, line in enumerate(lines):
        if line.startswith("Negative prompt:"):
            first = line.removeprefix("Negative prompt:").removeprefix(" ")
            return "\n".join(lines[:i]), "\n".join([first, *lines[i + 1 :]]), settings
    return "\n".join(lines), "", settings


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """ "Name: value" between commas; a value in quotes, or of JSON, holds commas of its own."""
    at = 0
    while at < len(line):
        if named := _NAME.match(line, at):
            at, value = named.end(), None
            if line[at : at + 1] in ('"', "{", "["):
                with suppress(ValueError, RecursionError):
                    value, at = _JSON.raw_decode(line, at)
            if value is None:
                value = line[at : _comma(line, at)].strip()
            yield named["name"].strip(), value if isinstance(value, str) else json.dumps(value)
        at = _comma(line, at) + 1


def _comma(line: str, at: int) -> int:
    """Where the next comma is; the end, where there is none."""
    found = line.find(",", at)
    return len(line) if found < 0 else found


_NAME = re.compile(r"\s{0,9}(?P<name>\w[\w \-/+.]{0,60}):\s{0,9}")
_JSON = json.JSONDecoder()


def from_parameters(text: str) -> Foreign:
    """Fields of a recipe from the `parameters` text of AUTOMATIC1111 and its kin."""
    prompt, negative, settings = split(text)
    own = settings.get("Version", "").startswith("limner ")
    found = _Reader(settings)
    found.take("prompt", prompt)
    found.take("negative", negative)
    if not settings:
        return found.foreign()
    if not own and _MARKS.search(prompt + negative):
        found.take("syntax", "a1111")
    for name, (target, read) in _FIELDS.items():
        found.read(name, target, read)
    _size(found)
    _walk(found, own)
    _noise(found, own)
    _second_pass(found)
    if not own and "<" in prompt and re.search(r"<(lora|lyco|hypernet):", prompt):
        found.doubts.append("the prompt asks for a LoRA or another network, which is not part of these settings")
    return found.foreign()


_MARKS = re.compile(r"[()\[\]\\]|\bBREAK\b|\bAND\b")  # what is not plain words


class _Reader:
    """Takes settings out of a table into checked fields; what does not pass stays in the table."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.left = dict(settings)
        self.fields: dict[str, Any] = {}
        self.doubts: list[str] = []

    def take(self, target: str, value: object) -> bool:
        """Set a field, where a recipe can have that value."""
        try:
            _check(target, value)
        except LimnerError:
            self.left.setdefault(target, str(value)[:200])
            return False
        self.fields[target] = value
        return True

    def read(self, name: str, target: str, read: Callable[[str], object]) -> None:
        """A setting into a field; the words are left where they are not what they should be."""
        if name in self.left:
            with suppress(ValueError, LimnerError, OverflowError):
                value = read(self.left[name])
                _check(target, value)
                self.fields[target] = value
                del self.left[name]

    def foreign(self) -> Foreign:
        unread = {_utf8(name): _utf8(value) for name, value in self.left.items() if name not in IDLE}
        return Foreign(self.fields, unread, tuple(self.doubts))


def _check(target: str, value: object) -> None:
    """Raise where a recipe cannot have a value."""
    if isinstance(value, str) and _utf8(value) != value:
        raise BadInput(f"{target} should be text in UTF-8")
    Recipe.of({target: value})


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _true(text: str) -> bool:
    if text.strip().lower() not in ("true", "1"):
        raise ValueError(text)
    return True


_FIELDS: dict[str, tuple[str, Callable[[str], object]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("cfg_scale", float),
    "Seed": ("seed", int),
    "Model": ("model", str),
    "Style": ("style", str),
    "Clip skip": ("clip_skip", lambda text: int(float(text))),
    "Variation seed": ("subseed", int),
    "Variation seed strength": ("variation", float),
    "Tiling": ("seamless", lambda text: _true(text) and "xy"),
    "Refiner": ("refiner", lambda text: re.sub(r" \[[0-9a-f]{6,64}\]$", "", text)),
    "Refiner switch at": ("refine_at", float),
    "Image CFG scale": ("image_cfg", float),
    "CFG rescale": ("cfg_rescale", float),
}


def _size(found: _Reader) -> None:
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", found.left.get("Size", ""))
    if size and int(size[1]) and int(size[2]):
        found.fields |= {"width": int(size[1]), "height": int(size[2])}
        del found.left["Size"]


def _walk(found: _Reader, own: bool) -> None:
    """Sampler and schedule."""
    sampler, schedule = found.left.get("Sampler", ""), found.left.get("Schedule type", "")
    if own:  # our own names, which need no translation
        for name, target in (("Sampler", "sampler"), ("Schedule type", "schedule")):
            found.read(name, target, str)
        return
    if known := sampler_of(sampler):
        found.read("Sampler", "sampler", lambda _: known[0])
    of_name = known[1] if known else ""
    if schedule and (ours := schedule_of(schedule, sampler)):
        found.read("Schedule type", "schedule", lambda _: ours)
    elif of_name:
        found.take("schedule", of_name)
    elif known and not schedule and "App" not in found.left:  # before schedules had names of their own
        found.take("schedule", {"ddim": "ddim", "plms": "ddim"}.get(sampler.lower(), "linspace"))
    if found.left.get("Scheduler"):  # as SD.Next and Forge's kin call it
        found.read("Scheduler", "schedule", lambda text: _must(schedule_of(text, sampler)))


def _must(value: str | None) -> str:
    if value is None:
        raise ValueError
    return value


def _noise(found: _Reader, own: bool) -> None:
    """Whose random numbers: the text says CPU, NV or GPU, and nothing where it is AUTOMATIC1111's own choice, GPU."""
    said = found.left.get("RNG", "cpu" if own else "gpu").lower()
    if re.fullmatch("cpu|nv|philox|cuda|gpu", said):
        found.take("noise", "cpu" if said == "cpu" else "nv")
        found.left.pop("RNG", None)
    if said == "gpu":
        found.doubts.append("the noise came from a graphics card; an NVIDIA card's numbers are taken")


def _second_pass(found: _Reader) -> None:
    """A pass over an enlarged picture; a strength without one speaks of a picture that the text does not hold."""
    if "Hires upscale" in found.left:
        found.read("Hires upscale", "hires", float)
        found.read("Denoising strength", "hires_strength", float)
        if found.left.get("Hires steps") in ("0", str(found.fields.get("steps"))):
            del found.left["Hires steps"]  # as many as the first pass
        if found.left.get("Hires upscaler") in ("Lanczos", "None"):
            del found.left["Hires upscaler"]
    elif "Denoising strength" in found.left:
        found.doubts.append("it was painted over a picture, which is not part of these settings")


# --- ComfyUI's graph

Graph = dict[str, dict[str, Any]]
_WORDS = ("text", "value", "string", "String", "prompt")


def from_graph(text: str) -> Foreign:
    """Fields of a recipe from the JSON that ComfyUI can run, where one sampler with plain inputs stands in it.

    Links are followed as far as words stand in a text node; conditions that are combined are not guessed at.
    """
    graph = _graph(text)
    if graph is None:
        return Foreign(doubts=("this is not the JSON of a graph",))
    nodes = {str(k): v for k, v in graph.items() if isinstance(v, dict) and isinstance(v.get("inputs"), dict)}
    samplers = [k for k, v in nodes.items() if str(v.get("class_type", "")) in _SAMPLERS]
    from_noise = [k for k in samplers if _kind(nodes, nodes[k]["inputs"].get("latent_image")).startswith("Empty")]
    chosen = samplers if len(samplers) == 1 else from_noise
    if len(chosen) != 1:
        return Foreign(
            doubts=(f"the graph has {len(samplers)} samplers; which one made the picture is not to be told",)
        )
    found = _Reader({})
    _SAMPLERS[str(nodes[chosen[0]]["class_type"])](nodes, nodes[chosen[0]]["inputs"], found)
    others = [str(v.get("class_type")) for k, v in nodes.items() if k != chosen[0]]
    for name in sorted({kind for kind in others if kind not in _KNOWN}):
        found.left[name[:80]] = f"{others.count(name)} of these nodes"
    return found.foreign()


def _graph(text: str) -> dict[str, Any] | None:
    if text.lstrip()[:1] != "{":
        return None
    try:
        found = json.loads(text[: 16 * MOST])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _to(nodes: Graph, link: object) -> dict[str, Any] | None:
    """The node that a link, [id, output], comes from."""
    return nodes.get(str(link[0])) if isinstance(link, list) and len(link) == 2 else None


def _kind(nodes: Graph, link: object) -> str:
    node = _to(nodes, link)
    return str(node.get("class_type", "")) if node else ""


def _plain(nodes: Graph, value: object, hops: int = 8) -> object:
    """A value that stands in the graph, or behind links to nodes that hold one value alone; else None."""
    if not isinstance(value, list):
        return value
    node = _to(nodes, value)
    if node is None or hops == 0 or not str(node.get("class_type", "")).startswith(("Primitive", "Reroute")):
        return None
    inside = [node["inputs"][name] for name in _WORDS if name in node["inputs"]]
    return _plain(nodes, inside[0], hops - 1) if len(inside) == 1 else None


def _words(nodes: Graph, link: object) -> str | None:
    """The words behind a condition, where they come straight from one text."""
    node = _to(nodes, link)
    if node is None:
        return None
    kind, inputs = str(node.get("class_type", "")), node["inputs"]
    if kind == "CLIPTextEncode":
        text = _plain(nodes, inputs.get("text"))
    elif kind == "CLIPTextEncodeSDXL" and inputs.get("text_g") == inputs.get("text_l"):
        text = _plain(nodes, inputs.get("text_g"))
    elif kind == "ConditioningZeroOut":
        text = ""
    else:
        return None
    return text if isinstance(text, str) else None


def _put(nodes: Graph, found: _Reader, name: str, target: str, value: object) -> None:
    value = _plain(nodes, value)
    if value is None or not found.take(target, value):
        found.left.setdefault(name, "not a plain value")


def _sampled(nodes: Graph, inputs: dict[str, Any], found: _Reader) -> None:
    """What every sampler node has in common; sampler and schedule by our names."""
    for target in ("positive", "negative"):
        words = _words(nodes, inputs.get(target))
        if words is None or not found.take("prompt" if target == "positive" else "negative", words):
            found.left[target] = "these words do not stand in the graph alone"
    found.take("syntax", "comfy")
    found.take("noise", "cpu")
    sampler, schedule = sampler_of(str(inputs.get("sampler_name"))), schedule_of(str(inputs.get("scheduler")))
    for name, ours in (("sampler", sampler[0] if sampler else None), ("schedule", schedule)):
        if ours is None or not found.take(name, ours):
            found.left[name] = str(inputs.get("sampler_name" if name == "sampler" else "scheduler"))[:80]
    _put(nodes, found, "steps", "steps", inputs.get("steps"))
    _put(nodes, found, "cfg", "cfg_scale", inputs.get("cfg"))
    latent = _to(nodes, inputs.get("latent_image"))
    if latent is not None and str(latent.get("class_type", "")).startswith("Empty"):
        for side in ("width", "height"):
            _put(nodes, found, side, side, latent["inputs"].get(side))
    else:
        found.doubts.append("it was painted over a picture, which is not part of these settings")
    if _plain(nodes, inputs.get("denoise", 1.0)) not in (1, 1.0):
        found.left["denoise"] = str(inputs.get("denoise"))[:80]
    model = _to(nodes, inputs.get("model"))
    for _ in range(16):  # LoRAs and patches lie between
        if model is None or "ckpt_name" in model["inputs"]:
            break
        model = _to(nodes, model["inputs"].get("model"))
    if model is not None and isinstance(model["inputs"].get("ckpt_name"), str):
        found.take("model", model["inputs"]["ckpt_name"])


def _ksampler(nodes: Graph, inputs: dict[str, Any], found: _Reader) -> None:
    _put(nodes, found, "seed", "seed", inputs.get("seed"))
    _sampled(nodes, inputs, found)


def _advanced(nodes: Graph, inputs: dict[str, Any], found: _Reader) -> None:
    _put(nodes, found, "noise_seed", "seed", inputs.get("noise_seed"))
    _sampled(nodes, inputs, found)
    whole = {"add_noise": "enable", "start_at_step": 0, "return_with_leftover_noise": "disable"}
    for name, expected in whole.items():
        if inputs.get(name, expected) != expected:
            found.left[name] = str(inputs[name])[:80]


def _custom(nodes: Graph, inputs: dict[str, Any], found: _Reader) -> None:
    """SamplerCustomAdvanced: noise, guider, sampler and times are nodes of their own."""

    def inside(name: str, kind: str) -> dict[str, Any]:
        node = _to(nodes, inputs.get(name))
        return node["inputs"] if node and str(node.get("class_type", "")) == kind else {}

    guider, sigmas = inside("guider", "CFGGuider"), inside("sigmas", "BasicScheduler")
    together = {"sampler_name": inside("sampler", "KSamplerSelect").get("sampler_name")}
    together |= {name: sigmas.get(name) for name in ("scheduler", "steps", "denoise")}
    together |= {name: guider.get(name) for name in ("positive", "negative", "cfg", "model")}
    _put(nodes, found, "noise_seed", "seed", inside("noise", "RandomNoise").get("noise_seed"))
    _sampled(nodes, together | {"latent_image": inputs.get("latent_image")}, found)


_SAMPLERS: dict[str, Callable[[Graph, dict[str, Any], _Reader], None]] = {
    "KSampler": _ksampler,
    "KSamplerAdvanced": _advanced,
    "SamplerCustomAdvanced": _custom,
}
_KNOWN = {  # nodes that change nothing that is not read
    "CheckpointLoaderSimple", "CLIPTextEncode", "CLIPTextEncodeSDXL", "ConditioningZeroOut", "EmptyLatentImage",
    "EmptySD3LatentImage", "VAEDecode", "VAEDecodeTiled", "SaveImage", "PreviewImage", "RandomNoise", "CFGGuider",
    "KSamplerSelect", "BasicScheduler", "PrimitiveNode", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt",
    "PrimitiveFloat", "Note", "MarkdownNote", "Reroute",
}  # fmt: skip

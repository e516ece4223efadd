"""Everything that a run needs, frozen: the command line's flags, the metadata in the picture, the case in a test."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from limner.errors import BadInput, UnknownName

VERSION = 9
MEANT: dict[int, dict[str, Any]] = {  # by recipes that are older than a version, of which a model now has its own idea
    5: {"best_after": 1.0},
    6: {"pag_scale": 0.0},
    7: {"ease_in": False, "late": 0.7},
}
SHIPPED = ("mini",)  # models inside the package
MAX_SEED = 2**63 - 1
Task = Literal["paint", "edit", "inpaint", "outpaint", "upscale", "tile"]
Share = Annotated[float, Field(ge=0, le=1)]
Few = Annotated[int, Field(ge=1, le=100)]  # every, every second, every third ...
Pixels = Annotated[int, Field(ge=0, le=2**16)]


EFFORTS: dict[str, dict[str, Any]] = {  # points on the measured curve of time against fidelity
    "exact": {},
    "balanced": {"deep_every": 1, "guide_every": 1, "ask_every": 1, "ask_apart": 0.13},
    "fast": {"deep_every": 1, "guide_every": 1, "ask_every": 1, "ask_apart": 0.25},
}


class Facts(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Region(Facts):
    """A part of the picture with words of its own."""

    box: str  # "left:0-0.5", "left:0-0.5,top:0.2-1": shares of the sides
    prompt: str
    negative: str = ""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0


class Control(Facts):
    """A picture that composition follows, through a ControlNet or a T2I-Adapter; of a depth model, its depth map."""

    net: str  # a file, a folder, or "depth" for a model that takes a depth map itself
    image: str  # a path; "canny:PATH" for the edges of a picture
    image_sha256: str = ""
    strength: Annotated[float, Field(ge=0, le=10)] = 1.0
    start: Share = 0.0  # shares of the walk between which it works
    end: Share = 1.0


class PicturePrompt(Facts):
    """A picture in place of words, through an IP-Adapter."""

    net: str
    eyes: str = ""  # the image encoder it was made for; none: the one that lies beside it
    image: str
    image_sha256: str = ""
    weight: Annotated[float, Field(ge=0, le=10)] = 1.0


class Recipe(BaseModel):
    """One picture, said completely. `id` is the SHA-256 of its canonical JSON; old versions keep loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[9] = 9
    task: Task = "paint"
    model: str = "mini"  # a name or a path
    prompt: str = ""  # empty: unconditional
    negative: str = ""
    style: str | None = None  # one of the family's styles; None: any
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    width: Annotated[int, Field(gt=0)] = 128  # pixels
    height: Annotated[int, Field(gt=0)] = 128  # pixels
    steps: Annotated[int, Field(ge=1, le=1000)] = 24
    sampler: str = "euler_ancestral"
    schedule: str = "uniform"
    cfg_scale: float = 5.0  # 1: no guidance
    cfg_interval: tuple[float, float] = (0.1, 1.0)  # the times between which guidance works
    cfg_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    pag_scale: Annotated[float, Field(ge=0, le=100)] = 0.0  # of perturbed-attention guidance; 0: none
    pag_interval: tuple[float, float] = (0.0, 1.0)  # the times between which it works
    best_of: Annotated[int, Field(ge=1, le=64)] = 1  # seeds tried from `seed` on; the eye keeps the best
    best_after: Share = 1.0  # share of the steps after which it compares them; only the best is finished
    syntax: Literal["a1111", "comfy", "plain"] = "plain"  # how weights and marks in the prompts are read
    clip_skip: Annotated[int, Field(ge=0, le=32)] = 0  # 1: the last layer of CLIP, 2: the one before; 0: the family's
    noise: Literal["cpu", "nv"] = "cpu"  # whose random numbers: PyTorch's on the CPU, or those of NVIDIA cards
    prediction: Literal["", "eps", "v"] = ""  # of the denoiser, where its files cannot tell
    parts: tuple[str, ...] = ()  # files beside the model's: another autoencoder, text encoders, TAESD
    embeddings: tuple[str, ...] = ()  # files of textual inversion
    partial: bool = False  # weights may be missing or over
    fast_decode: bool = False  # by the tiny autoencoder
    refiner: str = ""  # a model that takes over at the end (SDXL's), by name or path
    refine_at: Annotated[float, Field(ge=0, le=1)] = 0.8  # share of the steps after which it does
    skip_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()  # blocks left out in skip-layer guidance
    skip_scale: Annotated[float, Field(ge=0, le=100)] = 2.8
    skip_interval: tuple[float, float] = (0.01, 0.2)  # shares of the steps between which it works
    image: str = ""  # the picture that the task starts from
    image_sha256: str = ""  # of its file, so that another one is not taken for it
    image_cfg: Annotated[float, Field(ge=0, le=100)] = 1.5  # how hard a checkpoint for edits follows the picture
    mask: str = ""  # what is painted anew: a path, "x,y,w,h" in pixels, or "alpha" for what is clear
    mask_sha256: str = ""
    strength: Share = 1.0  # of the change; 0 gives the picture back, 1 starts from noise
    feather: Annotated[int, Field(ge=0, le=256)] = 0  # pixels around the mask in which new and old are blended
    only_masked: bool = False  # paint the surroundings of the mask alone, enlarged to what the family paints best
    padding: Pixels = 32  # of those surroundings
    extend: tuple[Pixels, Pixels, Pixels, Pixels] = (0, 0, 0, 0)  # left, right, up, down
    scale: Annotated[float, Field(ge=1, le=8)] = 1.0  # of an upscale
    upscaler: str = ""  # a file of the ESRGAN family; without one, Lanczos
    window: Pixels = 0  # side of the tiles that large pictures are painted in; 0: what the family likes
    overlap: Pixels = 0  # of those tiles; 0: a quarter
    hires: Annotated[float, Field(ge=1, le=8)] = 1.0  # paint, enlarge so many times, and paint over that
    hires_strength: Share = 0.5
    seamless: Literal["", "x", "y", "xy"] = ""  # the sides that join
    subseed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0  # another seed that the noise leans to
    variation: Share = 0.0  # how far
    toward: str = ""  # another prompt
    blend: Share = 0.0  # how much of it
    deep_every: Few = 1  # late steps whose deep layers are asked; the others carry over what the last two gave
    ease_in: bool = True  # the first gaps of late steps are shorter: 2, 3, up to every
    guide_every: Few = 1  # late steps at which guidance is computed anew
    ask_every: Few = 1  # late steps at which the denoiser is asked at all; the others carry over what it answered
    ask_apart: Share = 0.0  # the same by time: from one late step at which it is asked to the next; 0: ask_every counts
    late: Share = 0.7  # the time, 1 is noise, from which steps are late
    few_keys: Annotated[int, Field(ge=1, le=4)] = 1  # rows and columns of a large picture that UNets' attention sees
    precision: Literal["", "fp32", "bf16", "fp16", "int8", "fp8"] = ""  # of the denoiser; "": the fast one here
    engine: Literal["", "torch", "recorded", "compiled", "openvino"] = ""  # of the denoiser; "": torch
    regions: tuple[Region, ...] = ()
    controls: tuple[Control, ...] = ()
    picture_prompts: tuple[PicturePrompt, ...] = ()

    @field_validator("model", "prompt", "negative", "style", "toward", "image", "mask", "upscaler")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        if value and any("\ud800" <= mark <= "\udfff" for mark in value):  # bytes of another encoding, come by argv
            raise ValueError("should be text in UTF-8")
        return value

    @field_validator("cfg_scale")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not 0 <= value <= 100:  # NaN is in no range
            raise ValueError("should be a number from 0 to 100")
        return value

    @field_validator("cfg_interval", "pag_interval", "skip_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("should be two numbers from 0 to 1, the lower first")
        return value

    @field_validator("guide_every")
    @classmethod
    def _in_step(cls, value: int, info: ValidationInfo) -> int:
        deep = info.data.get("deep_every", 1)
        # else guidance would be the difference of features of different ages
        if info.data.get("ease_in") and deep > 1 and value not in (1, deep):
            raise ValueError(f"should be 1 or deep_every ({deep}), where gaps ease in")
        if value % deep and deep % value:
            raise ValueError(f"should divide deep_every ({deep}) or be a multiple of it")
        return value

    @field_validator("ask_apart")
    @classmethod
    def _one_way(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("ask_every", 1) > 1:
            raise ValueError("should be 0 where ask_every is more than 1")
        return value

    @field_validator("ask_every", "ask_apart")
    @classmethod
    def _whole_or_in_part(cls, value: float, info: ValidationInfo) -> float:
        none = 1 if info.field_name == "ask_every" else 0
        if value > none and (info.data.get("deep_every", 1), info.data.get("guide_every", 1)) != (1, 1):
            raise ValueError(f"should be {none} where deep_every or guide_every is more than 1")
        return value

    @property
    def id(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def walked(self, strength: float) -> int:
        """How many of its steps a share of the walk is: whole ones, and at least one where it is not 0."""
        return max(1, round(strength * self.steps)) if strength else 0

    @property
    def length(self) -> int:
        """How many steps it walks, for one seed."""
        second = self.task == "paint" and self.hires > 1
        return self._first + (self.walked(self.hires_strength) if second else 0)

    @property
    def glance(self) -> int:
        """The steps after which the seeds of best_of are compared; 0: all of them are finished."""
        early = max(1, round(self.best_after * self._first))
        return early if self.best_of > 1 and self.best_after < 1 and early < self.length else 0

    @property
    def _first(self) -> int:
        return self.steps if self.task in ("paint", "tile") else self.walked(self.strength)

    def canonical(self) -> str:
        """Sorted keys, no spaces: the same recipe is the same text everywhere."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def but(self, **changes: Any) -> Self:
        """This recipe with changes, checked again."""
        return type(self).of(self.model_dump() | changes)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """A recipe from loose fields; the error is one sentence."""
        try:
            return cls.model_validate(spent(fields))
        except ValidationError as error:
            first = error.errors()[0]
            where, found = ".".join(str(part) for part in first["loc"]), _short(first["input"])
            if first["type"] == "extra_forbidden":
                raise UnknownName("field of a recipe", where, cls.model_fields) from error
            if first["type"] == "missing":
                raise BadInput(f"{where} is missing from {found}") from error
            said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
            raise BadInput(f"{where} {said}, not {found}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"this is not the JSON of a recipe: {error}") from error
        if not isinstance(fields, dict):
            raise BadInput("this is not the JSON of a recipe: it is no object")
        version = fields.get("version", VERSION)
        if isinstance(version, int) and version > VERSION:
            raise BadInput(f"the recipe is of version {version}; this Limner knows up to {VERSION}")
        return cls.of(renewed(fields))


def renewed(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of any version as the newest has them: each has more, and what is new says what the older meant."""
    version = fields.get("version", VERSION)
    if version not in range(1, VERSION):
        return fields
    meant = {name: value for since, each in MEANT.items() if version < since for name, value in each.items()}
    return meant | fields | {"version": VERSION}


def spent(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields in which `effort` is a word for several; those that are told themselves stay as they are told."""
    if "effort" not in fields:
        return fields
    if str(effort := fields["effort"]) not in EFFORTS:
        raise UnknownName("effort", str(effort), EFFORTS)
    return EFFORTS[effort] | {name: value for name, value in fields.items() if name != "effort"}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

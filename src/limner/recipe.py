"""Everything that a run needs, frozen: the command line's flags, the metadata in the picture, the case in a test."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from limner.errors import BadInput, UnknownName

VERSION = 2
MAX_SEED = 2**63 - 1


class Recipe(BaseModel):
    """One picture, said completely. `id` is the SHA-256 of its canonical JSON; old versions keep loading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    task: Literal["paint"] = "paint"
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
    best_of: Annotated[int, Field(ge=1, le=64)] = 1  # seeds tried from `seed` on; the eye keeps the best
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

    @field_validator("model", "prompt", "negative", "style")
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

    @field_validator("cfg_interval", "skip_interval")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("should be two numbers from 0 to 1, the lower first")
        return value

    @property
    def id(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

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
            return cls.model_validate(fields)
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
        return cls.of(fields | {"version": VERSION} if version == 1 else fields)  # 2 only has more fields


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Orders: the wishes for some pictures, read strictly; what they may name; what makes two jobs alike."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from limner.errors import BadInput, UnknownName, nearest
from limner.recipe import EFFORTS, MAX_SEED, VERSION, Recipe, renewed, spent
from limner.serve.seams import Refused

CHANCE = 2**32  # seeds drawn at random stay below this: ten digits are enough to type again
OWN = ("prompt", "negative", "style", "seed", "subseed")  # what may differ among jobs that are painted together
SHOWN = re.compile(
    r"(?:canny:)?(upload:u|picture:p)_[0-9a-f]{16}"
)  # how wishes name pictures: never by path or address
BOX = re.compile(r"\s*\d+\s*(,\s*\d+\s*){3}")  # x,y,w,h
EDGES = "canny:"
EFFORT = "Stands for ask_apart and its like where they are not told: less computing, and less fidelity."
MOST = 2**26  # pixels of a picture that is made: 8192 x 8192


class Wishes(Recipe):
    """Any fields of a recipe; what is left out, the model's family and the task choose."""

    model_config = ConfigDict(title="Recipe")

    version: Literal[1, 2, 3, 4, 5, 6, 7, 8, 9] = 9  # type: ignore[assignment]  # each only has more fields than the one before
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1  # -1: any; the server draws it
    effort: Annotated[Any, WithJsonSchema({"enum": [*EFFORTS], "description": EFFORT})] = "exact"

    def given(self) -> dict[str, Any]:
        """The fields that were said, as JSON has them."""
        try:
            return spent(renewed({"version": VERSION} | self.model_dump(mode="json", exclude_unset=True)))
        except UnknownName as error:
            raise Refused(422, str(error), "effort") from error


class Order(BaseModel):
    """The body of POST /v1/jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Wishes
    count: Annotated[int, Field(ge=1, le=2**16)] = 1
    watch: Annotated[bool, Field(description="Paint it alone, with a preview of every step and its latents.")] = False


class Move(BaseModel):
    """The body of POST /v1/jobs/{id}/move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: str | None  # the job that comes next; null: the end of the queue


def read(kind: type[BaseModel], body: bytes) -> Any:
    """A body of JSON as its model; what is wrong with it is one sentence that names the field.

    Types are strict: "5" is no number. But 5.0 is one without a fraction, as JSON Schema has it.
    """
    try:
        plain = json.dumps(json.loads(body, parse_float=_number))
    except (ValueError, RecursionError) as error:
        raise Refused(422, f"the body is not JSON: {_short(str(error))}") from error
    try:
        return kind.model_validate_json(plain, strict=True)
    except ValidationError as error:
        raise refusal(error, kind) from error


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def refusal(error: ValidationError, kind: type[BaseModel]) -> Refused:
    first = error.errors(include_url=False)[0]
    where, found = ".".join(str(part) for part in first["loc"]).removeprefix("recipe."), _short(first["input"])
    if first["type"] == "json_invalid":
        return Refused(422, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if first["type"] == "extra_forbidden":
        known = _fields(kind, first["loc"][:-1])
        return Refused(
            422, f"no field is called {str(first['loc'][-1])!r}: {nearest(str(first['loc'][-1]), known)}", where
        )
    if first["type"] == "missing":
        return Refused(422, f"{where} is missing", where)
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Refused(422, f"{where or 'the body'} {said}, not {found}", where or None)


def _fields(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The fields of a model, or of the one that stands at a path inside it."""
    for name in path:
        if isinstance(name, str) and name in kind.model_fields:
            inside = [kind.model_fields[name].annotation]
            while inside and not (isinstance(inside[0], type) and issubclass(inside[0], BaseModel)):
                inside = [*getattr(inside[0], "__args__", ()), *inside[1:]]
            kind = inside[0] if inside else kind  # type: ignore[assignment]
    return sorted(kind.model_fields)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def complete(fields: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Wishes as a job keeps them: checked, with a model and a seed, in the newest version of the recipe."""
    given = renewed({name: value for name, value in fields.items() if value is not None or name == "style"})
    given.setdefault("model", model)
    if given.get("seed", -1) == -1:
        given["seed"] = secrets.randbelow(CHANCE)
    Recipe.of(given)
    _no_nul(given)
    return given


def _no_nul(value: Any) -> None:
    """Databases end a text at NUL, or refuse it."""
    if "\\u0000" in json.dumps(value).replace("\\\\", ""):
        raise BadInput("a recipe's texts should hold no NUL")


def key(wishes: Mapping[str, Any]) -> str:
    """Jobs of one key may be painted together: all is the same but words and seeds."""
    return json.dumps({k: v for k, v in wishes.items() if k not in OWN}, sort_keys=True, separators=(",", ":"))


def shown(wishes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The pictures that wishes name, as (field, name): "upload:u_..." or "picture:p_..."; others are refused."""
    for field, said in _pictures(wishes):
        if not SHOWN.fullmatch(said):
            raise Refused(422, f"{field} should be upload:ID or picture:ID, not {_short(said)}", field)
        yield field, said.removeprefix(EDGES)


def _pictures(wishes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if image := wishes.get("image"):
        yield "image", image
    mask = wishes.get("mask")
    if mask and mask != "alpha" and not BOX.fullmatch(mask):
        yield "mask", mask
    for name in ("controls", "picture_prompts"):
        for i, one in enumerate(wishes.get(name, ())):
            yield f"{name}.{i}.image", one["image"]


def networks(wishes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The networks that wishes name, as (field, name)."""
    for field in ("model", "refiner", "upscaler"):
        if name := wishes.get(field):
            yield field, name
    for field in ("parts", "embeddings"):
        yield from ((f"{field}.{i}", name) for i, name in enumerate(wishes.get(field, ())))
    for field, insides in (("controls", ("net",)), ("picture_prompts", ("net", "eyes"))):
        for i, one in enumerate(wishes.get(field, ())):
            yield from ((f"{field}.{i}.{inside}", one[inside]) for inside in insides if one.get(inside))


def only_known(wishes: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a network that is not one of those the server offers."""
    for field, name in networks(wishes):
        if name not in known and not (field.startswith("controls") and name == "depth"):
            raise Refused(422, str(UnknownName("network", name, known)), field)


def fits(wishes: Mapping[str, Any], model: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse what a model cannot do by what its worker told; what was not told is the worker's to refuse."""
    task, style = wishes.get("task", "paint"), wishes.get("style")
    if "tasks" in model and task not in model["tasks"]:
        raise Refused(422, f"{wishes['model']} has no task {task}: there are {', '.join(model['tasks'])}", "task")
    if style and style not in model.get("styles", [style]):
        raise Refused(422, str(UnknownName("style", style, model["styles"])), "style")
    for field, list_ in (("sampler", "samplers"), ("schedule", "schedules")):
        names = {one["name"]: [one["name"], *one["aliases"]] for one in known.get(list_, ())}
        said = wishes.get(field)
        if said and names and _plain(said) not in {_plain(name) for each in names.values() for name in each}:
            raise Refused(422, str(UnknownName(field, said, names)), field)
    if task == "paint" and "sizes" in model:
        likes, step = model["defaults"], model["multiple"]
        size = [wishes.get(side, likes[side]) for side in ("width", "height")]
        least, most = model["sizes"]
        fit = [min(most, max(least, round(side / step) * step)) for side in size]
        if fit != size:
            said = f"{wishes['model']} cannot paint {size[0]}x{size[1]}: sides are multiples of {step}"
            nearest_ = f"from {least} to {most}; the nearest is {fit[0]}x{fit[1]}"
            raise Refused(422, f"{said} {nearest_}", "width" if fit[0] != size[0] else "height")


def _plain(name: str) -> str:
    """A name as `limner.registry` compares it."""
    return re.sub(r"[ _-]", "", name.lower().replace("++", "pp"))


def walked(wishes: Mapping[str, Any], likes: Mapping[str, Any]) -> int:
    """How many steps wishes walk: likes are the model's defaults."""
    return Recipe.of({"steps": likes.get("steps", 24)} | dict(wishes)).length

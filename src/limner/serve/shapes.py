"""What the server answers: the JSON of jobs, pictures, uploads and refusals, described for OpenAPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from limner.serve.tables import Job, Picture, Upload

State = Literal["queued", "running", "done", "failed", "cancelled"]
Seconds = Annotated[float, Field(description="Seconds since 1970, UTC.")]


class Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PictureShape(Shape):
    """One picture that was made."""

    id: str
    job: str
    number: int = Field(description="Which picture of its job, from 0.")
    url: str = Field(description="Where its file is.")
    sha256: str
    bytes: int
    width: int
    height: int
    kind: str
    prompt: str
    seed: int
    created: Seconds
    deleted: Seconds | None


class FullPicture(PictureShape):
    """One picture, and the recipe that repeats it alone."""

    recipe: dict[str, Any]


class Pictures(Shape):
    pictures: list[FullPicture]
    more: str | None = Field(description="What `before` says to get the next ones; null: these are all.")


class JobShape(Shape):
    """An accepted job."""

    id: str
    state: State
    created: Seconds
    started: Seconds | None
    finished: Seconds | None
    ahead: int = Field(description="How many jobs come before it; 0 when it runs or has ended.")
    steps: int = Field(description="Steps that it walks.")
    steps_done: int
    error: str = Field(description="Why it failed.")
    recipe: dict[str, Any] = Field(description="The wishes, with the seed that was drawn.")
    count: int
    pictures: list[PictureShape]


class Jobs(Shape):
    jobs: list[JobShape]
    more: str | None = Field(description="What `before` says to get the next ones; null: these are all.")


class Carried(Shape):
    """A picture that was sent, and what it carries."""

    id: str
    name: str = Field(description="How wishes name it.")
    sha256: str
    bytes: int
    kind: str
    width: int
    height: int
    recipe: dict[str, Any] | None = Field(description="Wishes that make it again, as far as it tells.")
    parameters: str | None = Field(description="The text of AUTOMATIC1111 and of others.")


class ModelName(Shape):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "limner"


class Models(Shape):
    models: list[dict[str, Any]]
    object: Literal["list"] = "list"
    data: list[ModelName] = Field(description="The same models by name, as clients of OpenAI list them.")


class Health(Shape):
    status: Literal["ok"]
    version: str
    ready: bool = Field(description="Whether a worker can paint; jobs are taken either way.")


class Sentence(Shape):
    message: str
    field: str | None = None


class Error(Shape):
    """A refusal: one sentence, and the field that it is about."""

    error: Sentence


def picture_fields(row: Picture) -> dict[str, Any]:
    names = [name for name in PictureShape.model_fields if name != "url"]
    return {name: getattr(row, name) for name in names} | {"url": f"/v1/pictures/{row.id}/file"}


def picture_shape(row: Picture) -> PictureShape:
    return PictureShape(**picture_fields(row))


def full_picture(row: Picture) -> FullPicture:
    return FullPicture(**picture_fields(row), recipe=row.recipe)


def job_shape(row: Job, ahead: int, pictures: list[Picture]) -> JobShape:
    same = ("id", "state", "created", "started", "finished", "steps", "steps_done", "error", "count")
    made = [picture_shape(one) for one in pictures if one.deleted is None]
    return JobShape(**{name: getattr(row, name) for name in same}, ahead=ahead, recipe=row.wishes, pictures=made)


def carried(row: Upload, size: tuple[int, int], recipe: dict[str, Any] | None, parameters: str | None) -> Carried:
    same = {name: getattr(row, name) for name in ("id", "sha256", "bytes", "kind")}
    return Carried(**same, name=f"upload:{row.id}", width=size[0], height=size[1], recipe=recipe, parameters=parameters)

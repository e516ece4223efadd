"""Admission: what a job would take, before it is taken. Memory is estimated from wishes, room in the queue counted.

The estimate follows how `tasks.run` and the pipeline go about a job: the weights are there, up to eight pictures walk
together, are decoded together, and large ones in tiles. The bytes a pixel are those of `limner/memory.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from limner.memory import CONTROL, MIB, STREAMED, TILE, TILED, WINDOWS, cost_of, gb, machine
from limner.serve.seams import Refused

if TYPE_CHECKING:
    from limner.serve.config import Config

BATCH, BATCH_PIXELS = 8, 2**21  # pictures that walk together, and pixels of them all, as tasks.run has them
MOST = 2**26  # pixels of a picture that is made: 8192 x 8192
LARGEST_START = 2**24  # pixels of a picture that a job starts from, where nobody looked: what image.py opens
PROCESS = 600 * MIB  # of a worker before it loads anything
KEPT = 64  # bytes a pixel of the canvas, and of the picture to start from: in fp32, on its way, and as a file
SHARE = 0.8  # of the machine's memory, for all beside the worker wants some
UPSCALER = 512 * MIB  # a tile of ESRGAN at work
PARAMETERS = {  # of a family's largest published model, where a worker told no number
    "mini": 60e6, "sd15": 1.1e9, "sd2": 1.3e9, "sdxl": 3.5e9, "sdxl-refiner": 3.1e9, "sd3": 8e9, "sd35": 14e9,
}  # fmt: skip
MASKED = ("edit", "inpaint", "outpaint", "upscale")  # tasks that start from a picture, whose size is theirs


def affordable(
    wishes: Mapping[str, Any],
    model: Mapping[str, Any],
    known: Mapping[str, Any],
    config: Config,
    start: tuple[int, int] | None = None,
) -> None:
    """Refuse a job that would not fit: 422 where the picture is larger than any that is made, 413 by its memory.

    model: what the worker told of it; known: all that it told; start: width and height of the picture to start from.
    """
    width, height = canvas(wishes, model, start)
    if not 0 < width * height <= MOST:
        raise Refused(422, f"this makes {width:,} x {height:,} pixels; at most {MOST:,} are made", "width")
    need, have = estimate(wishes, model, known, start), budget(config, known)
    if need > have:
        raise Refused(
            413, f"this would need about {gb(need)} of memory, and a job may take {gb(have)}; ask for a smaller size",
            "width",
        )  # fmt: skip


def estimate(
    wishes: Mapping[str, Any],
    model: Mapping[str, Any],
    known: Mapping[str, Any],
    start: tuple[int, int] | None = None,
) -> int:
    """Bytes that a worker holds at most while it paints these wishes, as full a batch as others may make of them."""
    width, height = canvas(wishes, model, start)
    pixels = width * height
    cost = cost_of(model.get("family", ""))
    rows = max(1, min(BATCH, BATCH_PIXELS // pixels))
    at_once = 1 if _one_by_one(known) else rows
    decoded = TILE**2 if pixels > TILED else pixels
    work = at_once * max(cost.walk * _walked(wishes, model, width, height), cost.decode * decoded)
    if start is None and wishes.get("task") in MASKED:  # many small ones may take more than a large one in tiles
        work = max(work, BATCH_PIXELS * max(cost.walk, cost.decode))
    work += cost.least
    begun = start[0] * start[1] if start else LARGEST_START if wishes.get("image") else 0
    return PROCESS + weights(wishes, model, known) + work + KEPT * (rows * pixels + begun)


def canvas(
    wishes: Mapping[str, Any], model: Mapping[str, Any], start: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Width and height of the largest picture that the work goes through, filled up to the family's grid."""
    likes, step, least = model.get("defaults", {}), model.get("multiple", 1), _sizes(model)[0]
    size = [wishes.get(side, likes.get(side, 512)) for side in ("width", "height")]
    if wishes.get("task") in MASKED:
        size = list(start or (math.isqrt(LARGEST_START),) * 2)
    if wishes.get("task") == "outpaint":
        left, right, up, down = wishes.get("extend", (0, 0, 0, 0))
        size = [size[0] + left + right, size[1] + up + down]
    if wishes.get("task") == "upscale":
        size = [round(side * wishes.get("scale", 2.0)) for side in size]
    size = [round(side * wishes.get("hires", 1.0)) for side in size]
    if wishes.get("task") in MASKED:  # small ones, and boxes of `only_masked`, are enlarged
        enough = max(likes.get("width", 512), likes.get("height", 512)) if wishes.get("only_masked") else least
        size = [max(side, enough) for side in size]
    width, height = (-(-side // step) * step for side in size)
    return width, height


def _sizes(model: Mapping[str, Any]) -> tuple[int, float]:
    """The shortest and the longest side that the family paints."""
    sizes = model.get("sizes", (1, math.inf))
    return (sizes["least"], sizes["most"]) if isinstance(sizes, Mapping) else (sizes[0], sizes[1])


def _walked(wishes: Mapping[str, Any], model: Mapping[str, Any], width: int, height: int) -> int:
    """Pixels that the denoiser sees at once: those of its windows, where it works in windows."""
    likes, window = model.get("defaults", {}), wishes.get("window", 0)
    if not window and (wishes.get("task") == "upscale" or max(width, height) > _sizes(model)[1]):
        window = min(likes.get("width", 512), likes.get("height", 512))
    return min(width * height, WINDOWS * window**2) if window else width * height


def weights(wishes: Mapping[str, Any], model: Mapping[str, Any], known: Mapping[str, Any]) -> int:
    """Bytes of the networks that the wishes name and the worker keeps at once, in the type that it computes in."""
    if (keep := known.get("keep", "all")) == "layer":
        return STREAMED + (UPSCALER if wishes.get("upscaler") else 0)
    size = 4 if known.get("dtype", "float32") == "float32" else 2
    models = {one["name"]: one for one in known.get("models", ())}
    own = _parameters(model, keep)
    refiner = _parameters(models.get(wishes["refiner"], {}), keep) if wishes.get("refiner") else 0
    if keep == "one":
        own, refiner = max(own, refiner), 0
    beside = sum(len(wishes.get(field, ())) for field in ("controls", "picture_prompts", "parts"))
    return int(size * (own + refiner + CONTROL * own * beside)) + (UPSCALER if wishes.get("upscaler") else 0)


def _parameters(model: Mapping[str, Any], keep: str) -> float:
    """Of all its networks, or of the largest where one is kept at a time."""
    told = model.get("largest" if keep == "one" else "parameters")
    return float(told) if told else PARAMETERS.get(model.get("family", ""), 0.0)  # nothing told, as before it is ready


def _one_by_one(known: Mapping[str, Any]) -> bool:
    """Whether the rows of a batch are computed alone, as `Place` has it."""
    return known.get("device", "cpu") == "cpu" and known.get("dtype", "float32") != "float32"


def budget(config: Config, known: Mapping[str, Any]) -> int:
    """Bytes that one job may take: what the operator says, else what the worker tells of its device, else of RAM."""
    return config.memory or int(SHARE * (known.get("memory") or machine()))


def room(own: int, everybody: int, config: Config, seconds: float = 1.0) -> None:
    """Refuse with 429 where the queue has no room for one job more of somebody who has `own` in it.

    Beside the two limits: as long as others wait too, nobody's share grows beyond what is still free (Choudhury and
    Hahne, Dynamic Queue Length Thresholds, 1998), so that k greedy owners leave a place in k + 1 to who comes next.
    seconds: that a job takes, for Retry-After.
    """
    free = config.max_queue_all - everybody
    if own >= config.max_queue:
        raise Refused(429, f"{own} of your jobs wait already; try again later", retry_after=soon(own, seconds))
    if free <= 0:
        raise Refused(429, f"{everybody} jobs wait already; try again later", retry_after=soon(everybody, seconds))
    if everybody > own >= free:
        raise Refused(
            429, f"the queue is nearly full, and {own} of its jobs are yours; try again later",
            retry_after=soon(own, seconds),
        )  # fmt: skip


def soon(waiting: int, seconds: float = 1.0) -> int:
    """Seconds until about a tenth of the jobs that wait are done, from 1 to 60: what Retry-After says."""
    return max(1, min(60, math.ceil(waiting * seconds / 10)))

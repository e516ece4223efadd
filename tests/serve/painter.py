"""A worker that paints nothing real, for tests of what stands around it: claims, steps, previews and files as the real
one makes them, in no time and without torch. `python painter.py --database URL --folder PATH`
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import queue
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from limner.provenance.metadata import Receipt, chunks
from limner.recipe import EFFORTS, Recipe
from limner.serve.files import Files
from limner.serve.store import Store
from limner.serve.tables import Job, NewPicture
from limner.serve.wishes import Order

NAME, LEASE = "painter", 30.0
DEFAULTS = {"width": 128, "height": 128, "steps": 8, "sampler": "euler", "schedule": "uniform", "cfg_scale": 5.0}
TASKS = ["paint", "edit", "inpaint", "outpaint", "upscale", "tile"]
CAPABILITIES = {
    "limner": "0.1.0",
    "recipe": 3,
    "models": [
        {"name": "mini", "family": "mini", "styles": ["flat", "pixel art"], "sizes": [64, 512], "multiple": 16}
        | {"defaults": DEFAULTS, "alpha": True, "tasks": TASKS},
        {"name": "other", "family": "sd15", "styles": [], "sizes": [256, 1024], "multiple": 8}
        | {"defaults": DEFAULTS | {"width": 512, "height": 512}, "alpha": False, "tasks": TASKS},
    ],
    "networks": {},
    "samplers": [{"name": "euler", "aliases": []}, {"name": "dpmpp_2m", "aliases": []}],
    "schedules": [{"name": "uniform", "aliases": []}, {"name": "karras", "aliases": []}],
    "device": "cpu",
    "dtype": "float32",
    "efforts": EFFORTS,
    "precisions": ["fp32", "int8"],
    "engines": ["torch", "openvino"],
    "threads": 1,
    "watch": "watch" in Order.model_fields,
    "checks": {"safety": "none", "note": "nothing is checked: no classifier looks at prompts or pictures"},
    "marks": [{"where": "PNG text limner", "what": "the recipe, as JSON"}, {"where": "XMP", "what": "made by a model"}],
}


def picture(recipe: Recipe, seed: int, share: float = 1.0) -> Image.Image:
    """A blot on clear ground, its place and colour from the seed; noise over it until `share` is 1."""
    rng = random.Random(seed)
    w, h = recipe.width, recipe.height
    image = Image.new("RGBA", (w, h))
    brush = ImageDraw.Draw(image)
    colour = tuple(rng.randrange(40, 230) for _ in range(3))
    side = min(w, h)
    x, y, r = w * rng.uniform(0.4, 0.6), h * rng.uniform(0.4, 0.6), side * rng.uniform(0.25, 0.38)
    brush.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))
    brush.ellipse((x - r / 2, y - r / 2, x - r / 6, y - r / 6), fill=(255, 255, 255, 190))
    brush.rectangle((x - r / 12, y - r * 1.2, x + r / 12, y - r * 0.8), fill=(70, 50, 30, 255))
    if share == 1:
        return image
    noise = Image.frombytes("RGBA", (w // 4, h // 4), rng.randbytes(w // 4 * (h // 4) * 4)).resize((w, h))
    return Image.blend(noise, image, share)


def webp(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=60)
    return base64.b64encode(file.getvalue()).decode()


class Painter:
    def __init__(self, store: Store, files: Files, seconds: float) -> None:
        self.store, self.files, self.seconds = store, files, seconds
        self.heard: queue.Queue[dict[str, object]] = queue.Queue()

    def say(self, event: str, **told: object) -> None:
        print(json.dumps({"event": event, **told}), flush=True)

    def listen(self) -> None:
        for line in sys.stdin:
            self.heard.put(json.loads(line))
        os._exit(0)

    def run(self) -> None:
        self.say("ready", capabilities=CAPABILITIES)
        while True:
            if jobs := self.store.claim(NAME, LEASE, 1):
                self.paint(jobs[0])
                continue
            try:
                if "stop" in self.heard.get(timeout=1.0):
                    return
            except queue.Empty:
                continue

    def paint(self, job: Job) -> None:
        wishes = {name: value for name, value in job.wishes.items() if name != "watch"}
        recipe = Recipe.of(DEFAULTS | self.sized(wishes) | wishes)
        if "fail" in recipe.prompt:
            self.store.fail(job.id, job.attempt, NAME, "the painter was asked to fail, and does")
            self.say("failed", job=job.id, error="the painter was asked to fail, and does")
            return
        for i in self.walk(job, recipe):
            for number in range(job.count):
                told = {"job": job.id, "number": number, "i": i, "t": 1 - (i + 1) / recipe.steps}
                seed, share = recipe.seed + number, (i + 1) / (recipe.steps + 1)
                seen = {"webp": webp(picture(recipe, seed, min(0.99, share + 0.3)))}
                self.say("preview", **told, **seen, noisy=webp(picture(recipe, seed, share)))
            self.say("step", job=job.id, number=0, i=i, n=recipe.steps, t=1 - (i + 1) / recipe.steps)
        if self.store.job(job.id).state == "running":  # type: ignore[union-attr]
            made = [self.keep(recipe, number) for number in range(job.count)]
            self.store.finish(job.id, job.attempt, NAME, made)
            self.say("done", job=job.id, pictures=[one.id for one in made])

    def sized(self, wishes: dict[str, object]) -> dict[str, int]:
        """The size that follows from a picture that the job starts from."""
        kind, _, id = str(wishes.get("image", "")).partition(":")
        if not id:
            return {}
        row = self.store.upload(id) if kind == "upload" else self.store.picture(id)
        with Image.open(self.files.path(row.sha256)) as image:  # type: ignore[union-attr]
            width, height = image.size
        scale = float(wishes.get("scale", 1))  # type: ignore[arg-type]
        left, right, up, down = wishes.get("extend", (0, 0, 0, 0))  # type: ignore[misc]
        return {"width": round(width * scale) + left + right, "height": round(height * scale) + up + down}

    def walk(self, job: Job, recipe: Recipe) -> Iterator[int]:
        stop = threading.Event()
        for i in range(recipe.steps):
            stop.wait(self.seconds)
            if self.store.job(job.id).state != "running":  # type: ignore[union-attr]
                self.say("cancelled", job=job.id)
                return
            yield i

    def keep(self, recipe: Recipe, number: int) -> NewPicture:
        own, file = recipe.but(seed=recipe.seed + number), io.BytesIO()
        picture(own, own.seed).save(file, "PNG", pnginfo=chunks(Receipt(own, {}, "float32")).png)
        digest, size = self.files.put(file.getvalue()), len(file.getvalue())
        told = own.model_dump(mode="json")
        return NewPicture(number, digest, size, own.width, own.height, own.prompt, own.seed, told)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=0.01)
    told = parser.parse_args()
    painter = Painter(Store(told.database), Files(told.folder), told.seconds)
    threading.Thread(target=painter.listen, daemon=True).start()
    painter.run()
    os._exit(0)


if __name__ == "__main__":
    main()

"""The page in a real browser, before a real server whose worker paints blots: what a person does with it.

LIMNER_SCREENSHOTS=1 also writes the pictures of docs/img/serve. LIMNER_CHROMIUM names another browser.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.serve.conftest import Real, running

from limner.serve.files import Files
from limner.serve.store import Store
from limner.serve.tokens import add

CHROMIUM = Path(os.environ.get("LIMNER_CHROMIUM", "/usr/bin/chromium"))
SHOTS = Path(__file__).parents[2] / "docs/img/serve"
EASEL = Path(__file__).parent / "easel.py"
PATIENCE = 30_000  # milliseconds that a slow machine may take for what is done at once
HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror=window.hit=1>\"'><svg onload=window.hit=1>"
    "</textarea><iframe srcdoc='<script>parent.hit=1</script>'> "
    "javascript:window.hit=1 {{7*7}} ${window.hit=1} \u202e\u0007&lt;b&gt;"
)

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM}"),
    pytest.mark.slow,  # two minutes
]
expect.set_options(timeout=PATIENCE)


class House:
    """A server in a process of its own, which can be stopped and opened again at the same address."""

    def __init__(self, folder: Path, seconds: float, *flags: str) -> None:
        self.folder, self.seconds, self.flags, self.port = folder, seconds, flags, 0
        self.url, self.expected = "", 0
        self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reports(self) -> int:
        """How often the policy kept something from running, as browsers told."""
        with urllib.request.urlopen(f"{self.url}csp-report") as told:
            return int(json.load(told)["reports"])

    def open(self) -> None:
        told = [str(self.folder), str(self.port), str(self.seconds), *self.flags]
        self.log = (self.folder.parent / f"{self.folder.name}.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, str(EASEL), *told], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, Path(self.log.name).read_text()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()

    @property
    def store(self) -> Store:
        return Store(f"sqlite:///{self.folder / 'limner.db'}")

    def bytes(self, upload: str) -> bytes:
        store = self.store
        row = store.upload(upload)
        store.close()
        assert row is not None
        return Files(self.folder / "pictures").path(row.sha256).read_bytes()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house") / "serve", 0.02) as found:
        yield found
        reports = found.reports
    assert reports == found.expected, "the policy kept something from running"


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`visit(url)`: a page of a browser without a past; at the end nothing has gone wrong in any of them."""
    wrong: list[str] = []
    contexts: list[BrowserContext] = []

    def go(url: str, **settings: object) -> Page:
        context = (
            browser.new_context(viewport={"width": 1280, "height": 860}, **settings)
            if "viewport" not in settings
            else browser.new_context(**settings)
        )  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
        page.on(
            "request",
            lambda asked: wrong.append(asked.url) if not asked.url.startswith((url, "blob:", "data:")) else None,
        )
        page.goto(url)
        return page

    yield go
    for context in contexts:
        for page in context.pages:
            if page.evaluate("window.hit"):
                wrong.append("a text became code")
        context.close()
    assert not wrong


@pytest.fixture
def page(visit: Callable[..., Page], house: House) -> Page:
    left = httpx.get(f"{house.url}v1/jobs", params={"state": ["queued", "running"]}).json()["jobs"]
    for job in left:  # of the test before
        httpx.post(f"{house.url}v1/jobs/{job['id']}/cancel", headers={"Authorization": "Bearer any"})
    found = visit(house.url)
    ready(found)
    return found


def ready(page: Page) -> None:
    expect(page.locator("#status")).to_have_attribute("data-mood", "good")


def paint(page: Page, prompt: str, **fields: str) -> None:
    """Write, and press Ctrl+Enter."""
    for id, value in fields.items():
        page.fill(f"#{id}", value)
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")


def painted(page: Page, prompt: str, **fields: str) -> None:
    """The same, until the picture is on the easel."""
    paint(page, prompt, **fields)
    expect(page.locator("#pictures button", has_text=prompt).first).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#actions button").first).to_be_visible()


def shot(page: Page, name: str, full: bool = False) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(400)  # until pictures are there and nothing moves
    with Image.open(io.BytesIO(page.screenshot(full_page=full))) as image:  # of 256 colours, a quarter of the bytes
        image.convert("RGB").quantize(256).save(SHOTS / f"{name}.png", optimize=True)


def open_first(page: Page) -> None:
    page.locator("#pictures button").first.click()
    expect(page.locator("dialog.is-viewer .frame")).to_be_visible()


def test_the_first_picture_needs_no_manual(page: Page):
    expect(page.locator("#easel")).to_contain_text("Your picture will form here.")
    page.get_by_role("button", name="a red apple").click()
    expect(page.locator("#prompt")).to_have_value("a red apple")
    page.keyboard.press("Control+Enter")
    forming = page.locator("#easel.forming img")
    expect(forming).to_be_visible()
    assert forming.get_attribute("src").startswith("data:image/webp;base64,")
    expect(page.locator("#walk-text")).to_have_text(re.compile(r"^Step \d+ of 8"))
    expect(page.locator("#walk-text")).to_contain_text("left")
    expect(page.locator("#easel:not(.forming) button img")).to_have_attribute("alt", "a red apple")
    expect(page.locator("#live")).to_have_text("The picture is finished.")
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Use these settings")).to_be_visible()


def test_words_are_asked_for_and_refusals_are_said(page: Page):
    page.keyboard.press("Control+Enter")
    expect(page.locator("#said")).to_contain_text("Write a few words first")
    expect(page.locator("#prompt")).to_be_focused()
    page.fill("#seed", "x")
    paint(page, "a cat")
    expect(page.locator("#said")).to_contain_text("Seed")
    expect(page.locator("#seed")).to_be_focused()
    page.fill("#seed", "")
    paint(page, "fail please")
    expect(page.locator("#said")).to_contain_text("the painter was asked to fail, and does")


def test_stop(page: Page):
    page.locator("summary", has_text="More controls").click()
    paint(page, "a slow one", steps="900")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#live")).to_have_text("Stopped.")
    expect(page.locator("#easel")).to_contain_text("Your picture will form here.")
    assert not page.locator("#pictures button", has_text="a slow one").count()


def test_queue_is_reordered_and_emptied(page: Page):
    page.locator("summary", has_text="More controls").click()
    paint(page, "the long one", steps="900")
    expect(page.locator("#stop")).to_be_visible()
    for prompt in ("first", "second", "third"):
        paint(page, prompt, steps="3")
        expect(page.locator("#queue li", has_text=prompt)).to_be_visible()
    rows = page.locator("#queue li p")
    expect(rows).to_have_text(["first", "second", "third"])
    page.get_by_role("button", name="Earlier: third").click()
    expect(rows).to_have_text(["first", "third", "second"])
    expect(page.get_by_role("button", name="Earlier: third")).to_be_focused()
    page.keyboard.press("Enter")
    expect(rows).to_have_text(["third", "first", "second"])
    page.get_by_role("button", name="Later: first").click()
    expect(rows).to_have_text(["third", "second", "first"])
    waiting = page.locator("#queue li")
    low, high = {"x": 20, "y": 40}, {"x": 20, "y": 4}
    waiting.first.drag_to(waiting.last, source_position=high, target_position=low)
    expect(rows).to_have_text(["second", "first", "third"])
    waiting.last.drag_to(waiting.first, source_position=high, target_position=high)
    expect(rows).to_have_text(["third", "second", "first"])
    page.get_by_role("button", name="Remove: second").click()
    expect(rows).to_have_text(["third", "first"])
    page.get_by_role("button", name="Put it back").click()
    expect(rows).to_have_text(["third", "first", "second"])
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#queue-part")).to_be_hidden()
    expect(page.locator("#pictures span").first).to_have_text("second")
    assert page.locator("#pictures span").all_inner_texts()[:3] == ["second", "first", "third"]


def test_gallery_is_searched_and_deleting_is_undone(page: Page):
    for prompt in ("a purple whale", "a purple lamp"):
        painted(page, prompt)
    page.keyboard.press("Tab")
    page.locator("body").press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("whale purple")
    expect(page.locator("#pictures span")).to_have_text(["a purple whale"])
    open_first(page)
    page.get_by_role("button", name="Delete").last.click()
    expect(page.locator("#gallery-empty")).to_have_text("No picture has all of these words.")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#pictures span")).to_have_text(["a purple whale"])
    expect(page.locator("#pictures button")).to_be_focused()
    page.fill("#search", "")
    expect(page.locator("#pictures button", has_text="a purple lamp")).to_be_visible()


def test_settings_are_used_again_and_varied(page: Page):
    page.locator("summary", has_text="More controls").click()
    page.select_option("#style", "pixel art")
    page.select_option("#sampler", "dpmpp_2m")
    page.select_option("#effort", "balanced")
    page.select_option("#precision", "int8")
    painted(page, "a brass key", seed="9223372036854775806", steps="4", negative="rust")
    page.get_by_role("button", name="As it was at first").click()
    expect(page.locator("#prompt")).to_have_value("")
    open_first(page)
    expect(page.locator("dialog dl")).to_contain_text("9223372036854775806")
    page.locator("dialog").get_by_role("button", name="Use these settings").click()
    told = {"prompt": "a brass key", "seed": "9223372036854775806", "steps": "4", "negative": "rust"}
    for id, value in (
        told | {"style": "pixel art", "sampler": "dpmpp_2m", "effort": "balanced", "precision": "int8"}
    ).items():
        expect(page.locator(f"#{id}")).to_have_value(value)
    expect(page.locator("#extra")).to_be_hidden()  # the word stands for all that the effort changed
    before = page.locator("#pictures li").count()
    open_first(page)
    page.locator("dialog").get_by_role("button", name="Vary").click()
    expect(page.locator("#pictures li")).to_have_count(before + 4)
    open_first(page)
    expect(page.locator("dialog dl")).to_contain_text("Leans to another seed by")


def test_mask_is_painted_and_the_part_repainted(page: Page, house: House):
    painted(page, "a vase")
    page.locator("#actions").get_by_role("button", name="Repaint a part").click()
    sheet = page.locator(".sheet canvas")
    expect(sheet).to_be_visible()
    expect(page.get_by_role("button", name="Use this mask")).to_be_disabled()
    box = sheet.bounding_box()
    assert box is not None

    def stroke(x0: float, y0: float, x1: float, y1: float) -> None:
        page.mouse.move(box["x"] + box["width"] * x0, box["y"] + box["height"] * y0)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * x1, box["y"] + box["height"] * y1, steps=5)
        page.mouse.up()

    stroke(0.1, 0.25, 0.9, 0.25)
    stroke(0.1, 0.75, 0.9, 0.75)
    page.keyboard.press("Control+z")  # the lower one is gone
    page.get_by_role("button", name="Redo", exact=True).click()
    page.get_by_role("button", name="Undo", exact=True).click()
    page.get_by_role("button", name="Eraser").click()
    stroke(0.5, 0.1, 0.5, 0.4)
    page.get_by_role("button", name="Brush", exact=True).click()
    page.get_by_role("button", name="Zoom in").click()
    expect(page.locator("dialog output")).to_have_text("130 %")
    wider = sheet.bounding_box()
    assert wider and wider["width"] == pytest.approx(box["width"] * 1.3, rel=0.02)
    page.get_by_role("button", name="Zoom out").click()
    sheet.focus()
    for key in ("e", "e", "ArrowDown", "+", "-", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("Control+z")  # and what Space painted
    expect(page.locator("dialog [role=status].hint")).to_contain_text("% of the picture is marked.")
    page.get_by_role("button", name="Use this mask").click()
    expect(page.locator("#mask-state")).to_have_text("The part is marked.")
    with page.expect_request("**/v1/jobs") as asked:
        paint(page, "a blue vase")
    recipe = asked.value.post_data_json["recipe"]
    assert recipe["task"] == "inpaint" and recipe["image"].startswith("picture:p_") and "width" not in recipe
    mask = Image.open(io.BytesIO(house.bytes(recipe["mask"].removeprefix("upload:")))).convert("L")
    assert mask.size == (128, 128)
    points = {(20, 32): 255, (108, 32): 255, (64, 32): 0, (20, 96): 0, (64, 64): 0}
    assert {point: mask.getpixel(point) for point in points} == points
    expect(page.locator("#pictures span").first).to_have_text("a blue vase")
    open_first(page)
    page.get_by_role("button", name="Compare").click()
    cut = page.get_by_label("Where they meet")
    expect(page.get_by_label("Before, on the left")).to_contain_text("What it started from")
    cut.press("Home")
    assert page.locator(".compare").evaluate("el => el.style.getPropertyValue('--cut')") == "0%"
    for _ in range(30):
        cut.press("ArrowRight")
    assert page.locator(".compare").evaluate("el => el.style.getPropertyValue('--cut')") == "30%"


@pytest.mark.parametrize(
    ("choice", "fields", "size"),
    [
        ("Go on beyond its sides", {"left": "16", "right": "32", "up": "0", "down": "64"}, "176 \u00d7 192"),
        ("Upscale", {"scale": "3"}, "384 \u00d7 384"),
        ("Edit", {}, "128 \u00d7 128"),
    ],
)
def test_pictures_are_gone_on_from(page: Page, choice: str, fields: dict[str, str], size: str):
    painted(page, f"a tree to {choice.lower()}")
    page.locator("#actions").get_by_role("button", name=choice, exact=True).click()
    expect(page.locator("#source-image")).to_be_visible()
    paint(page, f"more of it: {choice}", **fields)
    expect(page.locator("#pictures span").first).to_have_text(f"more of it: {choice}")
    open_first(page)
    expect(page.locator("dialog dl")).to_contain_text(size)


def test_sizes_counts_and_models(page: Page):
    page.select_option("#size", label="Other\u2026")
    painted(page, "two wide ones", width="192", height="96", count="2")
    expect(page.locator("#easel button")).to_have_count(2)
    page.locator("#easel button").nth(1).click()
    expect(page.locator("#easel button").nth(1)).to_have_attribute("aria-pressed", "true")
    assert page.locator("#easel img").first.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [192, 96]
    page.select_option("#model", "other")
    expect(page.locator("#style-field")).to_be_hidden()
    expect(page.locator("#size option").first).to_have_text("512 \u00d7 512")


def test_grid_of_settings(page: Page):
    page.locator("summary", has_text="More controls").click()
    page.fill("#prompt", "a red boat")
    page.fill("#steps", "3")
    page.get_by_role("button", name="Lay a grid of settings").click()
    page.get_by_label("From left to right").select_option("word")
    page.get_by_label("Its values").first.fill("red, green")
    page.get_by_label("From top to bottom").select_option("style")
    page.get_by_role("button", name="Paint the grid").click()
    expect(page.locator("table.plot td button img")).to_have_count(4)
    assert page.locator("table.plot th").all_inner_texts()[:2] == ["red", "green"]
    expect(page.get_by_role("button", name="Stop the rest")).to_be_hidden()
    seeds = page.locator("table.plot td button").all()
    assert [each.get_attribute("aria-label") for each in seeds] == ["Open a red boat", "Open a green boat"] * 2


def test_seamless_texture_is_seen_tiled_and_alpha_on_grounds(page: Page):
    page.locator("summary", has_text="More controls").click()
    page.get_by_label("Seamless texture").check()
    with page.expect_request(lambda asked: asked.method == "POST" and asked.url.endswith("/v1/jobs")) as asked:
        painted(page, "mossy stones")
    assert {name: asked.value.post_data_json["recipe"][name] for name in ("task", "seamless")} == {
        "task": "tile",
        "seamless": "xy",
    }
    open_first(page)
    expect(page.locator(".tiled")).to_be_visible()
    assert "/v1/pictures/" in page.locator(".tiled").evaluate("el => getComputedStyle(el).backgroundImage")
    page.get_by_role("button", name="Tiled").click()
    expect(page.locator(".tiled")).to_have_count(0)
    for ground, colour in (("Black", "rgb(0, 0, 0)"), ("White", "rgb(255, 255, 255)")):
        page.get_by_role("button", name=ground).click()
        assert page.locator(".frame").evaluate("el => getComputedStyle(el).backgroundColor") == colour
    page.get_by_role("button", name="Checkerboard").click()
    assert "conic-gradient" in page.locator(".frame").evaluate("el => getComputedStyle(el).backgroundImage")


def test_how_a_picture_came_to_be(page: Page):
    painted(page, "a lighthouse")
    before = page.locator("#pictures li").count()
    open_first(page)
    page.get_by_role("button", name="How it came to be").click()
    slider = page.locator("#station")
    expect(page.locator("dialog .hint[role=status]")).to_contain_text("Move the slider")
    slider.press("Home")
    expect(page.locator("dialog .note")).to_contain_text("It begins with noise that the seed")
    early = page.locator(".twins figure:last-child img").get_attribute("src")
    slider.press("End")
    expect(page.locator("dialog .note")).to_contain_text("The last step")
    assert page.locator(".twins figure:last-child img").get_attribute("src") != early
    expect(page.locator("svg.chart")).to_have_attribute("aria-label", re.compile("in 8 steps; after step 8 it is 0.00"))
    slider.press("ArrowLeft")
    for _ in range(3):
        slider.press("ArrowLeft")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#pictures li")).to_have_count(before)


def foreign(text: str) -> bytes:
    told, file = PngInfo(), io.BytesIO()
    told.add_itxt("parameters", text)
    Image.new("RGB", (64, 48), (90, 140, 60)).save(file, "PNG", pnginfo=told)
    return file.getvalue()


def test_settings_of_automatic1111_are_read(page: Page):
    text = "a stone bridge\nNegative prompt: fog\nSteps: 7, Sampler: DPM++ 2M, CFG scale: 6.5, Seed: 12345, Size: 64x48"
    page.set_input_files("#file", {"name": "bridge.png", "mimeType": "image/png", "buffer": foreign(text)})
    page.get_by_role("button", name="Use its settings").click()
    for id, value in {
        "prompt": "a stone bridge",
        "negative": "fog",
        "seed": "12345",
        "steps": "7",
        "cfg_scale": "6.5",
    }.items():
        expect(page.locator(f"#{id}")).to_have_value(value)


def test_dropped_and_pasted_pictures(page: Page):
    give = """([kind, name, bytes]) => {
        const told = new DataTransfer();
        told.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
        const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: told, bubbles: true })
            : new DragEvent("drop", { dataTransfer: told, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(give, [kind, f"{kind}.png", list(foreign(""))])
        expect(page.locator("dialog h2")).to_have_text(f"{kind}.png")
        page.get_by_role("button", name="Change it").click()
        expect(page.locator("#source-name")).to_have_text(f"{kind}.png")
    with page.expect_request("**/v1/jobs") as asked:
        paint(page, "a meadow")
    assert asked.value.post_data_json["recipe"]["image"].startswith("upload:u_")
    expect(page.locator("#pictures span").first).to_have_text("a meadow")
    page.get_by_role("button", name="Let go of it").click()
    expect(page.locator("#source")).to_be_hidden()


def test_what_was_not_checked_is_said(page: Page):
    page.get_by_role("button", name="Not checked for safety").click()
    expect(page.locator("dialog .note")).to_contain_text("No safety classifier is loaded")
    expect(page.locator("dialog")).to_contain_text("PNG text limner: the recipe, as JSON")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Not checked for safety")).to_be_focused()


def test_hostile_texts_stay_texts(page: Page, house: House):
    page.locator("summary", has_text="More controls").click()
    painted(page, "a plain pear", steps="3")
    painted(page, HOSTILE, steps="3", negative=HOSTILE[:200])
    expect(page.locator("#pictures span").first).to_have_text(HOSTILE.replace("\u0007", "\u0007"))
    open_first(page)
    expect(page.locator("dialog dl")).to_contain_text("<script>window.hit=1</script>")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".compare")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="How it came to be").click()
    expect(page.locator("dialog .hint[role=status]")).to_contain_text("Move the slider")
    page.keyboard.press("Escape")
    page.locator("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.locator("#prompt")).to_have_value(HOSTILE)
    page.fill("#search", HOSTILE[:190])
    text = (
        f"{HOSTILE}\nNegative prompt: {HOSTILE}\nSteps: 5, Sampler: {HOSTILE}, Seed: 1, Size: 64x64, Model: {HOSTILE}"
    )
    name = "<img src=x onerror=window.hit=1>.png"
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": foreign(text)})
    expect(page.locator("dialog h2")).to_have_text(name)
    page.locator("dialog summary").click()
    expect(page.locator("dialog pre")).to_contain_text("onerror")
    page.locator("dialog .chips button").first.click()
    page.evaluate("location.hash = '#<img src=x onerror=window.hit=1>'")
    paint(page, "fail " + HOSTILE)
    expect(page.locator("#said")).not_to_be_empty()
    assert house.reports == house.expected


def test_policy_keeps_inline_code_from_running_and_counts_it(browser: Browser, house: House):
    """That the counting counts."""
    page = browser.new_page()
    page.goto(house.url)
    told = page.evaluate("""() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        const made = document.createElement("button");
        made.setAttribute("onclick", "window.other=1");
        document.body.append(made);
        made.click();
    })""")
    assert told == "script-src-attr" and not page.evaluate("window.other")
    page.close()
    until = time.monotonic() + PATIENCE / 1000
    while house.reports == house.expected and time.monotonic() < until:
        time.sleep(0.05)
    house.expected += 1
    assert house.reports == house.expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(visit: Callable[..., Page], house: House, scheme: str):
    page = visit(
        house.url, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True, is_mobile=True,
        device_scale_factor=2,
    )  # fmt: skip
    ready(page)
    painted(page, "a small fox")
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 360
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(250, 248, 244)", "dark": "rgb(22, 20, 15)"}[scheme]
    open_first(page)
    inside = "el => el.scrollWidth - el.clientWidth"
    assert page.locator("dialog").evaluate(inside) <= 0
    small = "els => els.filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"
    assert page.locator("button").evaluate_all(small) == []
    page.get_by_role("button", name="Repaint a part").last.tap()
    expect(page.locator(".sheet canvas")).to_be_visible()
    assert page.locator("dialog").evaluate(inside) <= 0
    page.get_by_role("button", name="Close").tap()
    page.locator("summary", has_text="More controls").tap()
    assert page.evaluate(wide) <= 360
    page.get_by_role("button", name="Lay a grid of settings").tap()
    assert page.locator("dialog").evaluate(inside) <= 0


def test_dark_by_choice(page: Page):
    page.get_by_label("Colours of the page").select_option("dark")
    painted(page, "a lantern")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(22, 20, 15)"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.locator("#prompt")).to_have_value("a lantern")


def test_keyboard_alone(page: Page):
    """From the first Tab to a deleted picture, without a pointer; the focus is always seen."""
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab") if not page.locator("#prompt").evaluate("el => el === document.activeElement") else None
    expect(page.locator("#prompt")).to_be_focused()
    assert page.locator("#prompt").evaluate("el => getComputedStyle(el).outlineStyle") == "solid"
    page.keyboard.type("a paper boat")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#easel:not(.forming) button img")).to_be_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#easel') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("dialog.is-viewer h2")).not_to_have_text("a paper boat")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("dialog.is-viewer h2")).to_have_text("a paper boat")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.locator("body").press("/")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#pictures li").nth(1).locator("button")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.locator("dialog").get_by_role("button", name="Delete").press("Enter")
    expect(page.locator("dialog")).to_have_count(0)
    page.get_by_role("button", name="Undo").press("Enter")
    expect(page.locator("#pictures span").first).to_have_text("a paper boat")


def test_names_of_all_controls(page: Page):
    """Whatever can be used has a name for a screen reader, also what the scripts made."""
    painted(page, "a lute")
    nameless = """els => els.filter(e => e.checkVisibility() && !(e.labels?.length || e.ariaLabel || e.title
        || e.textContent.trim() || e.querySelector("img[alt]:not([alt=''])"))).map(e => e.outerHTML)"""
    controls = page.locator("button, input, select, textarea, summary, a")
    assert controls.evaluate_all(nameless) == []
    open_first(page)
    page.get_by_role("button", name="Repaint a part").last.click()
    expect(page.locator(".sheet canvas")).to_be_visible()
    assert controls.evaluate_all(nameless) == []
    page.get_by_role("button", name="Close").click()
    open_first(page)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".compare")).to_be_visible()
    assert controls.evaluate_all(nameless) == []


def test_reduced_motion(visit: Callable[..., Page], house: House):
    page = visit(house.url, reduced_motion="reduce")
    ready(page)
    page.locator("summary", has_text="More controls").click()
    paint(page, "a still one", steps="300")
    expect(page.locator("#easel.forming img")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0
    page.get_by_role("button", name="Stop").click()


def test_page_left_open_goes_on_after_a_restart(visit: Callable[..., Page], tmp_path: Path):
    with House(tmp_path / "serve", 0.02) as house:
        page = visit(house.url)
        ready(page)
        painted(page, "kept over the night")
        house.close()
        expect(page.locator("#status")).to_contain_text("The server is away")
        paint(page, "nobody hears this")
        expect(page.locator("#said")).to_contain_text("The server does not answer.")
        house.open()
        ready(page)
        expect(page.locator("#pictures span")).to_have_text(["kept over the night"])
        painted(page, "made in the morning")
        page.reload()
        expect(page.locator("#pictures span")).to_have_text(["made in the morning", "kept over the night"])


def test_token_is_asked_for_and_pictures_come_with_it(visit: Callable[..., Page], tmp_path: Path):
    store = Store(f"sqlite:///{_made(tmp_path / 'serve') / 'limner.db'}")
    token, _ = add(store, "a painter")
    store.close()
    with House(tmp_path / "serve", 0.0, "token") as house:
        page = visit(house.url)
        page.get_by_label("Your token").fill("lim_wrong")
        page.keyboard.press("Enter")
        expect(page.locator("dialog")).to_contain_text("This token is not accepted")
        page.get_by_label("Your token").fill(token)
        page.get_by_role("button", name="Come in").click()
        ready(page)
        painted(page, "a sealed letter")
        img = page.locator("#pictures img").first
        expect(img).to_have_attribute("src", re.compile("^blob:"))  # it is fetched with the token, a moment later
        page.wait_for_function("el => el.naturalWidth == 128", arg=img.element_handle())
        assert page.context.cookies() == [] and token not in page.evaluate("JSON.stringify(localStorage)")
        page.get_by_role("button", name="Not checked for safety").click()
        page.get_by_role("button", name="Forget my token").click()
        expect(page.get_by_label("Your token")).to_be_visible()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_downloaded_file_is_the_file_itself(page: Page):
    painted(page, "a seal")
    with page.expect_download() as told:
        page.locator("#actions").get_by_role("button", name="Download").click()
    assert re.fullmatch(r"a-seal-\d+\.png", told.value.suggested_filename)
    with Image.open(told.value.path()) as image:
        assert json.loads(image.info["limner"])["recipe"]["prompt"] == "a seal"


def test_it_can_be_used_soon(visit: Callable[..., Page], house: House):
    """Figures of a slow machine, so that a page ten times as slow is noticed."""
    page = visit(house.url)
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("performance.now()") < 5000
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('/page/')).map(e => e.decodedBodySize)"
    )
    assert 0 < sum(sizes) < 150_000
    ready(page)
    page.fill("#prompt", "a quick one")
    begun = time.monotonic()
    page.get_by_role("button", name="Paint", exact=True).click()
    page.wait_for_selector("#easel.forming img, #easel button img")
    assert time.monotonic() - begun < 5


def test_the_real_worker_and_the_tiny_model(visit: Callable[..., Page], real_server: Real):
    """From words to a picture, and each of its steps, with no part of it played."""
    page = visit(f"{real_server.url}/")
    ready(page)
    painted(page, "a red apple")
    assert page.locator("#easel img").evaluate("img => img.naturalWidth") > 0
    open_first(page)
    page.get_by_role("button", name="How it came to be").click()
    expect(page.locator("dialog .hint[role=status]")).to_contain_text("Every step is here.")
    frames = []
    for key in ("Home", "End"):
        page.locator("#station").press(key)
        frames += [page.locator(".twins img").nth(i).get_attribute("src") for i in (0, 1)]
    assert all(each.startswith("data:image/webp;base64,") for each in frames)
    assert len(set(frames[:3])) == 3 and frames[2] == frames[3], "at the end the guess is what there is"
    expect(page.locator("svg.chart")).to_have_attribute("aria-label", re.compile(r"after step \d+ it is 0\.00"))


@pytest.mark.skipif("LIMNER_SCREENSHOTS" not in os.environ, reason="LIMNER_SCREENSHOTS asks for pictures of the page")
def test_screenshots_for_the_docs(visit: Callable[..., Page], tmp_path: Path):
    """With the model that ships, so that they show what it paints."""
    with running(tmp_path / "serve", Path("mini")) as real:
        page = visit(f"{real.url}/")
        page.set_default_timeout(120_000)
        expect(page.locator("#status")).to_have_attribute("data-mood", "good", timeout=120_000)
        page.locator("summary", has_text="More controls").click()
        for prompt in ("a golden key", "a cat with a hat", "a house at night", "a green leaf"):
            painted(page, prompt, seed="7", steps="16")
        painted(page, "a red apple", seed="7", count="2")
        page.locator("summary", has_text="More controls").click()
        page.evaluate("scrollTo(0, 0)")
        shot(page, "page")
        page.locator("summary", has_text="More controls").click()
        paint(page, "a rocket", steps="200", count="1")
        for prompt in ("a blue car", "a small fox", "a tree in autumn"):
            paint(page, prompt, steps="12")
        page.wait_for_selector("#easel.forming img")
        page.wait_for_timeout(1500)
        page.evaluate("scrollTo(0, 0)")
        shot(page, "queue")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#pictures button", has_text="a tree in autumn")).to_be_visible()
        expect(page.locator("#stop")).to_be_hidden()
        page.locator("#pictures button", has_text="a red apple").first.click()
        shot(page, "viewer")
        page.get_by_role("button", name="How it came to be").click()
        expect(page.locator("dialog .hint[role=status]")).to_contain_text("Every step is here.")
        for _ in range(9):
            page.locator("#station").press("ArrowLeft")
        shot(page, "steps")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Repaint a part").last.click()
        box = page.locator(".sheet canvas").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.25)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5, steps=8)
        shot(page, "mask")
        page.mouse.up()
        page.get_by_role("button", name="Use this mask").click()
        expect(page.locator("#mask-state")).to_have_text("The part is marked.")
        painted(page, "a red apple with a worm", steps="16")
        shot(page, "source", full=True)
        page.locator("#pictures button").first.click()
        page.get_by_role("button", name="Compare").click()
        shot(page, "compare")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Let go of it").click()
        page.fill("#prompt", "a red boat")
        page.get_by_role("button", name="Lay a grid of settings").click()
        page.get_by_label("From left to right").select_option("word")
        page.get_by_label("From top to bottom").select_option("style")
        page.get_by_role("button", name="Paint the grid").click()
        expect(page.locator("table.plot td button img")).to_have_count(12, timeout=120_000)
        shot(page, "grid")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Not checked for safety").click()
        shot(page, "checked")
        page.keyboard.press("Escape")
        page.get_by_label("Colours of the page").select_option("dark")
        page.locator("summary", has_text="More controls").click()
        shot(page, "dark")
        phone = visit(f"{real.url}/", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        ready(phone)
        painted(phone, "a lemon")
        phone.evaluate("scrollTo(0, 0)")
        shot(phone, "phone")

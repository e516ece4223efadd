"""The page as it is sent, looked at without a browser: what it weighs, what it may not hold, who can read it."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from limner.serve import page

FOLDER = files("limner.serve") / "page"
TEXTS = {name: (FOLDER / name).read_text(encoding="utf-8") for name in page.NAMES}
SCRIPTS = [name for name in page.NAMES if name.endswith(".js")]
BUDGET = 150_000  # bytes of the whole page, unpacked
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Tree(HTMLParser):
    """Each element with its attributes and those around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[tuple[str, dict[str, str]]]]] = []
        self.around: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        self.found.append((tag, told, list(self.around)))
        if tag not in VOID:
            self.around.append((tag, told))

    def handle_endtag(self, tag: str) -> None:
        assert self.around.pop()[0] == tag, f"</{tag}> closes another element"


TREE = Tree(TEXTS[page.HOME])


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.router)
    return TestClient(app)


def test_weight():
    assert sum(len(leaf.body) for leaf in page.leaves().values()) < BUDGET


def test_the_table_and_the_folder_are_the_same():
    assert sorted(each.name for each in FOLDER.iterdir() if not each.name.startswith("__")) == sorted(page.NAMES)


@pytest.mark.parametrize("name", page.NAMES)
def test_is_sent_with_its_type_and_known_again(client: TestClient, name: str):
    where = "/" if name == page.HOME else f"/page/{name}"
    first = client.get(where)
    kind = {"html": "text/html", "css": "text/css", "svg": "image/svg+xml", "js": "text/javascript"}[
        name.split(".")[-1]
    ]
    assert first.status_code == 200 and first.headers["content-type"].startswith(kind)
    assert first.content == (FOLDER / name).read_bytes()
    assert first.headers["cache-control"] == "no-cache" and first.headers["x-content-type-options"] == "nosniff"
    again = client.get(where, headers={"If-None-Match": f'W/{first.headers["etag"]}, "other"'})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == first.headers["etag"]
    assert client.get(where, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "%2e%2e", "..%2fpage.py", "page.py", "MAIN.JS", "main.js%00", "%5cmain.js", "sub/main.js"]
)
def test_nothing_else_is_sent(client: TestClient, name: str):
    assert client.get(f"/page/{name}").status_code == 404


def test_head_is_the_answer_without_its_body(client: TestClient):
    answer = client.head("/page/main.js")
    assert (answer.status_code, answer.content) == (200, b"")


def test_html_holds_no_script_style_or_address_of_others():
    for tag, told, _ in TREE.found:
        assert tag != "style" and "style" not in told, f"<{tag}> has a style of its own"
        assert not [name for name in told if name.startswith("on")], f"<{tag}> has a handler"
        for name in ("src", "href", "action"):
            assert re.fullmatch(r"(page/[\w.-]+|#[\w-]+)?", told.get(name, "")), f"<{tag}> points to {told[name]}"
    scripts = [told for tag, told, _ in TREE.found if tag == "script"]
    assert scripts == [{"type": "module", "src": "page/main.js"}]
    assert re.search(r"<script[^>]*></script>", TEXTS[page.HOME])


def test_ids_are_given_once():
    ids = [told["id"] for _, told, _ in TREE.found if "id" in told]
    assert sorted(ids) == sorted(set(ids))


def test_every_control_has_a_label():
    labelled = {told["for"] for tag, told, _ in TREE.found if tag == "label" and "for" in told}
    for tag, told, around in TREE.found:
        if tag in ("input", "select", "textarea"):
            inside = any(each == "label" for each, _ in around)
            assert inside or told.get("id") in labelled or told.get("aria-label"), f"{told} has no label"
        if tag in ("section", "form", "nav", "progress"):
            assert told.get("aria-label") or told.get("aria-labelledby"), f"<{tag}> {told} has no name"
        for other in told.get("aria-describedby", "").split() + told.get("aria-labelledby", "").split():
            assert any(each.get("id") == other for _, each, _ in TREE.found), f"nothing has the id {other}"
        if tag == "img":
            assert "alt" in told


def test_language_and_regions_are_told():
    tags = [tag for tag, _, _ in TREE.found]
    assert next(told for tag, told, _ in TREE.found if tag == "html")["lang"] == "en"
    assert (tags.count("main"), tags.count("h1"), tags.count("title")) == (1, 1, 1)
    live = next(told for _, told, _ in TREE.found if told.get("id") == "live")
    assert (live["role"], live["aria-live"]) == ("status", "polite")


WAYS_IN = (  # by which a text becomes markup or code
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|createContextualFragment|DOMParser|srcdoc"
    r"|\beval\b|new Function|setTimeout\(\s*[\"'`]|setInterval\(\s*[\"'`]|javascript:"
    r"|setAttribute\([\"'](?:on|style)"
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_texts_of_texts(name: str):
    text = TEXTS[name]
    assert not re.findall(WAYS_IN, text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), "an address of others"
    assert not re.findall(r"document\.cookie|indexedDB|serviceWorker|window\.open|postMessage", text)
    for place in re.findall(r"^(?:import|}).* from \"(.+)\";$|\bimport\((.*?)\)", text, re.M):
        assert "".join(place) == "`./${part}.js`" or "".join(place).removeprefix("./") in page.NAMES


def test_only_the_text_of_names_is_fetched_later():
    """The one import whose name is computed is told constants alone."""
    told = [part for text in TEXTS.values() for part in re.findall(r"\blater\(([^)]*)\)", text)]
    asked = {part.split(",")[0].strip('" ') for part in told if part != "part, name"}
    assert asked and {f"{part}.js" for part in asked} <= set(page.NAMES)


def test_css_points_nowhere():
    assert "url(" not in TEXTS["style.css"] and "@import" not in TEXTS["style.css"]


def test_motion_can_be_reduced():
    assert "prefers-reduced-motion: reduce" in TEXTS["style.css"]


# ---- contrast, by WCAG 2.2: 4.5 for words (1.4.3), 3 for the borders of controls and the focus (1.4.11)

COLOURS = {
    name: [colour.strip() for colour in found.removeprefix("light-dark(").removesuffix(")").split(",")]
    for name, found in re.findall(r"--([\w-]+): (light-dark\([^)]*\)|#[0-9a-f]{6});", TEXTS["style.css"])
}
WORDS = [
    *((ink, ground) for ink in ("ink", "soft") for ground in ("paper", "card", "well", "accent-soft")),
    ("accent", "paper"), ("accent", "card"), ("on-accent", "accent"), ("bad", "card"), ("bad", "paper"),
    ("paper", "ink"),
]  # fmt: skip
SHAPES = [
    *((shape, ground) for shape in ("edge", "focus", "accent") for ground in ("paper", "card")),
    ("good", "paper"), ("bad", "paper"), ("accent", "line"),
]  # fmt: skip


def luminance(colour: str) -> float:
    """Relative, of "#rrggbb" in sRGB."""
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_wcag_says():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("front", "ground", "least"), [(*pair, 4.5) for pair in WORDS] + [(*pair, 3.0) for pair in SHAPES]
)
def test_contrast(theme: int, front: str, ground: str, least: float):
    one, other = (COLOURS[name][theme] for name in (front, ground))
    assert contrast(one, other) >= least, f"{front} {one} on {ground} {other}"


def test_no_control_hides_what_the_form_can_do():
    """A control's id is also a name on its form, and would stand before a method of it."""
    methods = {
        "reset",
        "submit",
        "requestSubmit",
        "elements",
        "length",
        "action",
        "method",
        "checkValidity",
        "append",
        "hidden",
    }
    assert not methods & {told.get("id") for _, told, around in TREE.found if any(tag == "form" for tag, _ in around)}

"""The house itself: imports go down only, and a few things live in one room alone."""

import ast
import sys
from pathlib import Path

import pytest

import limner

SOURCE = Path(limner.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
FLOORS: list[set[str]] = [
    {"types", "errors", "registry", "config", "rng", "place", "palette"},
    {"nn"},
    {"models", "diffusion", "weights"},
    {"families"},
    {"recipe", "words", "pipeline", "image", "files", "store", "hub", "wildcards", "regions", "enlarge", "control"}
    | {"looker", "picture_prompt", "film", "board", "seams", "nets", "memory", "denoiser"},
    {"tasks", "train", "evaluate", "intake"},
    {"provenance", "governance", "audit"},
    {"scale", "serve", "client"},
    {"cli"},
]
SHARED = [0, 4]  # floors of single files, which make one room
DOORS = {"evaluate": {"limner.train.data", "limner.train.splits", "limner.train.captions"}}  # judged on the same data
MATHS = {"torch", "numpy"}  # the only foreign packages that diffusion knows


def floor(room: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))  # unknown: above them all


def room_of(file: Path) -> str:
    """The first name below the package; "" for the package's own front door, which may see every room."""
    first = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(file: Path) -> list[str]:
    """Every module that a file imports, at its top or inside a function; `from limner import x` is limner.x."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names = [alias.name for alias in node.names if alias.name != "__version__"]  # stands below everything
            found += [f"limner.{name}" for name in names] if node.module == "limner" else [str(node.module)]
    return found


def code_names(file: Path) -> set[str]:
    """Names, attributes and whole strings of a file; prose in docstrings and messages does not count."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return texts | names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def calls(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def named(file: Path) -> str:
    return str(file.relative_to(SOURCE))


@pytest.mark.parametrize("file", FILES, ids=named)
def test_imports_go_down(file: Path):
    room = room_of(file)
    for module in imports(file):
        top, _, rest = module.partition(".")
        there = rest.partition(".")[0]
        if top != "limner" or room in ("", there) or module in DOORS.get(room, ()):
            continue
        mine, theirs = floor(room), floor(there)
        assert theirs < mine or (theirs == mine and mine in SHARED), f"{room} reaches for {module}"


@pytest.mark.parametrize("file", FILES, ids=named)
def test_no_file_imports_the_oracles_of_the_tests(file: Path):
    assert not {module.partition(".")[0] for module in imports(file)} & {"diffusers", "transformers", "peft"}


@pytest.mark.parametrize("file", sorted((SOURCE / "diffusion").glob("*.py")), ids=named)
def test_diffusion_knows_mathematics_and_the_ground_floor_only(file: Path):
    foreign = {module.partition(".")[0] for module in imports(file)} - sys.stdlib_module_names
    assert foreign <= MATHS | {"limner"}


@pytest.mark.parametrize("file", sorted((SOURCE / "models").rglob("*.py")), ids=named)
def test_models_read_no_file(file: Path):
    assert "pathlib" not in imports(file)
    assert "open" not in calls(file)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_only_place_names_devices(file: Path):
    if room_of(file) not in ("place", "cli"):  # the command line lists the choices, for its help knows no torch
        assert not code_names(file) & {"cuda", "mps", "cuda:0"}


@pytest.mark.parametrize("file", FILES, ids=named)
def test_only_attention_attends(file: Path):
    if named(file) != "nn/attention.py":
        assert "scaled_dot_product_attention" not in code_names(file)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_only_the_command_line_and_the_server_print(file: Path):
    if room_of(file) not in ("cli", "serve"):
        assert "print" not in calls(file)


def test_the_core_stays_readable():
    rooms = ("models", "diffusion", "weights", "families", "pipeline", "words")
    lines = sum(len(file.read_text().splitlines()) for file in FILES if room_of(file) in rooms)
    assert lines < 7_475  # 5,500 and what controls, adapters, eyes, upscalers, GGUF, scaled files, carried answers take

"""The docs cannot lie: their Python runs, their commands' help is current, the files they point to are there."""

import importlib.util
import re
from pathlib import Path

import pytest

import limner

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("src/limner/data/*/README.md"))]
SURFACE = {
    "__version__", "load", "Model", "Recipe", "Noise", "Cond", "Step", "LimnerError", "guided", "times", "SAMPLERS",
    "SCHEDULES", "paint", "run", "begin", "painting", "describe", "to_pil", "Client",
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for registry in (limner.SAMPLERS, limner.SCHEDULES):  # what a page registers goes with it
        len(registry)  # first those from other packages
        for kept in ("_found", "_plain", "_aliases"):
            monkeypatch.setattr(registry, kept, dict(getattr(registry, kept)))
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_the_help_in_the_docs_is_current():
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run: python docs/make_commands.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_links_lead_to_files_that_are_there(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_flags_that_the_readme_shows_exist():
    known = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    shown = "\n".join(blocks(ROOT / "README.md", "sh"))
    for flag in set(
        re.findall(r"(?<=\s)--[a-z-]+", "\n".join(line for line in shown.splitlines() if "limner" in line))
    ):
        assert flag in known, flag


def test_the_public_surface_is_frozen():
    assert set(limner.__all__) == SURFACE
    assert all(getattr(limner, name) is not None for name in SURFACE)


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="limner has no 'pant'"):
        limner.pant  # noqa: B018


def test_the_openness_file_has_the_17_components_and_leads_to_files():
    text = (ROOT / "src/limner/data/mini/mof.yml").read_text(encoding="utf-8")
    fields = {name: re.findall(rf"^      {name}: '(.*)'$", text, re.M) for name in ("name", "location", "license_path")}
    assert len(set(fields["name"])) == len(fields["location"]) == len(fields["license_path"]) == 17
    for place in fields["location"] + fields["license_path"]:
        assert (ROOT / place).exists(), place
    page = (ROOT / "docs/openness.md").read_text(encoding="utf-8")
    for name in fields["name"]:
        assert (
            f"| {name.replace(' (', ', ').replace(')', '').replace('Final', 'final').replace('Inter', 'inter')} |"
            in page
        )

"""What the documentation shows is what is there: recipes load, code runs, pages are up to date."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from llmft.api import StageResult, hookimpl, hookspecs
from llmft.api.errors import LlmftError
from llmft.cli.commands import shipped
from llmft.cli.commands.new_plugin import EXAMPLES
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list:
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
        for page in PAGES
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text("utf-8")))
        if kind == language
    ]


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_recipe_in_the_docs_loads(text, registry, tmp_path, monkeypatch):
    # The trackers' packages are extras: a recipe that names them says so, and is otherwise right.
    monkeypatch.setattr("llmft_trackers.reporter.find_spec", lambda name: True)
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    assert load_recipe(path, registry).recipe.stages


@pytest.mark.parametrize("text", blocks("python"))
def test_every_python_block_compiles(text):
    compile(text, "docs", "exec")


@pytest.mark.parametrize("recipe", shipped.recipes(), ids=lambda recipe: recipe.name)
def test_every_shipped_recipe_loads_and_says_what_it_shows(recipe, registry):
    assert load_recipe(recipe.path, registry).recipe.stages
    assert len(recipe.summary) > 20


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_page_about_a_kind_of_plugin_holds_the_examples_own_code(kind):
    made = runpy.run_path(str(ROOT / "docs" / "make_plugin_pages.py"))["page"](kind)
    page = ROOT / "docs" / "plugins" / f"{kind}.md"
    assert page.read_text("utf-8") == made, "run python docs/make_plugin_pages.py"


@hookimpl(trylast=True)
def three_steps(stage, context):
    return StageResult("policy", steps=3)


def test_the_hook_around_stages_does_what_its_page_says():
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text("utf-8")
    (block,) = [text for kind, text in BLOCK.findall(page) if kind == "python"]
    plugin: dict[str, Any] = {}
    exec(block, plugin)
    manager = pluggy.PluginManager("llmft")
    manager.add_hookspecs(hookspecs)
    manager.register(SimpleNamespace(llmft_run_stage=plugin["llmft_run_stage"]), "timer")
    manager.register(SimpleNamespace(llmft_run_stage=three_steps), "engine")
    notes: list[str] = []
    stage, context = (
        SimpleNamespace(name="sft"),
        SimpleNamespace(log=SimpleNamespace(note=notes.append)),
    )
    assert manager.hook.llmft_run_stage(stage=stage, context=context).steps == 3
    assert notes == ["sft took 0 s"]


def test_the_quickstart_page_shows_the_quickstart_recipe():
    shown = BLOCK.findall((ROOT / "docs" / "quickstart.md").read_text("utf-8"))
    (recipe,) = [text for kind, text in shown if kind == "yaml" and "embedded:model" in text]
    shipped_text = (ROOT / "recipes" / "quickstart.yaml").read_text("utf-8")
    assert shipped_text.endswith(recipe)


def test_every_exit_code_is_in_the_quickstart_page():
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    _, section = page.split("\n## Exit codes\n")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
    kinds = {kind.exit_code for kind in LlmftError.__subclasses__()} | {LlmftError.exit_code}
    assert listed == {0, *kinds, 130, 141, 143}


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        text = re.sub(r"`[^`\n]+`(?!\])", "", page.read_text("utf-8"))  # code is no link
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site and code hosts make them."""
    found: set[str] = set()
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for title in re.findall(r"^#+ (.+)$", text, re.M):
        words = re.sub(r"[^\w\s-]", "", re.sub(r"\]\([^)]*\)", "", title)).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", words))
    return found


def test_every_link_to_a_heading_leads_to_one():
    checked = 0
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = page.read_text("utf-8")
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", text):
            there = (page.parent / target).resolve() if target else page
            if there.suffix == ".md":
                assert anchor in anchors(there), f"{page.name}: {target}#{anchor}"
                checked += 1
    assert checked > 60

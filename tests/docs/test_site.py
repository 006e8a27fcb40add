"""The documentation site: it builds without a warning, and its pages need no other host."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["'](https?://[^"']+)""")
REPOSITORY = "https://example.org/llmft"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the site was built, warnings being errors."""
    for needed in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install '.[docs]', or run make docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_of_the_navigation_is_built(site):
    def pages(entry):
        inner = entry.values() if isinstance(entry, dict) else entry
        return (
            [entry] if isinstance(entry, str) else [page for part in inner for page in pages(part)]
        )

    config = YAML(typ="safe").load((ROOT / "mkdocs.yml").read_text("utf-8"))
    for page in pages(config["nav"]):
        plain = page.removesuffix(".md")
        html = plain if plain.endswith("index") else f"{plain}/index"
        assert (site / f"{html}.html").is_file(), page


def test_no_page_of_the_root_stands_in_place_of_one_of_docs():
    added = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))["OF_THE_ROOT"]
    assert not [page for page in added.values() if (ROOT / "docs" / page).exists()]


def test_what_is_said_to_a_code_hosts_reader_is_not_on_the_site(site):
    assert "make docs" not in (site / "reference" / "api" / "index.html").read_text("utf-8")
    assert "make docs" in (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")


def test_the_search_finds_what_is_on_a_page(site):
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    found = {doc["location"].partition("#")[0] for doc in index["docs"] if "GPU" in doc["text"]}
    assert {"quickstart/", ""} <= found


def test_a_page_loads_nothing_from_another_host(site):
    for page in site.rglob("*.html"):
        loaded = LOADED.findall(page.read_text("utf-8"))
        own = [address for address in loaded if "/llmft/llmft" in address]
        assert sorted(set(loaded) - set(own)) == [], page.relative_to(site)


def test_the_api_pages_hold_what_is_public(site):
    from llmft import api, testing, toolkit

    for name, module in (("api", api), ("toolkit", toolkit), ("testing", testing)):
        page = (site / "reference" / name / "index.html").read_text("utf-8")
        missing = {one for one in module.__all__ if f'id="llmft.{name}.{one}"' not in page}
        assert missing <= {"Field"}, name  # pydantic's


@pytest.mark.parametrize(
    ("source", "link", "led"),
    [
        ("README.md", "docs/ppo.md", "ppo.md"),
        ("README.md", "docs/quickstart.md#exit-codes", "quickstart.md#exit-codes"),
        ("README.md", "CHANGELOG.md", "changelog.md"),
        ("README.md", "docs/decisions", "decisions/index.md"),
        ("README.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("README.md", "https://example.org/x", "https://example.org/x"),
        ("docs/ppo.md", "rlhf.md", "rlhf.md"),
        ("docs/ppo.md", "../recipes/ppo_quick.yaml",
         f"{REPOSITORY}/blob/main/recipes/ppo_quick.yaml"),
        ("docs/ppo.md", "../benchmarks/faults", f"{REPOSITORY}/tree/main/benchmarks/faults"),
        ("docs/decisions/0001-x.md", "../ppo.md", "../ppo.md"),
        ("docs/decisions/0001-x.md", "../../CONTRIBUTING.md", "../contributing.md"),
        ("docs/matrix.md", "matrix.jsonl", f"{REPOSITORY}/blob/main/docs/matrix.jsonl"),
    ],
)  # fmt: skip
def test_a_link_leads_where_the_site_has_its_target(source, link, led):
    changed = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))["with_site_links"]
    fenced = f"\n```text\n[kept]({link})\n```\n"
    assert changed(f"see [it]({link})" + fenced, source, REPOSITORY) == f"see [it]({led})" + fenced

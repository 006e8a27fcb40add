"""What stands around the code fits it: licence, citation, container, workflow, guide."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import llmft

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT")]


def yaml_of(name: str) -> Any:
    return YAML(typ="safe").load((ROOT / name).read_text("utf-8"))


def test_the_licence_is_the_whole_apache_licence_and_is_shipped():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert (PROJECT["license"], PROJECT["license-files"]) == ("Apache-2.0", ["LICENSE"])


def test_every_place_that_states_a_version_states_the_same():
    assert {PROJECT["version"], llmft.__version__, yaml_of("CITATION.cff")["version"]} == {
        llmft.__version__
    }


def test_the_supported_pythons_are_the_ones_that_are_tested():
    prefix = "Programming Language :: Python :: 3."
    said = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith(prefix)}
    job = yaml_of(".github/workflows/test.yml")["jobs"]["test"]
    assert said == set(job["strategy"]["matrix"]["python"])
    assert min(said) == PROJECT["requires-python"].removeprefix(">=")


def test_the_workflow_runs_the_command_of_the_readme():
    steps = yaml_of(".github/workflows/test.yml")["jobs"]["test"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["make test"]
    assert "```bash\nmake test\n```" in (ROOT / "README.md").read_text("utf-8")


def test_attacks_and_an_audit_run_in_a_workflow_and_releases_have_hashes():
    jobs = yaml_of(".github/workflows/trust.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert [command.split()[:2] for command in commands] == [["make", "attacks"], ["make", "audit"]]
    goals = (ROOT / "Makefile").read_text("utf-8")
    assert "benchmarks/attacks/run.py --sample" in goals
    assert "bin/pip-audit --progress-spinner off" in goals
    assert "bin/pip-licenses --python" in goals
    release = yaml_of(".github/workflows/release.yml")["jobs"]["files"]["steps"]
    assert any("sha256sum * > SHA256SUMS" in step.get("run", "") for step in release)


def test_the_tests_that_the_page_on_trust_names_are_there():
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", page))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_the_image_is_built_from_files_that_are_there_and_runs_as_an_ordinary_user():
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert set(copied) == let_in
    assert [name for name in copied if not (ROOT / name).exists()] == []
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1:] == ["llmft"]
    # What the package's metadata names has to be in the image before pip builds it.
    needed = [PROJECT["readme"], *PROJECT["license-files"]]
    assert [name for name in needed if not any(fnmatch.fnmatch(name, c) for c in copied)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_the_projects_pages_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_issue_forms_are_forms():
    for name in ("bug", "idea"):
        form = yaml_of(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert form["name"]
        assert {part["type"] for part in form["body"]} <= {"markdown", "textarea", "input"}


def axes(name: str) -> set[str]:
    """The axes in a tensor's name: `out_BHLD` has B, H, L and D."""
    return set(name.rpartition("_")[2])


def test_the_legend_has_every_axis_that_the_code_uses():
    legend = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    known = set(re.findall(r"`(\w)`", " ".join(legend)))
    name = re.compile(r"\b[a-z][a-z_]*_[A-Zr][A-Z0-9r]*\b")
    used = {
        axis
        for folder in ("llmft", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        for found in name.findall(path.read_text("utf-8"))
        if found not in NOT_TENSORS
        for axis in axes(found)
    }
    assert used == known


NOT_TENSORS = {
    "do_GET",
    "do_POST",
    "lora_A",
    "lora_B",
    "key_A",
    "key_B",
    "start_A",
    "start_B",
    "of_A",
    "apply_GS",
    "embedding_A",
}

"""`llmft new-plugin`: what it writes is found, passes its own tests, and replaces nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from llmft.api.errors import RecipeError
from llmft.cli.commands.new_plugin import write_plugin
from llmft.recipes.load import load_recipe
from llmft.registry.contract import KINDS
from llmft.registry.registry import Registry

METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Forget what was imported of new packages: each test makes one of the same name."""
    yield
    for name in [name for name in sys.modules if name.startswith("llmft_my_own")]:
        del sys.modules[name]


def enter(package: Path, site: Path) -> None:
    """Put a package on a path as pip would: its modules, and what its metadata says."""
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA.format(**project))
    lines = [
        line
        for group, methods in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in methods.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for module in (package / "src").iterdir():
        module.rename(site / module.name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_is_found_under_its_name(kind, tmp_path, monkeypatch):
    package, files = write_plugin("My-Own", kind, str(tmp_path / "package"))
    assert sorted(files) == sorted(
        str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()
    )
    enter(package, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry = Registry.discover()
    record = next(row for row in registry.records() if row.method == "my_own")
    assert (record.kind, record.state, record.reason) == (kind, "ok", "")
    assert (record.distribution, record.version) == ("llmft-my-own", "0.1.0")
    assert registry.method(kind, "my_own").__name__ == "MyOwn"


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_of_a_new_package_shows_how_a_recipe_picks_it(kind, tmp_path, monkeypatch):
    package, _ = write_plugin("my_own", kind, str(tmp_path / "package"))
    shown = (package / "README.md").read_text("utf-8").split("```")[3].removeprefix("yaml\n")
    picked = YAML(typ="safe").load(shown)
    enter(package, tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    collect = {"name": "collect", "task": {"method": "collect"}, "data": {"method": "triviaqa"}}
    stage = {
        "name": "new", "adapter": {"method": "lora"}, "alignment": {"method": "sft"},
        "data": {"method": "triviaqa"},
    }  # fmt: skip
    if "task" in picked:
        del stage["adapter"], stage["alignment"]
    if kind == "reward":  # it ranks what an earlier stage made
        del stage["data"]
    recipe = {"recipe": 1, "name": "new", "model": {"path": "embedded:model"}}
    recipe["stages"] = [collect, stage]
    (recipe if "trackers" in picked else stage).update(picked)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    loaded = load_recipe(path, Registry.discover()).recipe
    assert '"my_own"' in json.dumps(loaded.resolved())


@pytest.mark.extended
def test_a_new_package_passes_its_tests_by_itself(tmp_path):
    package, _ = write_plugin("my_reward", "reward", str(tmp_path / "package"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=package, env={"PYTHONPATH": str(package / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_the_command_says_what_it_wrote(llmft, tmp_path):
    folder = tmp_path / "mine"
    ran = llmft("new-plugin", "my-reward", "--kind", "reward", "--output", str(folder), "--json")
    assert ran.data["folder"] == str(folder)
    assert "src/llmft_my_reward/__init__.py" in ran.data["files"]
    again = llmft("new-plugin", "my-reward", "--kind", "reward", "--output", str(folder))
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_knows_every_kind(llmft, kind, tmp_path):
    folder = tmp_path / "mine"
    ran = llmft("new-plugin", "my-own", "--kind", kind, "--output", str(folder), "--json")
    assert f'"{KINDS[kind].group}"' in (folder / "pyproject.toml").read_text("utf-8"), ran


def test_the_folder_is_named_after_the_distribution(llmft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = llmft("new-plugin", "my_reward", "--kind", "reward")
    assert (ran.code, (tmp_path / "llmft-my-reward" / "pyproject.toml").is_file()) == (0, True)
    assert "cd llmft-my-reward && pip install" in ran.out


def test_a_file_in_the_folder_is_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match="E091"):
        write_plugin("my_reward", "reward", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("lora", "adapter", "the adapter 'lora' is installed already"),
        ("rewards", "reward", "a package 'llmft_rewards' is installed already"),
        ("field", "tracker", "the class 'Field', which is taken"),
        ("class", "task", "cannot name a method"),
        ("2nd", "task", "cannot name a method"),
        ("../x", "task", "cannot name a method"),
        ("a__b", "task", "cannot name a method"),
        ("x" * 41, "task", "cannot name a method"),
    ],
)
def test_a_name_that_cannot_work_is_refused(name, kind, said, tmp_path):
    with pytest.raises(RecipeError, match=said) as caught:
        write_plugin(name, kind, str(tmp_path / "package"))
    assert caught.value.faults[0].fix
    assert not (tmp_path / "package").exists()

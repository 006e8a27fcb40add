"""The recipes that come along are found in a checkout, and are in the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmft.api.errors import RecipeError
from llmft.cli.commands import shipped

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "quick.yaml").write_text("# Quick and small.\n# More.\nrecipe: 1\n")
    (tmp_path / "sub" / "deep.yaml").write_text("recipe: 1\n")
    monkeypatch.setattr(shipped, "_FOLDERS", (tmp_path / "nothing", tmp_path))
    return tmp_path


def test_recipes_have_a_name_a_file_and_their_first_comment(folder):
    assert shipped.recipes() == [
        ("quick", folder / "quick.yaml", "Quick and small."),
        ("sub/deep", folder / "sub" / "deep.yaml", ""),
    ]


def test_a_name_finds_its_file_and_a_path_stays_as_it_is(folder):
    assert shipped.find("sub/deep") == folder / "sub" / "deep.yaml"
    assert shipped.find("some/other.yaml") == Path("some/other.yaml")


def test_a_file_goes_before_a_shipped_recipe_of_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder / "sub")
    Path("quick").write_text("recipe: 1\n")
    assert shipped.find("quick") == Path("quick")


def test_an_unknown_name_is_answered_with_the_nearest(folder):
    with pytest.raises(RecipeError, match="did you mean 'quick'"):
        shipped.find("quikc")


def test_the_path_is_as_short_as_a_person_would_type_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert shipped.find("quick") == Path("quick.yaml")


def test_every_recipe_of_the_repository_begins_with_what_it_does():
    assert "quickstart" in [item.name for item in shipped.recipes()]
    assert [item.name for item in shipped.recipes() if not item.summary] == []


def test_the_wheel_holds_every_recipe(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q",
               "-w", str(tmp_path / "out"), str(tmp_path / "source")]  # fmt: skip
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(command, check=True)
    [wheel] = (tmp_path / "out").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"llmft/_recipes/{item.name}.yaml" for item in shipped.recipes()}
    assert wanted <= inside

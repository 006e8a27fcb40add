"""The recipes that ship with llmft: `recipes/` of a checkout, or their copy in the wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from llmft.api.errors import RecipeError
from llmft.system.nearest import did_you_mean

# A symbolic link in a checkout, so resolving it shows the path that a reader of the repo knows.
_PACKAGE = Path(__file__).parents[2]
_FOLDERS = (_PACKAGE / "_recipes", _PACKAGE.parent / "recipes")


class Shipped(NamedTuple):
    """A shipped recipe: the name `llmft run` takes, its file, and its first comment line."""

    name: str
    path: Path
    summary: str


def recipes() -> list[Shipped]:
    """Return the shipped recipes, by name."""
    folder = next((folder.resolve() for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        return []
    found = [
        Shipped(
            path.relative_to(folder).with_suffix("").as_posix(), _short(path), _first_comment(path)
        )
        for path in folder.rglob("*.yaml")
    ]
    return sorted(found)


def find(recipe: str) -> Path:
    """Return the file that a command line means: a path as it stands, or a shipped recipe's name.

    Raises RecipeError for a bare name that is neither a file nor shipped.
    """
    path = Path(recipe)
    # A name with a suffix is a path; where there is no such file, the loader says so.
    if path.suffix or path.is_absolute() or os.path.lexists(path):
        return path
    names = {shipped.name: shipped.path for shipped in recipes()}
    if recipe in names:
        return names[recipe]
    raise RecipeError(
        "E001",
        f"no file and no shipped recipe is called '{recipe}' (shipped: {', '.join(names)})",
        fix=did_you_mean(recipe, names) or "give a recipe's path, or see 'llmft list-recipes'",
    )


def _short(path: Path) -> Path:
    """Return the path as a person in the working folder would type it."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted meanwhile
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        first = lines.readline().strip()
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""

"""`llmft run RECIPE`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from typing import Any

from llmft.commands import shipped
from llmft.recipe import load_recipe
from llmft.registry import Registry


def run_recipe_file(
    recipe: str, overrides: Sequence[str], *, quiet: bool, as_json: bool
) -> dict[str, Any] | str:
    """Run a recipe, and return how it ended: as data, or nothing where trackers have told it."""
    registry = Registry.discover()
    # Every mistake that can be found without torch is found before torch is waited for.
    loaded = load_recipe(shipped.find(recipe), registry, overrides)
    from llmft.engine import run_recipe

    with _told_elsewhere(quiet, as_json):
        summary = run_recipe(loaded, registry)
    if not as_json:
        return ""
    return {
        "run_id": summary.run_id,
        "folder": str(summary.folder),
        "seconds": summary.seconds,
        "stages": {name: asdict(result) for name, result in summary.stages.items()},
    }


@contextmanager
def _told_elsewhere(quiet: bool, as_json: bool) -> Iterator[None]:
    """Leave standard output to the answer where it is JSON; tell nobody where it shall be quiet."""
    if quiet:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    elif as_json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield

"""`llmft fetch RECIPE`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.cli.commands import shipped
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system.quiet import before_upstream, captured_output


def fetch(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a recipe takes from the hub, now in the cache, and what a run still contacts."""
    job = load_recipe(shipped.find(recipe), Registry.discover(), overrides)
    before_upstream()
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of the answer
        from llmft.engine.trackers import Trackers
        from llmft.hub import fetching

        found = fetching.fetch(job)
        contacts = [*fetching.still_contacted(job), *Trackers(job.make_trackers()).contacts()]
    return {"fetched": [asdict(one) for one in found], "still_contacted": contacts}


def as_text(answer: dict[str, Any]) -> str:
    """Return the answer as lines."""
    lines = []
    for one in answer["fetched"]:
        kind = "data set" if one["kind"] == "dataset" else one["kind"]
        what = f"{one['files']} files, {one['size'] / 1e6:,.1f} MB, {one['checked']} sums checked"
        lines.append(
            f"{kind} {one['name']} at {(one['commit'] or 'an unknown commit')[:12]}: {what}"
        )
    lines = lines or ["the recipe takes nothing from the hub"]
    for one in answer["still_contacted"]:
        lines.append(f"a run still contacts: {one}")
    if not answer["still_contacted"]:
        lines.append("a run of it needs no network")
    return "\n".join(lines)

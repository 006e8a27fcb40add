"""`llmft verify resume RECIPE`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.api.errors import CheckpointError
from llmft.api.shown_text import escaped
from llmft.cli.commands import shipped
from llmft.cli.commands.output import printable, table
from llmft.recipes.job import Job
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system import fsio
from llmft.verifying.resume import Verdict, overrides_for, verify_resume


def verify(
    recipe: str, overrides: Sequence[str], kills: int, seed: int, steps: int | None
) -> Verdict:
    """Run a recipe with and without kills, and return the verdict; the runs are taken away.

    Raises CheckpointError where the two differ; the runs and the verdict then stay where they are.
    """
    given = load_recipe(shipped.find(recipe), Registry.discover(), overrides)
    changes = overrides_for(given.written, steps)
    given.load(given.source.path, [*given.source.overrides, *changes])  # the changes fit too
    work = work_folder(given)
    try:
        verdict = verify_resume(given, changes, work, kills, seed, _tell)
    except BaseException:
        _tell(f"the runs are kept in '{work}'")
        raise
    fsio.write_json(work / "verdict.json", as_json(verdict))
    if verdict.differences:
        print(printable(as_text(verdict)), file=sys.stderr)
        told = [f"{d.stage}: {d.what} ({d.difference})" for d in verdict.differences]
        raise CheckpointError(
            "E406",
            f"the result of the killed run differs: {'; '.join(told)}",
            fix=f"both runs and 'verdict.json' are in '{work}'; see docs/reliability.md for what"
            " is not promised",
        )
    shutil.rmtree(work)
    return verdict


def work_folder(job: Job) -> Path:
    """Return a new folder for what is run, beside where the recipe's runs go."""
    parent = Path(job.recipe.output_dir)
    with fsio.disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="verify-", dir=parent)).resolve()


def _tell(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain data."""
    return {
        "bit_exact": not verdict.differences,
        "kills": [asdict(mark) | {"where": str(mark)} for mark in verdict.kills],
        "compared": json.loads(json.dumps([asdict(finding) for finding in verdict.findings])),
    }


def as_text(verdict: Verdict) -> str:
    """Return the verdict as two tables and a sentence."""
    kills = [(str(number), str(mark)) for number, mark in enumerate(verdict.kills, start=1)]
    found = [
        (f.stage, f.what, f.compared, f"differs: {f.difference}" if f.difference else "the same")
        for f in verdict.findings
    ]
    times = f"{len(kills)} kill{'' if len(kills) == 1 else 's'}"
    last = (
        f"not bit-exact after {times}"
        if verdict.differences
        else f"bit-exact: after {times} the result is that of an uninterrupted run"
    )
    return "\n\n".join([
        table(("kill", "where"), kills),
        table(("stage", "what", "compared", "verdict"), found),
        last,
    ])  # fmt: skip

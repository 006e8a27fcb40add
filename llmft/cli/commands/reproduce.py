"""`llmft reproduce RUN`."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import CheckpointError
from llmft.api.shown_text import escaped
from llmft.cli.commands.output import printable, table
from llmft.cli.commands.run import told_elsewhere
from llmft.system import fsio
from llmft.verifying import reproducing

if TYPE_CHECKING:
    from llmft.recipes.job import Job


def write_requirements(run: str, file: str) -> dict[str, Any]:
    """Write the packages of a run as a requirements file, which must not be there yet."""
    fsio.refuse_overwriting(Path(file))
    lines = reproducing.requirements(Path(run))
    fsio.write_text(Path(file), "".join(f"{line}\n" for line in lines))
    return {"requirements": file, "packages": len(lines) - 1}


def reproduce(
    run: str, *, tolerance: float | None, keep: bool, as_json: bool
) -> reproducing.Reproduction:
    """Run a finished run again, and return how both compare; the second is taken away.

    Raises CheckpointError (E409) where they differ by more than the tolerance: to the bit where
    there is none. The second run then stays where it is.
    """
    from llmft.engine.session import run_recipe

    place = Path(run)
    job = reproducing.finished(place)
    changes = reproducing.differences_here(job, place)
    for line in [f"not as here: {change}" for change in changes] or [
        "this machine is as the run's"
    ]:
        print(escaped(line), file=sys.stderr, flush=True)

    def again(job: Job) -> Path:
        with told_elsewhere(False, as_json):
            return run_recipe(job, as_in=place).folder

    with fsio.disk_errors(place.parent):
        work = Path(tempfile.mkdtemp(prefix="reproduce-", dir=place.resolve().parent))
    found = reproducing.reproduce(job, place, work, again, changes)
    if found.differences and (tolerance is None or found.gap > tolerance):
        print(printable(as_text(found, tolerance)), file=sys.stderr)
        told = "; ".join(f"{d.stage}: {d.what}" for d in found.differences)
        why = f"; here differs: {', '.join(changes)}" if changes else ""
        raise CheckpointError(
            "E409",
            f"the run gives another result here ({told}; losses and scores by up to"
            f" {found.gap:.2g}){why}",
            fix=f"it is in '{found.again}'; --write-requirements writes the run's packages, and"
            " --tolerance says how far apart two machines may be",
        )
    if not keep:
        shutil.rmtree(work)
    return found


def as_data(found: reproducing.Reproduction, kept: bool) -> dict[str, Any]:
    """Return it as plain data."""
    return {
        "bit_exact": not found.differences,
        "largest_difference": found.gap if math.isfinite(found.gap) else None,
        "environment": found.changes,
        "compared": [asdict(finding) for finding in found.findings],
        **({"folder": str(found.again)} if kept else {}),
    }


def as_text(found: reproducing.Reproduction, tolerance: float | None) -> str:
    """Return a table of what was compared, and the verdict."""
    rows = [
        (f.stage, f.what, f.compared, f"differs: {f.difference}" if f.difference else "the same")
        for f in found.findings
    ]
    if not found.differences:
        last = "reproduced to the bit"
    elif tolerance is not None and found.gap <= tolerance:
        last = f"reproduced: losses and scores differ by {found.gap:.2g} at most, of {tolerance:g}"
    else:
        last = f"not reproduced: losses and scores differ by up to {found.gap:.2g}"
    return "\n\n".join([table(("stage", "what", "compared", "verdict"), rows), last])

"""`llmft verify losses RECIPE --against trl`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llmft.api.errors import CheckpointError, RecipeError
from llmft.api.shown_text import escaped
from llmft.cli.commands import shipped
from llmft.cli.commands.output import printable, table
from llmft.cli.commands.verify import work_folder
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry

if TYPE_CHECKING:
    from llmft.verifying.losses import Parting, Verdict

_AROUND = 3


def verify(
    recipe: str, overrides: Sequence[str], against: str, stage: str | None, steps: int
) -> Verdict:
    """Return the verdict on a stage's first steps; raise CheckpointError (E408) where they differ.

    What both sides wrote down stays where they differ, and is taken away where they do not.
    """
    if against != "trl":
        raise RecipeError("E090", f"--against '{against}' is not known", fix="write --against trl")
    from llmft.verifying.losses import changes_for, stage_of, verify_losses

    given = load_recipe(shipped.find(recipe), Registry.discover(), overrides)
    bound = stage_of(given, stage)
    changes = changes_for(given, bound.name)
    given.load(given.source.path, [*given.source.overrides, *changes])  # the changes fit too
    work = work_folder(given)
    try:
        verdict = verify_losses(given, bound, changes, work, steps, _tell)
    except RecipeError:
        shutil.rmtree(work)
        raise
    except BaseException:
        _tell(f"what was run is kept in '{work}'")
        raise
    if not verdict.fine:
        print(printable(as_text(verdict)), file=sys.stderr)
        raise CheckpointError(
            "E408", f"stage '{bound.name}' differs from TRL: {_causes(verdict)}",
            fix=f"both sides' rows and losses are in '{work}'; docs/moving.md says what differs",
        )  # fmt: skip
    shutil.rmtree(work)
    return verdict


def _tell(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)


def _causes(verdict: Verdict) -> str:
    if verdict.partings:
        first = verdict.partings[0]
        return (
            f"{len(verdict.partings)} of {verdict.rows} rows have other {first.what}, first"
            f" {first.origin or 'one without a place'} at token {first.at}"
        )
    what, step = verdict.unlike() or ("loss", 1)
    ours, theirs = (verdict.losses if what == "loss" else verdict.norms)[step - 1]
    return f"the {what} of step {step} is {ours:.6g} here and {theirs:.6g} there"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain data."""
    return {"same": verdict.fine, **asdict(verdict)}


def as_text(verdict: Verdict) -> str:
    """Return what each side did, a table each, and a sentence."""
    other = f"{verdict.trainer} (TRL {verdict.version})"
    apart, least = len(verdict.partings), verdict.least or 1e-30
    rows = f"token ids and labels: {verdict.rows - apart} of {verdict.rows} rows the same"
    norms = [(f"{a:.6f}", f"{b:.6f}") for a, b in verdict.norms]
    steps = [
        (str(n), f"{a:.6f}", f"{b:.6f}", f"{abs(a - b) / max(abs(a), abs(b), least):.1e}",
         *(norms[n - 1] if norms else ()))
        for n, (a, b) in enumerate(verdict.losses, start=1)
    ]  # fmt: skip
    ours, theirs = verdict.costs
    cost = [
        (what, f"{getattr(ours, name):,}", f"{getattr(theirs, name):,}")
        for what, name in (
            ("CPU seconds", "cpu_seconds"), ("seconds", "seconds"),
            ("peak memory, MiB", "peak_mib"), ("tokens", "tokens"),
        )
    ]  # fmt: skip
    parts = [rows, *(_shown(part) for part in verdict.partings[:1])]
    more = ("gradient's norm here", "there") if norms else ()
    parts += [table(("step", "loss here", other, "apart", *more), steps)]
    if norms:
        parts.append("the answers and their scores are those of this side")
    parts += [table(("took", "here", other), cost)]
    if verdict.dropouts:
        parts.append("dropout is off on both sides, as its masks differ")
    parts.append(
        f"the same: losses agree to {verdict.allowed:g}" if verdict.fine
        else f"not the same: {_causes(verdict)}"
    )  # fmt: skip
    return "\n\n".join(parts)


def _shown(part: Parting) -> str:
    start = max(0, part.at - _AROUND)
    sides = [list(side[start : part.at + _AROUND + 1]) for side in (part.ours, part.theirs)]
    return (
        f"{part.origin}: {part.what} part at token {part.at}\n  here: {sides[0]}"
        f" ({len(part.ours)} in all)\n  TRL:  {sides[1]} ({len(part.theirs)} in all)"
    )

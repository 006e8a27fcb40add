"""`llmft evaluate RUN|MODEL`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import RecipeError
from llmft.cli.commands.output import table
from llmft.system import fsio
from llmft.system.quiet import captured_output

if TYPE_CHECKING:
    from llmft.inference.evaluating import Asked


def evaluated(asked: Asked, output: str | None) -> dict[str, Any]:
    """Return the scores of a run or a model, each with its rows and its 95 % interval.

    output: a file for the rows; RecipeError where it is there already.
    """
    if output is not None:
        fsio.refuse_overwriting(Path(output))
    tell = progress()
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.inference.evaluating import evaluate

        found = evaluate(asked, tell)
    if output is not None:
        fsio.write_new_jsonl(Path(output), found.rows)
    return {
        "target": asked.target,
        "stage": found.stage,
        "base": asked.base,
        "rows": found.count,
        "metrics": found.metrics,
        "scores": dict(found.scores),
        "notes": list(found.notes),
        "learnt": found.learnt,
        "output": output,
    }


def refuse_without_judge(model: str | None, against: str | None, timeout: float | None) -> None:
    """Raise RecipeError (E090) where something is said of a judge, and none is named."""
    options = {"--judge-model": model, "--against": against, "--timeout": timeout}
    for option, given in options.items():
        if given is not None:
            what = f"{option} has an effect only where answers are judged"
            raise RecipeError("E090", what, fix="add --judge URL, or leave it out")


def refuse_without_harness(options: dict[str, Any]) -> None:
    """Raise RecipeError (E090) where something is said of the harness, and no task is named."""
    for option, given in options.items():
        if given not in (None, False):
            what = f"{option} is about tasks of lm-evaluation-harness, and none is named"
            raise RecipeError("E090", what, fix="add --lm-eval TASKS, or leave it out")


def progress() -> Any:
    """Return what tells how far it is, on a terminal's last line; nothing elsewhere."""
    stream = sys.stderr
    if not stream.isatty():
        return lambda *_: None

    def tell(phase: str, done: int, total: int) -> None:
        end = "\r" if done < total else "\n"
        stream.write(f"{phase} {done}/{total}{end}")
        stream.flush()

    return tell


def as_text(found: dict[str, Any]) -> str:
    """Return the scores as a table."""
    rows = [
        (
            name,
            f"{score['value']:.4f}",
            "" if score["low"] is None else f"[{score['low']:.4f}, {score['high']:.4f}]",
        )
        for name, score in found["scores"].items()
    ]
    who = found["target"] + (f", stage {found['stage']}" if found["stage"] else "")
    who += ", without its adapter" if found["base"] else ""
    lines = [f"{who}: {found['rows']:,} rows", *(f"note: {note}" for note in found["notes"])]
    if found["learnt"]:
        lines.append(f"note: {found['learnt']}")
    lines.append(table(("metric", "mean", "95 % interval"), rows))
    if found["output"]:
        lines.append(f"rows: {found['output']}")
    return "\n".join(lines)

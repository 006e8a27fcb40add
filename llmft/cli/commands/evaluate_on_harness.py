"""`llmft evaluate RUN|MODEL --lm-eval TASKS`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import RecipeError
from llmft.cli.commands.evaluate import progress
from llmft.cli.commands.output import table
from llmft.system import fsio
from llmft.system.quiet import before_upstream, captured_output

if TYPE_CHECKING:
    from llmft.inference.evaluating import Asked


def evaluated_on_harness(
    asked: Asked,
    tasks: str,
    num_fewshot: int | None,
    include_path: str | None,
    output: str | None,
    *,
    apply_chat_template: bool,
) -> dict[str, Any]:
    """Return what tasks of lm-evaluation-harness find of a run, its base, or a model.

    tasks: their names, between commas. output: a file for a line of each document; RecipeError
    (E090) where it is there already, or data or metrics are named too.
    """
    from llmft.evaluation.harness import Harness

    beside = {"--data": asked.data, "--metrics": asked.metrics, "--split": asked.split,
              "--max-new-tokens": asked.max_new_tokens}  # fmt: skip
    for option, given in beside.items():
        if given:
            what = f"{option} has no effect on tasks of lm-evaluation-harness, which have their own"
            raise RecipeError("E090", what, fix="leave it out, or --lm-eval")
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if not names:
        raise RecipeError("E090", "--lm-eval names no task", fix="such as --lm-eval arc_easy,piqa")
    if output is not None:
        fsio.refuse_overwriting(Path(output))
    tell = progress()
    before_upstream()
    harness = Harness(
        names, num_fewshot, asked.limit, apply_chat_template, include_path=include_path
    )
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.inference.on_harness import on_harness, scores_of

        found = on_harness(asked, harness, lambda *counts: tell("lm_eval", *counts))
    measured = found.measured
    if output is not None:
        fsio.write_new_jsonl(Path(output), measured.rows)
    return {
        "target": asked.target,
        "stage": found.stage,
        "base": asked.base,
        "tasks": list(names),
        "scores": scores_of(found),
        "remarks": list(measured.remarks),
        "asked": measured.asked,
        "kept": measured.kept,
        "results": measured.results,
        "output": output,
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the scores as a table, with standard errors and intervals."""
    rows = [
        (
            name,
            f"{score['value']:.4f}",
            "" if score["stderr"] is None else f"{score['stderr']:.4f}",
            "" if score["low"] is None else f"[{score['low']:.4f}, {score['high']:.4f}]",
            f"{score['n']:,}",
        )
        for name, score in found["scores"].items()
    ]
    who = found["target"] + (f", stage {found['stage']}" if found["stage"] else "")
    who += ", without its adapter" if found["base"] else ""
    version = found["results"]["lm_eval_version"]
    lines = [
        f"{who}: tasks of lm-evaluation-harness {version}",
        table(("metric", "value", "stderr", "95 % interval", "documents"), rows),
        f"requests: {found['asked']:,} asked, {found['kept']:,} kept from before",
        *(f"note: {remark}" for remark in found["remarks"]),
    ]
    if found["output"]:
        lines.append(f"rows: {found['output']}")
    return "\n".join(lines)

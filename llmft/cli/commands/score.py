"""`llmft score RUN FILE`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llmft.api.shown_text import escaped_in_json
from llmft.registry.registry import Registry
from llmft.system.fsio import refuse_overwriting, write_new_jsonl
from llmft.system.quiet import captured_output


def scores(
    run: str, file: str, stage: str | None, output: str | None = None, step: int | None = None
) -> list[dict[str, Any]]:
    """Return each record of a file with its rewards by a run's reward model.

    output: where they are to be written; RecipeError where that is there already. step: of the
    checkpoint after so many steps.
    """
    if output is not None:
        refuse_overwriting(Path(output))
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.inference.answering import load_run
        from llmft.inference.scoring import score_file

        job = load_run(Path(run), Registry.discover())
        return score_file(job, Path(run), Path(file), stage=stage, step=step)


def as_text(found: list[dict[str, Any]], output: str | None) -> str:
    """Return the records as lines of JSON; or write them to a file, and return what was done."""
    if output is None:
        return "\n".join(
            escaped_in_json(json.dumps(record, ensure_ascii=False)) for record in found
        )
    write_new_jsonl(Path(output), found)
    return f"{len(found)} records with their scores are in '{output}'"

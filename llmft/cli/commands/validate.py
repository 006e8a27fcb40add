"""`llmft validate RECIPE...`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmft.api.errors import Fault, LlmftError
from llmft.cli.commands import shipped
from llmft.cli.commands.output import prose
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.system.quiet import captured_output


def check(recipes: Sequence[str], overrides: Sequence[str], *, model: bool) -> list[dict[str, Any]]:
    """Return a row for each recipe, all of them good; raise one error with all faults otherwise.

    The first rows of local files are read. model: hold each recipe against its model's config and
    modules too, and read and encode all rows, those of the hub too; this imports torch.
    """
    registry = Registry.discover()
    good: list[dict[str, Any]] = []
    errors: list[LlmftError] = []
    for name in recipes:
        try:
            good.append(_checked(name, registry, overrides, model))
        except LlmftError as error:
            errors.append(error)
    if errors:
        faults: list[Fault] = [fault for error in errors for fault in error.faults]
        raise type(errors[0]).of(faults)
    return good


def _checked(
    name: str, registry: Registry, overrides: Sequence[str], model: bool
) -> dict[str, Any]:
    path = shipped.find(name)
    job = load_recipe(path, registry, overrides)
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of the answer
        from llmft.engine.preflight import refuse_faults

        base = None
        if model:
            from llmft.modeling.base_model import BaseModel

            base = BaseModel(job.recipe.model)
        refuse_faults(job, base)
        remarks: Mapping[str, Sequence[str]] = {}
        if base is not None:
            from llmft.engine.preview import refuse_rows

            remarks = refuse_rows(job, base)
        told = job.code_remarks()
    stages = [
        {
            "name": stage.name,
            "adapter": stage.adapter.method if stage.adapter else None,
            "alignment": stage.alignment.method if stage.alignment else None,
            "task": stage.task.method if stage.task else None,
            "data": stage.data.method if stage.data else None,
            "remarks": list(remarks.get(stage.name, ())),
        }
        for stage in job.recipe.stages
    ]
    return {"file": str(path), "name": job.recipe.name, "stages": stages, "remarks": told}


def as_text(checked: list[dict[str, Any]]) -> str:
    """Return a line for each recipe, and one for each remark on its rows."""
    lines = []
    for row in checked:
        lines.append(f"{row['file']}: ok ({_stages(row['stages'])})")
        lines += [f"  {remark}" for remark in row["remarks"]]
        for stage in row["stages"]:
            lines += [f"  {stage['name']}: {remark}" for remark in stage["remarks"]]
    return prose("\n".join(lines))


def _stages(stages: list[dict[str, Any]]) -> str:
    return "; ".join(_stage(stage) for stage in stages)


def _stage(stage: dict[str, Any]) -> str:
    said = stage["task"] or f"{stage['adapter'] or 'as before'} x {stage['alignment']}"
    return f"{stage['name']}: {said}" + (f" on {stage['data']}" if stage["data"] else "")

"""`llmft merge RUN --output DIR`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmft.api.errors import RecipeError
from llmft.system.quiet import captured_output

_SIZE = "a number with MB or GB, such as 5GB"


def merged(
    run: str, output: str, stage: str | None, dtype: str | None, max_shard_size: str
) -> dict[str, Any]:
    """Return what was written where, and how far the merged model is from the run's."""
    size = max_shard_size.upper()
    if size[-2:] not in ("MB", "GB") or not size[:-2].isdecimal() or not int(size[:-2]):
        what = f"--max-shard-size is '{max_shard_size}', and {_SIZE} is wanted"
        raise RecipeError("E090", what)
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.exporting.merging import merge, refuse_existing
        from llmft.inference.trained import trained_stage

        refuse_existing(Path(output))
        trained = trained_stage(Path(run), stage, fix="name a run that trained a policy")
        made = merge(trained, Path(output), dtype=dtype, max_shard_size=size)
    return {
        "folder": str(made.folder),
        "stage": made.stage,
        "dtype": made.dtype,
        "base_was_quantised": made.unquantised,
        "error": asdict(made.error),
        "bytes": sum(made.files.values()),
        "files": made.files,
        "told": str(made.error),
    }


def as_text(made: dict[str, Any]) -> str:
    """Return what was made as a few lines."""
    shards = sum(name.endswith(".safetensors") for name in made["files"])
    lines = [
        f"merged '{made['stage']}' into {made['folder']}: {made['bytes'] / 1e6:,.1f} MB of"
        f" {made['dtype']} in {shards} file{'s' if shards > 1 else ''}",
        f"against the run's own model, {made['told']}",
    ]
    if made["base_was_quantised"]:
        lines.append(
            "the base was quantised in training; merged is the full-precision one, so that error"
            " is mostly the quantisation's"
        )
    return "\n".join(lines)

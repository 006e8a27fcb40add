"""`llmft export RUN --to KIND`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from llmft.api.errors import RecipeError
from llmft.system.quiet import captured_output


def exported(
    run: str,
    to: Literal["peft", "hf", "vllm", "mlx", "gguf", "ollama"],
    output: str,
    stage: str | None,
    llama_cpp: str | None = None,
    quantization: str | None = None,
) -> dict[str, Any]:
    """Return what was written where, and what to type to use it.

    llama_cpp, quantization: for gguf and ollama; RecipeError (E090) where they are for another.
    """
    for option, given in (("--llama-cpp", llama_cpp), ("--quantization", quantization)):
        if given is not None and to not in ("gguf", "ollama"):
            what = f"{option} is for --to gguf and --to ollama, and not for --to {to}"
            raise RecipeError("E090", what, fix="leave it out")
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.exporting.folders import LlamaCpp, export
        from llmft.exporting.merging import refuse_existing
        from llmft.inference.trained import trained_stage

        refuse_existing(Path(output))
        trained = trained_stage(Path(run), stage, fix="name a run that trained a policy")
        asked = LlamaCpp(Path(llama_cpp) if llama_cpp else None, quantization)
        made = export(trained, to, Path(output), asked)
    return {
        "folder": str(made.folder),
        "to": to,
        "command": made.command,
        "notes": list(made.notes),
        "error": asdict(made.error) if made.error else None,
    }


def as_text(made: dict[str, Any]) -> str:
    """Return what was made as a few lines."""
    lines = [f"exported for {made['to']}: {made['folder']}"]
    lines += [f"note: {note}" for note in made["notes"]]
    if made["error"]:
        lines.append(f"merging moved a log-probability by {made['error']['max_logp']:.2e} at most")
    return "\n".join([*lines, f"use it: {made['command']}"])

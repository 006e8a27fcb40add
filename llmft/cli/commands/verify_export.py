"""`llmft verify export RUN TARGET`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft.api.errors import CheckpointError, EnvironmentFault, RecipeError
from llmft.cli.commands.endpoint_client import client_for
from llmft.cli.commands.output import printable, table
from llmft.system.quiet import captured_output

if TYPE_CHECKING:
    from llmft.verifying.export import Verdict

_SHOWN = 5


def verify(
    run: str,
    target: str,
    stage: str | None,
    prompts: int,
    max_new_tokens: int,
    tolerance: float | None,
    model: str | None,
    timeout: float | None = None,
) -> Verdict:
    """Return the verdict on an exported folder, a GGUF file, or a running endpoint by its URL.

    timeout: seconds of waiting for an endpoint, all its answers together.
    Raises CheckpointError (E407) where it does not answer as the run does, EnvironmentFault (E213)
    where an endpoint cannot be asked, or not all of it in time.
    """
    client = None
    if target.lower().startswith(("http://", "https://")):
        client = client_for(target)
    else:
        for option, given in (("--model", model), ("--timeout", timeout)):
            if given is not None:
                what = f"{option} is for an endpoint, and the target is no URL"
                raise RecipeError("E090", what, fix="leave it out")
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of an answer
        from llmft.inference.trained import trained_stage
        from llmft.verifying.endpoint import TIMEOUT, verify_endpoint
        from llmft.verifying.export import verify_export
        from llmft.verifying.gguf import gguf_file, verify_gguf

        trained = trained_stage(Path(run), stage, fix="name a run that trained a policy")
        sizes: Any = {
            "prompts": prompts, "max_new_tokens": max_new_tokens, "tolerance": tolerance,
        }  # fmt: skip
        if client is not None:
            seconds = TIMEOUT if timeout is None else timeout
            verdict = verify_endpoint(
                trained, client, model=model, timeout_seconds=seconds, **sizes
            )
        elif file := gguf_file(Path(target)):
            verdict = verify_gguf(trained, file, **sizes)
        else:
            verdict = verify_export(trained, Path(target), **sizes)
    if not verdict.fine:
        print(printable(as_text(verdict)), file=sys.stderr)
        raise CheckpointError(
            "E407",
            f"'{target}' does not answer as the run does: {'; '.join(verdict.causes)}",
            fix="docs/after-training.md says what to do about each cause",
        )
    if verdict.unfinished:
        print(printable(as_text(verdict)), file=sys.stderr)
        raise EnvironmentFault(
            "E213",
            f"'{target}' was not compared whole in {seconds:g} seconds of waiting:"
            f" {verdict.unfinished}; so far it answers as the run does",
            fix="ask less (--prompts, --max-new-tokens), or wait longer: --timeout SECONDS",
        )
    return verdict


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain data."""
    return {
        "same": verdict.fine,
        "checks": [asdict(check) for check in verdict.checks],
        "partings": [asdict(part) for part in verdict.partings],
        "causes": list(verdict.causes),
        "distance": asdict(verdict.distance),
        "how": list(verdict.how),
    }


def _line(text: str) -> str:
    """Return a text on one line: where two part, a new line is a difference, too."""
    return text.replace("\n", "\\n")


def as_text(verdict: Verdict) -> str:
    """Return the verdict as a table, where the two part, and a sentence."""
    rows = [
        (c.what, c.compared, c.found, c.allowed, "as the run" if c.fine else "DIFFERS")
        for c in verdict.checks
    ]
    parts = ["\n".join(verdict.how)] if verdict.how else []
    parts += [table(("what", "compared", "found", "allowed", "verdict"), rows)]
    for part in verdict.partings[:_SHOWN]:
        parts.append(
            f"prompt {part.prompt + 1}: {part.what}\n  run:    {_line(part.run)}\n"
            f"  target: {_line(part.target)}"
        )
    if more := len(verdict.partings) - _SHOWN:
        parts += [f"and {more} more"] if more > 0 else []
    endpoint = any(line.startswith("asked ") for line in verdict.how)
    what = "the endpoint" if endpoint else "what was exported"
    if not verdict.fine:
        parts.append(f"not the same: {'; '.join(verdict.causes)}")
    elif not verdict.unfinished:
        parts.append(f"the same: {what} answers as the run does")
    if verdict.unfinished:
        parts.append(f"unfinished, as the time was up: {verdict.unfinished}")
    return "\n\n".join(parts)

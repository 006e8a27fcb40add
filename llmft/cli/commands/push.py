"""`llmft push RUN`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api.errors import RecipeError
from llmft.api.push_settings import PushToHub
from llmft.cli.commands.output import printable
from llmft.hub import upload
from llmft.inference.answering import load_run
from llmft.registry.registry import Registry
from llmft.system import hub_client
from llmft.system.quiet import captured_output


@dataclass(frozen=True)
class Asked:
    """What the command line says; what it leaves out is as the run's recipe has it.

    merged: the whole model; gguf: the whole model for llama.cpp, of this type. llama_cpp: the
    folder of its programs. timeout: of the upload, in seconds.
    """

    stage: str | None = None
    repo_id: str | None = None
    public: bool = False
    merged: bool = False
    gguf: str | None = None
    llama_cpp: str | None = None
    timeout: float | None = None


def pushed(run: str, options: Asked) -> dict[str, Any]:
    """Return where what a finished stage made was sent."""
    _refuse_mixed(options)
    folder = Path(run)
    job = load_run(folder, Registry.discover())
    recipe = job.recipe
    told = recipe.push_to_hub.model_dump() if recipe.push_to_hub else {}
    told |= {"stage": options.stage} if options.stage else {}
    told |= {"private": False} if options.public else {}
    told |= {"repo_id": options.repo_id} if options.repo_id else {}
    told |= {"timeout_seconds": options.timeout} if options.timeout else {}
    if "repo_id" not in told:
        fix = "add --repo-id my-name/my-adapter"
        raise RecipeError("E090", "the run's recipe has no push_to_hub to say where to", fix=fix)
    try:
        asked = PushToHub.model_validate(told)
    except ValueError as error:
        what = f"'{options.repo_id}' or '{options.stage}' cannot be the name of a repository or a"
        raise RecipeError(
            "E090", f"{what} stage", fix="write --repo-id my-name/my-adapter"
        ) from error
    stage = recipe.sent_stage(asked)
    what = "merged" if options.merged else f"as GGUF ({options.gguf})" if options.gguf else ""
    seen = "private" if asked.private else "public"
    print(
        printable(
            f"sending '{stage}'{what and f', {what},'} to the hub at {hub_client.host()}:"
            f" {asked.repo_id} ({seen})"
        ),
        file=sys.stderr, flush=True,
    )  # fmt: skip
    with captured_output(Path(os.devnull)):  # the client's chatter is no part of the answer
        if not what:
            sent: dict[str, Any] = {"url": upload.push(job, folder, asked)}
        else:
            sent = _model(folder, asked, stage, options)
    return sent | {"repo_id": asked.repo_id, "run": str(folder)}


def _refuse_mixed(options: Asked) -> None:
    if options.merged and options.gguf:
        what = "--merged and --gguf are two models, and a repository holds one"
        raise RecipeError("E090", what, fix="push twice, each with a --repo-id of its own")
    if (options.merged or options.gguf) and not options.repo_id:
        what = "the recipe's repository is for the adapter, which a whole model would lie beside"
        raise RecipeError("E090", what, fix="add --repo-id my-name/my-model")
    if options.llama_cpp and not options.gguf:
        what = "--llama-cpp is for --gguf"
        raise RecipeError("E090", what, fix="leave it out, or add --gguf Q4_K_M")


def _model(run: Path, asked: PushToHub, stage: str, options: Asked) -> dict[str, Any]:
    """Send the whole model of a stage, and return where it is and how exact merging was."""
    from llmft.exporting.folders import LlamaCpp
    from llmft.exporting.pushing import push_model
    from llmft.inference.trained import trained_stage

    upload.refuse_no_login()  # before the base is hashed, which takes its time
    trained = trained_stage(run, stage, fix="name a stage that trained a policy: --stage")
    folder = Path(options.llama_cpp) if options.llama_cpp else None
    tools = LlamaCpp(folder, options.gguf) if options.gguf else None
    sent = push_model(trained, asked, tools)
    return {
        "url": sent.url,
        "notes": list(sent.notes),
        "merging": str(sent.error) if sent.error else "",
    }


def as_text(sent: dict[str, Any]) -> str:
    """Return the answer as a few lines."""
    lines = [f"sent to the hub: {sent['url']}"]
    lines += [f"note: {note}" for note in sent.get("notes", [])]
    if sent.get("merging"):
        lines.append(f"merged, against the run's own model, {sent['merging']}")
    return "\n".join(lines)

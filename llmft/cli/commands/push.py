"""`llmft push RUN`."""

from __future__ import annotations

import os
from pathlib import Path

from llmft.api.errors import RecipeError
from llmft.api.push_settings import PushToHub
from llmft.hub import upload
from llmft.inference.answering import load_run
from llmft.registry.registry import Registry
from llmft.system.quiet import captured_output


def pushed(run: str, stage: str | None, repo_id: str | None, *, public: bool) -> dict[str, str]:
    """Return where a finished stage's adapter was sent; what is not given is as the recipe says."""
    folder = Path(run)
    job = load_run(folder, Registry.discover())
    recipe = job.recipe
    told = recipe.push_to_hub.model_dump() if recipe.push_to_hub else {}
    told |= {"stage": stage} if stage else {}
    told |= {"private": False} if public else {}
    told |= {"repo_id": repo_id} if repo_id else {}
    if "repo_id" not in told:
        fix = "add --repo-id my-name/my-adapter"
        raise RecipeError("E090", "the run's recipe has no push_to_hub to say where to", fix=fix)
    try:
        asked = PushToHub.model_validate(told)
    except ValueError as error:
        what = f"'{repo_id}' or '{stage}' cannot be the name of a repository or a stage"
        raise RecipeError("E090", what, fix="write --repo-id my-name/my-adapter") from error
    with captured_output(Path(os.devnull)):  # the client's chatter is no part of the answer
        address = upload.push(job, folder, asked)
    return {"url": address, "repo_id": asked.repo_id, "run": str(folder)}


def as_text(sent: dict[str, str]) -> str:
    """Return the answer as a line."""
    return f"sent to the hub: {sent['url']}"

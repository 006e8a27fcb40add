"""What a run takes from the hub and sends there: told before it starts, and written down."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from llmft.api.model_settings import is_template
from llmft.hub.model_card import is_hub_id
from llmft.modeling import peft_folder
from llmft.recipes.other_models import other_models
from llmft.recipes.recipe import Recipe
from llmft.recipes.sources import data_blocks
from llmft.system import hub_client
from llmft.system.hub_commits import is_commit, known

_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz")


def remarks(recipe: Recipe) -> list[str]:
    """Return what a person should know of the hub before a run starts."""
    told = [
        f"{kind} '{name}' has no commit as its revision, so it may change; lock.json records the"
        " commit that was used"
        for kind, name, revision in names(recipe)
        if not is_commit(revision)
    ]
    if asked := recipe.push_to_hub:
        seen = "private" if asked.private else "public"
        stage = recipe.sent_stage(asked)
        told.append(
            f"after the run, '{stage}' is uploaded to the hub: {asked.repo_id} ({seen}),"
            f" at {hub_client.host()}"
        )
    return told


def commits(recipe: Recipe) -> list[dict[str, str | None]]:
    """Return the commit of everything that the run took from the hub; None where unknown."""
    return [
        {"kind": kind, "name": name, "revision": revision, "commit": known((kind, name, revision))}
        for kind, name, revision in names(recipe)
    ]


def names(recipe: Recipe) -> Iterator[tuple[str, str, str | None]]:
    """Yield the kind, name and revision of everything that a recipe takes from the hub."""
    if is_hub_id(recipe.model.path):
        yield "model", recipe.model.path, recipe.model.revision
    for other in (recipe.model.tokenizer, recipe.model.chat_template):
        if other and not is_template(other) and is_hub_id(other):
            yield "model", other, None
    told = {(recipe.model.path, recipe.model.revision)}
    for _, another in other_models(recipe):
        which = (another.path, another.revision)
        if is_hub_id(another.path) and which not in told:
            told.add(which)
            yield "model", *which
    for stage in recipe.stages:
        if (asked := stage.peft_start) is not None and not peft_folder.is_local(asked):
            yield "model", *peft_folder.name_and_revision(asked)
    seen = set()
    blocks = [data_blocks(stage.data) for stage in recipe.stages if stage.data]
    for _, block in chain(*blocks):
        path = getattr(block, "path", None)
        revision = getattr(block, "revision", None)
        if not isinstance(path, str) or path.endswith(_FILES) or (path, revision) in seen:
            continue
        if "/" in path and is_hub_id(path):
            seen.add((path, revision))
            yield "dataset", path, revision

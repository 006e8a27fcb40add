"""`llmft merge`: a complete model folder, the adapter's change written into the base's weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmft.api import Adapter
from llmft.api.errors import CheckpointError, RecipeError
from llmft.exporting import probes
from llmft.exporting.probes import Distance
from llmft.hub.model_card import merged_card
from llmft.inference.trained import TrainedStage
from llmft.modeling.base_model import BaseModel, refuse_not_finite
from llmft.modeling.stored_dtype import said_dtype
from llmft.registry.return_checks import violation
from llmft.runs.upstream import load_options, merged_stages, stage_model
from llmft.runs.upstream import merged as with_merged
from llmft.system import fsio

TOLERANCE = 1e-3
"""The most by which a merge in float32 may move a log-probability, in nats."""


@dataclass(frozen=True)
class Merged:
    """A merged model. error: how far its answers are from the run's; files: names and bytes.

    card: gives its card as a repository of the hub has it, by the repository's name.
    """

    folder: Path
    stage: str
    dtype: str
    error: Distance
    files: dict[str, int]
    card: Callable[[str], str]
    unquantised: bool = False


def merge(
    trained: TrainedStage,
    output: Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> Merged:
    """Write a complete model folder that plain transformers loads, and return how exact it is.

    The base is loaded once and its layers are changed one after another, so that no more memory is
    taken than for the base, its adapter and one layer. A base that was quantised in training is
    loaded whole for this, in `dtype`.

    dtype: of the weights that are written; default: as the base's own files have it. config: what
    is written as config.json, of what transformers writes.
    Raises RecipeError where the output is there already or the adapter cannot be merged, and
    CheckpointError (E407) where a merge in float32 gives other answers.
    """
    adapter = mergeable_adapter(trained)
    refuse_existing(output)
    source = trained.base.source
    dtype = dtype or stored_dtype(trained.base)
    quantised = bool(load_options(trained.job.recipe, adapter))
    rows, before = probes.probe_rows(trained), None
    if quantised or dtype != source.dtype:  # what was trained computes otherwise
        before = probes.next_tokens(trained.model(), rows)
    base = BaseModel(source.model_copy(update={"dtype": dtype}))
    plain = base.load({}, varlen=False)
    refuse_not_finite(plain, base.source)
    plain = with_merged(plain, merged_stages(trained.bound, trained.run))
    model = stage_model(trained.bound, plain, trained.adapter_folder).requires_grad_(False).eval()
    before = before or probes.next_tokens(model, rows)
    merged = adapter.merge(model)
    del model, plain
    if not callable(getattr(merged, "save_pretrained", None)):
        raise violation(adapter, "'merge' returns no model that can be saved")
    merged.requires_grad_(False).eval()
    error = probes.distance(before, probes.next_tokens(merged, rows))
    if not quantised and (dtype, source.dtype) == ("float32",) * 2 and error.max_logp > TOLERANCE:
        raise CheckpointError(
            "E407",
            f"the merged model does not answer as the run does: {error}",
            fix="report it, with the recipe; use the adapter with its base: llmft export RUN"
            " --to peft",
        )

    def card(repo_id: str = "") -> str:
        return merged_card(
            trained.job.recipe,
            trained.bound.spec,
            adapter.method,
            trained.result,
            trained.lock,
            dtype=dtype,
            error=_told(error, quantised),
            repo_id=repo_id,
        )

    with fsio.staged_folder(output, trained.run.name) as staged:
        _save(merged, staged, max_shard_size)
        written = fsio.read_json(staged / "config.json", "merge again")
        if (told := config(written)) != written:
            text = json.dumps(told, indent=2, sort_keys=True)
            (staged / "config.json").write_text(f"{text}\n", "utf-8")
        trained.base.tokenizer.save_pretrained(staged)
        (staged / "README.md").write_text(card(), "utf-8")
    files = {p.name: p.stat().st_size for p in sorted(output.iterdir()) if p.is_file()}
    return Merged(output, trained.folder.name, dtype, error, files, card, quantised)


def mergeable_adapter(trained: TrainedStage) -> Adapter[Any]:
    """Return the stage's adapter; raise RecipeError (E090) where it cannot be merged."""
    adapter = trained.bound.model_adapter
    if adapter is None:
        what = f"stage '{trained.folder.name}' trained no adapter that could be merged"
        raise RecipeError("E090", what, fix="name a stage that trains an adapter: --stage")
    if not adapter.mergeable:
        why = "the adapter's change is no change of the base's weights"
        if adapter.virtual_tokens():
            why = "a soft prompt stands in front of every text, and is no change of the weights"
        peft = (trained.adapter_folder / "adapter_config.json").is_file()
        peft = peft and not trained.bound.stands_on  # a base of its own, which no hub has
        raise RecipeError(
            "E090",
            f"'{adapter.method}' cannot be merged: {why}",
            fix="use the adapter's folder with its base: llmft export RUN --to peft --output DIR"
            if peft
            else "use the run itself: llmft generate RUN, llmft chat RUN, llmft serve RUN",
        )
    return adapter


def refuse_existing(output: Path) -> None:
    """Raise RecipeError (E090) where something has the name of the folder that is to be made."""
    if os.path.lexists(output):
        what = f"'{output}' is there already, and is not overwritten"
        raise RecipeError("E090", what, fix="give another --output, or move it away")


def stored_dtype(base: BaseModel) -> str:
    """Return the data type of the base's own files, else the one that the recipe loads it in."""
    return said_dtype(base.config) or base.source.dtype


def _save(model: Any, folder: Path, max_shard_size: str) -> None:
    """Write the weights, config.json and generation_config.json.

    transformers refuses to write some generation configs that it has read: those are written as
    they were.
    """
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig()
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        model.generation_config = settings
        text = json.dumps(settings.to_diff_dict(), indent=2, sort_keys=True)
        (folder / "generation_config.json").write_text(text + "\n", "utf-8")
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size)


def _told(error: Distance, quantised: bool) -> str:
    why = " The base was quantised in training and is not here." if quantised else ""
    return f"Against the run's own model: {error}.{why}"

"""What upstream stages made, and how a stage's model is put together on a base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.api import Adapter, Alignment, Dataset
from llmft.api.errors import CheckpointError
from llmft.modeling import peft_folder
from llmft.recipes.binding import MODELS
from llmft.recipes.job import BoundStage, Job, Upstream
from llmft.recipes.recipe import Recipe
from llmft.recipes.references import stage_references
from llmft.registry.return_checks import model_of
from llmft.runs import artifacts
from llmft.system import fsio
from llmft.system.plain_files import NOT_OURS, refuse_links_below


def upstream_folder(upstream: Upstream, this_run: Path) -> Path:
    """Return the folder of the finished stage that a reference names.

    Raises CheckpointError where it is not there, is not finished or is damaged, and TrustError
    where a link stands in another run's folder.
    """
    name = upstream.target.rpartition("/")[2]
    if upstream.run is None and upstream.error is not None:
        raise upstream.error
    if upstream.run is not None:
        refuse_links_below(upstream.run, NOT_OURS)
    return artifacts.verify_as_read(artifacts.stage_folder(upstream.run or this_run, name))


def dataset_in(bound: BoundStage, run: Path) -> Dataset[Any] | None:
    """Return a stage's data set, which now knows the folders of the stages it reads."""
    whole = bound.dataset
    for dataset in (whole, *whole.sources) if whole is not None else ():
        dataset.upstream = {
            name: upstream_folder(bound.upstream[target], run)
            for name, target in stage_references(dataset.config).items()
        }
    return whole


def refuse_other_bases(job: Job, provenance: Mapping[str, Any]) -> None:
    """Raise CheckpointError where an adapter of another run was made on other weights.

    provenance: of this run, as in its lock.
    """
    for stage in job.stages:
        for upstream in stage.upstream.values():
            if upstream.run is None or upstream.produces not in MODELS:
                continue
            theirs = fsio.read_json(upstream.run / "lock.json", artifacts.PUT_BACK)["model"]
            if _weights(theirs) != _weights(provenance["model"]):
                raise CheckpointError(
                    "E405",
                    f"'{upstream.target}' was made on another base model, '{theirs['path']}'",
                    fix="use that model's path in the recipe, or name a stage that was made on"
                    " this",
                )
            added = theirs.get("new_tokens", [])  # runs of an earlier version have none
            if added != provenance["model"]["new_tokens"]:
                shown = f"the tokens {', '.join(map(repr, added))}" if added else "no tokens"
                raise CheckpointError(
                    "E405",
                    f"'{upstream.target}' was made with {shown} added to the tokenizer",
                    fix="write the same model.add_tokens and model.add_special_tokens here",
                )
            if theirs.get("rope_scaling") != provenance["model"].get("rope_scaling"):
                raise CheckpointError(
                    "E405",
                    f"'{upstream.target}' was made with other positions of the base",
                    fix="write the same model.rope_scaling here",
                )


def _weights(model: Mapping[str, Any]) -> Any:
    """Return the hashes of a local model's weights; the name of one from the hub."""
    hashes = {name: h for name, h in model["sha256"].items() if name.endswith(".safetensors")}
    return hashes or model["path"]


def load_options(recipe: Recipe, adapter: Adapter[Any] | None) -> dict[str, Any]:
    """Return how the base is quantised, in BitsAndBytesConfig's names; empty where it is not.

    Where the adapter brings its own and the recipe asks too, the two were found to agree.
    """
    own = dict(adapter.load_options()) if adapter else {}
    return recipe.model.quantization.options() or own


def twin(model: Any) -> Any:
    """Return a copy of a model's modules that holds the very same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for theirs, own in zip(model.modules(), made.modules(), strict=True):
        if theirs._compiled_call_impl is not None:  # which a copy does not take along
            own.compile(dynamic=True)
    return made


def share_frozen(model: Any, other: Any) -> None:
    """Let a model hold, of what another one does not train, the very same tensors.

    Both are the same base; what is shared need not be twice in memory.
    """
    theirs = dict(other.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        found = theirs.get(name)
        for key, parameter in getattr(found, "_parameters", {}).items():
            if parameter is not None and not parameter.requires_grad:
                module._parameters[key] = parameter


def merged_stages(bound: BoundStage, run: Path) -> list[tuple[BoundStage, Path]]:
    """Return the stages whose result a stage's adapter stands on, the first one first.

    Each comes with its folder. Empty: the adapter stands on the base alone. run: the folder of the
    stage's own run. Raises the error of a stage of another run that cannot be read.
    """
    start = bound.start
    if start is None:
        return []
    if start.stage is None:
        raise start.error or KeyError(start.target)
    below = merged_stages(start.stage, start.run or run)
    if bound.spec.merges_start:
        below.append((start.stage, upstream_folder(start, run)))
    return below


def merged(base: Any, stages: list[tuple[BoundStage, Path]]) -> Any:
    """Return a base, frozen, with what each of the stages trained written into its weights."""
    for bound, folder in stages:
        adapter = bound.model_adapter
        assert adapter is not None  # a task makes no policy
        model = stage_model(bound, base, folder / artifacts.ADAPTER)
        base = model_of(adapter, "merge", adapter.merge(model))
        base.requires_grad_(False)
    return base


def start_adapter(bound: BoundStage, run: Path) -> Path | None:
    """Return the folder of the adapter that a stage goes on with; None: it begins afresh.

    run: the folder of the stage's own run.
    """
    if (asked := bound.spec.peft_start) is not None:
        return peft_folder.locate(asked)
    start = bound.continued
    return upstream_folder(start, run) / artifacts.ADAPTER if start else None


def stage_model(bound: BoundStage, base: Any, saved: Path | None, *, whole: bool = False) -> Any:
    """Return a base model with a stage's adapter: fresh, or as it is saved in an adapter's folder.

    base: with what the stage stands on merged into it already; see `merged_stages`.
    whole: with what the stage's alignment added too (a reward model's head), frozen, in evaluation
    mode.
    """
    adapter = bound.model_adapter
    if adapter is None:
        return base
    if saved is None:
        return model_of(adapter, "attach", adapter.attach(base))
    model = model_of(adapter, "load", adapter.load(base, saved))
    if whole:
        assert isinstance(bound.work, Alignment)  # a task makes no model
        bound.work.load(model, saved)
        model.requires_grad_(False).eval()
    return model

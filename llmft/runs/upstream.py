"""What earlier stages made, and how a later one takes it up on the same base weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmft.api import Adapter, Alignment, Dataset, Task
from llmft.api.errors import CheckpointError
from llmft.recipes.load import load_recipe
from llmft.recipes.recipe import Recipe, Stage
from llmft.recipes.references import ANOTHER_RUN, references, stage_references
from llmft.registry.registry import Registry
from llmft.runs import artifacts
from llmft.system import fsio
from llmft.system.plain_files import NOT_OURS, refuse_links_below


def stage_adapter(recipe: Recipe, stage: Stage, registry: Registry) -> Any:
    """Return the adapter of a stage: its own, or that of the stage it starts from; None without."""
    while stage.adapter is None:
        reference = stage.start_from
        if reference is None and stage.task is not None:
            return None
        assert reference is not None  # checked when the recipe was loaded
        name = reference
        if reference.startswith(ANOTHER_RUN):
            folder = upstream_stage(reference, Path(), recipe)
            recipe = load_recipe(folder.parent.parent / "resolved.yaml", registry).recipe
            name = folder.name
        stage = recipe.stage(name)
    made: Adapter[Any] = registry.method("adapter", stage.adapter.method)(stage.adapter)
    return made


def stage_work(stage: Stage, registry: Registry) -> Alignment[Any] | Task[Any]:
    """Return what a stage does: its alignment or its task."""
    made: Alignment[Any] | Task[Any]
    made = registry.method(stage.work_kind, stage.work.method)(stage.work)
    return made


def stage_dataset(recipe: Recipe, stage: Stage, registry: Registry, run: Path | None) -> Any:
    """Return a stage's data set, which knows the folders of the stages it reads; None without.

    run: the folder of the stage's run; None before it has one.
    """
    if stage.data is None:
        return None
    made: Dataset[Any] = registry.method("dataset", stage.data.method)(stage.data)
    named = stage_references(stage.data) if run else {}
    made.upstream = {
        name: upstream_stage(target, run or Path(), recipe) for name, target in named.items()
    }
    return made


def upstream_stage(reference: str, this_run: Path, recipe: Recipe) -> Path:
    """Return the folder of the finished stage that a reference names.

    reference: a stage of this run, or run:<id>/<stage> for one of a run under the same output_dir.
    """
    if not reference.startswith(ANOTHER_RUN):
        return artifacts.verify_as_read(artifacts.stage_folder(this_run, reference))
    run_id, _, stage = reference.removeprefix(ANOTHER_RUN).partition("/")
    found = sorted(Path(recipe.output_dir).glob(f"*/{run_id}"))
    if not found:
        raise CheckpointError(
            "E402",
            f"there is no run '{run_id}' under '{recipe.output_dir}'",
            fix="give the name of a run's folder, as 'llmft run' printed it",
        )
    refuse_links_below(found[0], NOT_OURS)
    return artifacts.verify_as_read(artifacts.stage_folder(found[0], stage))


def refuse_other_bases(recipe: Recipe, provenance: Mapping[str, Any]) -> None:
    """Raise CheckpointError where an adapter of an earlier run was made on other weights.

    ground: what this run stands on, as in its lock.
    """
    for reference in references(recipe):
        if not reference.is_of_another_run or reference.produces not in MODELS:
            continue
        run = upstream_stage(reference.target, Path(), recipe).parent.parent
        theirs = fsio.read_json(run / "lock.json", artifacts.PUT_BACK)["model"]
        if _weights(theirs) != _weights(provenance["model"]):
            raise CheckpointError(
                "E405",
                f"'{reference.target}' was made on another base model, '{theirs['path']}'",
                fix="give that model's path in the recipe, or name a stage that was made on this",
            )


MODELS = ("policy", "reward_model")
"""What a stage produces that is an adapter on a base model."""


def _weights(model: Mapping[str, Any]) -> Any:
    """Return the hashes of a local model's weights; the name of one from the hub."""
    hashes = {name: h for name, h in model["sha256"].items() if name.endswith(".safetensors")}
    return hashes or model["path"]


def load_options(recipe: Recipe, adapter: Adapter[Any]) -> dict[str, Any]:
    """Return how the base is quantised, in BitsAndBytesConfig's names; empty where it is not.

    Where the adapter brings its own and the recipe asks too, the two were found to agree.
    """
    asked = recipe.model.quantization
    if asked.bits == 8:
        return {"load_in_8bit": True}
    if asked.bits == 4:
        return asked.model_dump(exclude={"load_in_8bit"})
    return dict(adapter.load_options()) if adapter else {}


def twin(model: Any) -> Any:
    """Return a copy of a model's modules that holds the very same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def load_stage(folder: Path, registry: Registry, base: Any) -> Any:
    """Return a base model with what a finished stage made attached, frozen, in evaluation mode."""
    recipe = load_recipe(folder.parent.parent / "resolved.yaml", registry).recipe
    stage = recipe.stage(folder.name)
    model = stage_adapter(recipe, stage, registry).load(base, folder / artifacts.ADAPTER)
    made_by = stage_work(stage, registry)
    assert isinstance(made_by, Alignment)  # a task makes no model
    made_by.load(model, folder / artifacts.ADAPTER)
    return model.requires_grad_(False).eval()

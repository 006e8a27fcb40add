"""What only the model or an earlier run can refuse: checked before a weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmft.api.errors import EnvironmentFault, Fault, TrustError
from llmft.api.settings import ModelSource
from llmft.modeling import base_model
from llmft.recipes.checks import difference
from llmft.recipes.load import Loaded
from llmft.recipes.references import references
from llmft.recipes.tree import KeyPath
from llmft.recipes.work import LOSS_METRICS
from llmft.registry.registry import Registry
from llmft.registry.return_checks import refusals_of, shown, violation
from llmft.runs import artifacts
from llmft.runs.upstream import load_options, stage_adapter, stage_work, upstream_stage
from llmft.system.quiet import before_upstream
from llmft.system.startup import without_collecting


def _keeps_rows_apart(source: ModelSource, model: Any) -> bool:
    if source.attn_implementation != "auto":
        return False
    return base_model.proven_levers(source, model.config).padding_free


@without_collecting()
def check_against_model(loaded: Loaded, registry: Registry) -> list[Fault]:
    """Return the faults of a recipe that show on its model's modules and sizes, or in other runs.

    Raises EnvironmentFault or TrustError where the model's configuration cannot be read, and
    CheckpointError where a stage of an earlier run is not there.
    """
    faults = [*_of_other_runs(loaded), *_other_adapters(loaded, registry)]
    before_upstream()
    recipe = loaded.written  # later rounds have the same settings
    try:
        model = base_model.empty_base(recipe.model)
    except (EnvironmentFault, TrustError) as error:
        at: KeyPath = ("model", "path")
        found = [loaded.fault(fault.code, at, fault.what, fault.fix) for fault in error.faults]
        raise type(error).of(found) from error
    positions = base_model.max_positions(model.config)
    for number, stage in enumerate(recipe.stages):
        asked = stage.train.max_length
        adapter = stage_adapter(recipe, stage, registry)
        virtual = adapter.virtual_tokens() if adapter else 0
        if not isinstance(virtual, int):
            raise violation(adapter, f"'virtual_tokens' returns {shown(virtual)}, not a number")
        left = positions - virtual if positions else None
        faults += _without_room(loaded, registry, number, asked or left, left)
        if stage.task is not None:
            continue
        if asked and positions and asked > positions - virtual:
            taken = f", {virtual} of them taken by virtual tokens" if virtual else ""
            faults.append(
                loaded.fault(
                    "E045",
                    ("stages", number, "train", "max_length"),
                    f"a row of {asked} tokens does not fit the model's {positions} positions"
                    f"{taken}",
                    f"write at most {positions - virtual}",
                )
            )
        if stage.train.packing and not _keeps_rows_apart(recipe.model, model):
            faults.append(
                loaded.fault(
                    "E041",
                    ("stages", number, "train", "packing"),
                    "this model's attention cannot keep packed rows apart",
                    "set packing: false, or model.attn_implementation: auto",
                )
            )
        if stage.adapter is None:
            continue
        model.is_quantized = bool(load_options(recipe, adapter))  # as transformers marks it
        refusals = list(refusals_of(adapter, model))
        for key, what, fix in refusals:
            faults.append(loaded.fault("E047", ("stages", number, "adapter", *key), what, fix))
        if not refusals:
            faults += _of_a_trial(loaded, number, adapter, model)
    return faults


def _of_a_trial(loaded: Loaded, number: int, adapter: Any, model: Any) -> list[Fault]:
    """Return a fault where an adapter fails on a small copy of the model."""
    from llmft.engine.adapter_trial import failure

    source = loaded.written.model
    if loaded.written.stages[number].adapter is None or not (
        why := failure(adapter, source, model.config)
    ):
        return []
    what = f"'{adapter.method}' cannot be trained on a model of the type"
    return [
        loaded.fault(
            "E047",
            ("stages", number, "adapter", "method"),
            f"{what} '{model.config.model_type}': {why}",
            "pick another adapter, such as lora with target_modules: [q_proj, v_proj]",
        )
    ]


def _without_room(
    loaded: Loaded, registry: Registry, number: int, row: int | None, left: int | None
) -> list[Fault]:
    """Return a fault for each kind of answer that a stage draws and that no prompt fits before.

    row: tokens of a row at most. left: the model's positions beside an adapter's.
    """
    stage = loaded.written.stages[number]
    drawn = stage_work(stage, registry).max_new_tokens()
    found: list[tuple[KeyPath, int, int | None]] = [((stage.work_kind,), drawn, row)]
    if stage.evaluate and set(stage.evaluate.metrics) - set(LOSS_METRICS):
        found.append((("evaluate", "max_new_tokens"), stage.evaluate.max_new_tokens, left))
    return [
        loaded.fault(
            "E045",
            ("stages", number, *key),
            f"an answer of {tokens} tokens leaves no room for a prompt within {limit}",
            "write fewer" if limit == left else "write fewer, or raise train.max_length",
        )
        for key, tokens, limit in found
        if tokens and limit is not None and tokens > limit - 2
    ]


def _other_adapters(loaded: Loaded, registry: Registry) -> list[Fault]:
    """Return a fault for each stage whose adapter block is not that of what it goes on training.

    Within one recipe this was found when it was read; here it may be a stage of an earlier run.
    """
    faults = []
    recipe = loaded.written
    for number, stage in enumerate(recipe.stages):
        if stage.start_from is None or stage.adapter is None:
            continue
        bare = stage.model_copy(update={"adapter": None})
        theirs = stage_adapter(recipe, bare, registry).config
        if theirs == stage.adapter:
            continue
        name = difference(stage.adapter, theirs)
        now, then = (shown(getattr(one, name, None)) for one in (stage.adapter, theirs))
        faults.append(
            loaded.fault(
                "E034",
                ("stages", number, "adapter", name),
                f"'{name}' is {now} here, and {then} in '{stage.start_from}', whose adapter stage"
                f" '{stage.name}' goes on training",
                "drop this adapter block, or drop start_from",
            )
        )
    return faults


def _of_other_runs(loaded: Loaded) -> list[Fault]:
    """Return a fault for each named stage of an earlier run that made another thing."""
    faults = []
    for reference in references(loaded.written):
        if not reference.is_of_another_run:
            continue
        stage = upstream_stage(reference.target, Path(), loaded.written)
        made = artifacts.result_of(stage)["produces"]
        if made != reference.produces:
            made, wanted = (word.replace("_", " ") for word in (made, reference.produces))
            what = f"'{reference.target}' made {made}; one that makes {wanted} is needed"
            fix = "name another stage of that run"
            faults.append(loaded.fault("E033", reference.path, what, fix))
    return faults

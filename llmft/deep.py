"""What only the model itself can refuse: checked on the meta device, before a weight is loaded."""

from __future__ import annotations

from typing import Any

from llmft import models
from llmft.errors import Fault
from llmft.quiet import before_upstream
from llmft.reading.recipe import Loaded
from llmft.registry import Registry
from llmft.saving.earlier import stage_adapter
from llmft.settings import ModelSource
from llmft.startup import without_collecting


def _keeps_rows_apart(source: ModelSource, model: Any) -> bool:
    from llmft.training import attention

    return source.attn_implementation == "auto" and attention.supports(type(model), model.config)


@without_collecting()
def check_against_model(loaded: Loaded, registry: Registry) -> list[Fault]:
    """Return the faults of a recipe that show on its model's modules and sizes.

    Raises EnvironmentFault or TrustError where the model's configuration cannot be read.
    """
    before_upstream()
    recipe = loaded.written  # later rounds have the same settings
    model = models.empty_base(recipe.model)
    positions = models.max_positions(model.config)
    faults = []
    for number, stage in enumerate(recipe.stages):
        if stage.task is not None:
            continue
        asked = stage.train.max_length
        virtual = stage_adapter(recipe, stage, registry).virtual_tokens()
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
        for key, what, fix in stage_adapter(recipe, stage, registry).check(model):
            faults.append(loaded.fault("E047", ("stages", number, "adapter", *key), what, fix))
    return faults

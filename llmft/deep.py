"""What only the model itself can refuse: checked on the meta device, before a weight is loaded."""

from __future__ import annotations

from llmft import models
from llmft.errors import Fault
from llmft.recipe import Loaded
from llmft.registry import Registry
from llmft.stage import stage_adapter


def check_against_model(loaded: Loaded, registry: Registry) -> list[Fault]:
    """Return the faults of a recipe that show on its model's modules and sizes.

    Raises EnvironmentFault or TrustError where the model's configuration cannot be read.
    """
    recipe = loaded.recipe
    model = models.empty_base(recipe.model)
    positions = models.max_positions(model.config)
    faults = []
    for number, stage in enumerate(recipe.stages):
        asked = stage.train.max_length
        if asked and positions and asked > positions:
            faults.append(
                loaded.fault(
                    "E045",
                    ("stages", number, "train", "max_length"),
                    f"a row of {asked} tokens does not fit the model's {positions} positions",
                    f"write at most {positions}",
                )
            )
        if stage.adapter is None:
            continue
        for key, what, fix in stage_adapter(recipe, stage, registry).check(model):
            faults.append(loaded.fault("E047", ("stages", number, "adapter", *key), what, fix))
    return faults

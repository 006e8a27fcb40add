"""Which files of a stage a plan names, and how many bytes each has, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llmft.planning.memory_tracker import OPTIMIZER
from llmft.planning.planner import _files
from llmft.planning.processes import ALONE


def files_of(stage, items: int | None) -> list[tuple[str, int]]:
    peaks = [SimpleNamespace(by_kind={OPTIMIZER: size}) for size in (0, 600, 500)]
    counts = None if items is None else SimpleNamespace(items=items)
    state = SimpleNamespace(
        processes=ALONE,
        counts=counts,
        memory=SimpleNamespace(peaks=peaks),
        saved_bytes=70,
        trained_bytes=300,
    )
    return _files(stage, SimpleNamespace(state=state, bound=SimpleNamespace(callbacks=())))


@pytest.mark.parametrize(
    ("items", "train", "evaluate", "kept"),
    [
        # 12 rows, 4 a step: 3 steps, so three checkpoints of the 9 that may be kept.
        (12, {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}, {}, 3),
        (12, {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}, {}, 2),
        (12, {"save_strategy": "epoch", "save_total_limit": 9}, {}, 1),
        # How many rows there are is not known: as many as may be kept.
        (None, {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}, {}, 9),
        (12, {"save_strategy": "no"}, {}, 0),
        # Each of the three evaluations may be the best so far, and is kept.
        (12, {"save_strategy": "no", "save_total_limit": 9}, {"eval_steps": 1}, 3),
        (12, {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9},
         {"eval_steps": 2}, 4),
    ],
)  # fmt: skip
def test_a_stage_keeps_as_many_checkpoints_as_it_writes(
    recipe, loaded, items, train, evaluate, kept
):
    stage = recipe["stages"][0]
    stage["train"] = {"per_device_train_batch_size": 4, **train}
    if evaluate:
        stage["evaluate"] = {
            "metrics": ["loss"], "holdout": 0.2, "eval_strategy": "steps",
            "load_best_model_at_end": True, **evaluate,
        }  # fmt: skip
    bound = loaded(recipe).recipe.stages[0]
    checkpoints = [(f"stages/{bound.name}/checkpoints, {kept} kept", kept * 900)] if kept else []
    assert files_of(bound, items) == [(f"stages/{bound.name}/adapter", 70), *checkpoints]

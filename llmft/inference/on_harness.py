"""Tasks of lm-evaluation-harness on a run's model, or on any model by its folder or hub id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmft.api.errors import RecipeError
from llmft.data.cache import own_lines
from llmft.evaluation.harness import Harness, Measured, measure, unknown_tasks
from llmft.inference.evaluating import Asked, model_of
from llmft.system import trust


@dataclass(frozen=True)
class Found:
    """What the harness found, and of which stage; None for a model without a run."""

    measured: Measured
    stage: str | None


def on_harness(
    asked: Asked, harness: Harness, on_answer: Callable[[int, int], None] = lambda *_: None
) -> Found:
    """Return what tasks of the harness find of a model.

    Answers of a finished stage, and of its base, are kept in the user's cache, and not asked for
    again. Raises as `measure` does, RecipeError (E090) where a task is not known, CheckpointError
    where the run has no finished policy.
    """
    harness.reads()
    for _, what, fix in unknown_tasks(harness):
        raise RecipeError("E090", what, fix=fix)
    for path in map(str, harness.files.code):
        if not trust.is_trusted(path):
            raise trust.refusal(path)
    one = model_of(asked)
    adapter, positions = one.bound.model_adapter, one.base.positions
    taken = adapter.virtual_tokens() if adapter and not asked.base else 0
    left = positions - taken if positions else None
    train = one.bound.spec.train
    measured = measure(
        harness,
        one.model.requires_grad_(False).eval(),
        one.base.tokenizer,
        batch_size=train.per_device_eval_batch_size,
        max_length=train.max_length or left,
        answers=own_lines("lm_eval", one.identity) if one.identity else None,
        about=one.identity,
        on_answer=on_answer,
    )
    return Found(measured, one.stage)


def scores_of(found: Found) -> dict[str, Any]:
    """Return the scores as `llmft evaluate` has them: with standard errors beside the intervals."""
    metrics = found.measured.metrics
    return {
        name: score | {"stderr": metrics.get(f"{name}_stderr")}
        for name, score in found.measured.scores.items()
    }

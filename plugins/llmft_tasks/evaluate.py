"""Scores of the policy that `start_from` names, or of the base, on any data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmft.api import RowScores, ScoredTaskConfig, StageContext, StageResult, Task, hookimpl
from llmft.toolkit import differences_of, write_jsonl


class Evaluate(Task["Evaluate.Config"]):
    """Scores the policy that `start_from` names, or the base, on the rows of the data block.

    `rows.jsonl` has a line for each answer, as `llmft evaluate --output` writes them, and
    `base.jsonl` the base's where `base` is set; no metric of answers leaves both empty. The base's
    scores stand under `before`.
    """

    method = "evaluate"
    rows = ("text", "prompt", "completion", "chat", "preference", "unpaired")
    produces = "scores"

    class Config(ScoredTaskConfig):
        """By which metrics, and whether the base is scored too."""

    def smoke_overrides(self) -> Mapping[str, Any]:
        return {"max_new_tokens": min(self.config.max_new_tokens, 8)}

    def run(self, context: StageContext) -> StageResult:
        found = context.row_scores()
        write_jsonl(context.folder / "rows.jsonl", found.rows)
        scores = {"after": found.scores}
        before: Mapping[str, float] = {}
        if self.config.base:
            of_base = context.row_scores(base=True)
            write_jsonl(context.folder / "base.jsonl", of_base.rows)
            before = _means(of_base)
            difference = differences_of(of_base.values, found.values)
            scores = {"before": of_base.scores, **scores, "difference": difference}
        return StageResult(
            self.produces,
            before=before,
            after=_means(found),
            scores=scores,
            generation=found.generation,
        )


def _means(found: RowScores) -> dict[str, float]:
    return {name: float(score["value"] or 0.0) for name, score in found.scores.items()}


@hookimpl
def llmft_tasks() -> list[type[Evaluate]]:
    return [Evaluate]

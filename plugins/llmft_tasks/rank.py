"""Preferences out of several answers to a prompt: ranked by people, a rule or a reward model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import SerializeAsAny, model_validator

from llmft.api import (
    CompletionRow,
    Field,
    Line,
    RewardConfig,
    StageContext,
    StageError,
    StageRef,
    StageResult,
    Task,
    TaskConfig,
    WaitsForPeople,
    hookimpl,
)
from llmft.toolkit import write_json, write_jsonl

if TYPE_CHECKING:
    from llmft.toolkit import Ratings, Sample

WAITING = "waiting.json"


class Rank(Task["Rank.Config"]):
    """Ranks the answers that a `collect` stage sampled, and turns the ranking into preferences.

    With neither `judge` nor `reward_model`, people rank: the run stops here until they have done so
    with `llmft rank RUN`, and goes on with `llmft run RECIPE RUN --resume`.
    """

    method = "rank"
    produces = "preferences"

    class Config(TaskConfig):
        """Who ranks, and which pairs are made."""

        samples: Annotated[Line, StageRef("samples")] = Field(
            description="the stage that sampled the answers"
        )
        judge: SerializeAsAny[RewardConfig] | None = Field(
            None, description="a reward function that ranks; default: people rank"
        )
        reward_model: Annotated[Line | None, StageRef("reward_model")] = Field(
            None, description="an earlier stage whose reward model ranks; default: people rank"
        )
        pairs: Literal["all", "best_worst"] = Field(
            "all", description="every pair of answers to a prompt, or only the best and the worst"
        )
        raters: int = Field(
            1, ge=1, le=100, description="how many people rank each prompt before the run continues"
        )

        @model_validator(mode="after")
        def _one_judge(self) -> Rank.Config:
            if self.judge and self.reward_model:
                raise ValueError("judge and reward_model exclude each other; keep one")
            if self.judge and self.judge.weight != 1:
                raise ValueError("one judge ranks, so its weight has no effect; remove weight")
            if self.raters > 1 and (self.judge or self.reward_model):
                raise ValueError("raters counts people; remove it if judge or reward_model ranks")
            return self

    def smoke_overrides(self) -> Mapping[str, Any]:
        # People are not asked, and the answers of a random model are all wrong: by any honest rule
        # there would be nothing to choose between them.
        if self.config.reward_model:
            return {}
        return {"judge": {"method": "length", "target": 1000, "unit": "characters"}, "raters": 1}

    def run(self, context: StageContext) -> StageResult:
        from llmft.toolkit import combine, judged, read_samples

        file = context.stage_folder(self.config.samples) / "rows.jsonl"
        samples = read_samples(file)
        waiting = context.folder / WAITING
        waiting.unlink(missing_ok=True)  # people may have been waited for before a judge was named
        scores = self._scores(context, samples)
        ratings = (
            self._by_people(context, samples, file, waiting)
            if scores is None
            else judged(samples, scores, self.config.reward_model or "judge")
        )
        combined = combine(samples, ratings, self.config.pairs)
        if not combined.rows:
            said = ", ".join(f"{count} {kind}" for kind, count in combined.counts.items() if count)
            raise StageError(
                "E303",
                f"the ranking makes no pair ({said})",
                fix="collect more varied answers: raise num_return_sequences or temperature",
            )
        write_jsonl(context.folder / "rows.jsonl", combined.rows)
        metrics = {name: float(count) for name, count in combined.counts.items()}
        if scores is not None:
            every = [score for row in scores for score in row]
            metrics["score"] = sum(every) / len(every)
        return StageResult(self.produces, metrics=metrics)

    def _scores(
        self, context: StageContext, samples: Sequence[Sample]
    ) -> Sequence[Sequence[float]] | None:
        """Return the judge's score of each answer; None where people rank."""
        if self.config.judge:
            rule = context.reward_function(self.config.judge)
            return [
                [rule.score(sample.prompt, text, sample.answers) for text in sample.completions]
                for sample in samples
            ]
        return self._rewards(context, samples) if self.config.reward_model else None

    def _rewards(self, context: StageContext, samples: Sequence[Sample]) -> list[list[float]]:
        import torch

        from llmft.toolkit import rewards

        rows = [
            CompletionRow(sample.prompt, text) for sample in samples for text in sample.completions
        ]
        model, encoded = (
            context.models.load_stage(str(self.config.reward_model)),
            context.data.encode(rows),
        )
        if len(encoded) < len(rows):
            raise StageError(
                "E303",
                f"{len(rows) - len(encoded)} answers are too long for the reward model",
                fix="collect shorter answers: lower max_new_tokens",
            )
        size, found = context.train.per_device_eval_batch_size, []
        with torch.no_grad():
            context.log.progress("rank answers", 0, len(encoded))
            for start in range(0, len(encoded), size):
                found += rewards(model, encoded[start : start + size]).tolist()
                context.log.progress("rank answers", len(found), len(encoded))
        scores = iter(found)
        return [[next(scores) for _ in sample.completions] for sample in samples]

    def _by_people(
        self, context: StageContext, samples: Sequence[Sample], file: Path, waiting: Path
    ) -> Ratings:
        from llmft.toolkit import RATINGS, Ratings, read_ratings, remaining

        ratings = read_ratings(file.parent / RATINGS)
        to_rank = remaining(samples, Ratings())
        if not to_rank:  # all answers of each prompt are the same: nobody needs to be asked
            return ratings
        for remark in ratings.remarks:
            context.log.note(remark)
        done = [name for name in ratings.by_rater if not remaining(samples, ratings, name)]
        if len(done) < self.config.raters:
            wanted = self.config.raters
            where = os.path.relpath(file, context.folder)
            write_json(waiting, {"samples": where, "raters": wanted, "finished": done})
            people = "a person" if wanted == 1 else f"{wanted} people"
            said = f"'{context.name}' waits for {people} to rank {len(to_rank)} prompts"
            raise WaitsForPeople(f"{said}; finished: {', '.join(done) or 'nobody'}")
        return ratings


@hookimpl
def llmft_tasks() -> list[type[Rank]]:
    return [Rank]

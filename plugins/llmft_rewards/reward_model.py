"""A reward by the reward model of an earlier stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from llmft.api import (
    CompletionRow,
    Encoded,
    Field,
    Line,
    Prompt,
    RewardConfig,
    RewardFunction,
    SampledAnswer,
    StageContext,
    StageError,
    StageRef,
    hookimpl,
)
from llmft.toolkit import rewards


class RewardModel(RewardFunction["RewardModel.Config"]):
    """The score of an earlier stage's reward model, which reads the sampled tokens themselves."""

    method = "reward_model"

    class Config(RewardConfig):
        """Which stage's reward model."""

        stage: Annotated[Line, StageRef("reward_model")] = Field(
            description="the stage whose reward model scores the answers"
        )

    _context: StageContext | None = None
    _model: Any = None

    def start(self, context: StageContext) -> None:
        if context is not self._context:
            self._context, self._model = context, context.models.load_stage(self.config.stage)

    def score(self, prompt: Prompt, completion: str, answers: Sequence[str]) -> float:
        rows = self._started().data.encode([CompletionRow(prompt, completion)])
        return self._scores(rows)[0]

    def score_batch(self, batch: Sequence[SampledAnswer]) -> Sequence[float]:
        return self._scores([one.row for one in batch])

    def _scores(self, rows: Sequence[Encoded]) -> list[float]:
        import torch

        size = self._started().train.per_device_eval_batch_size
        found: list[float] = []
        with torch.no_grad():
            for start in range(0, len(rows), size):
                found += rewards(self._model, rows[start : start + size]).tolist()
        return found

    def _started(self) -> StageContext:
        if self._context is None:
            raise StageError(
                "E300",
                "the reward 'reward_model' scores in a running stage only",
                fix="name the stage whose reward model scores",
            )
        return self._context


@hookimpl
def llmft_rewards() -> list[type[RewardModel]]:
    return [RewardModel]

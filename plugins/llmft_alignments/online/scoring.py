"""Several rewards of the same answers, each kept apart: reward functions and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from llmft.api import (
    Answer,
    DataError,
    Encoded,
    EncodedPrompt,
    RewardConfig,
    RewardFunction,
    SampledAnswer,
    StageContext,
)
from llmft.toolkit import TimeUp, time_limit

if TYPE_CHECKING:
    import torch

_LARGEST = 3.4028235e38  # of float32, in which rewards are added


class Scorer:
    """Scores answers by each of several rewards. R is the number of rewards.

    names: of the rewards, by method; a second one of a method is `name_2`. timeout_seconds: the
    most time that one reward may take for a step's answers; None: no limit. stops: the ids of
    tokens that end an answer, beside the model's own.
    """

    def __init__(
        self,
        context: StageContext,
        rewards: Sequence[RewardConfig],
        stops: Sequence[int] = (),
        timeout_seconds: float | None = None,
    ) -> None:
        self.context, self.stops, self.timeout_seconds = context, stops, timeout_seconds
        self.functions = [context.reward_function(reward) for reward in rewards]
        self.weights_R = [reward.weight for reward in rewards]
        self.names = _names([reward.method for reward in rewards])

    def texts(self, answers: Sequence[Answer]) -> list[str]:
        """Return the answers as text."""
        tokenizer = self.context.models.tokenizer
        return [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]

    def scores(
        self, prompts: Sequence[EncodedPrompt], rows: Sequence[Encoded], answers: Sequence[Answer]
    ) -> tuple[list[str], torch.Tensor]:
        """Return the answers' texts, and each reward of each answer, shape (B, R), float32.

        Raises DataError where a reward is no finite number, or takes longer than it may.
        """
        import torch

        texts = self.texts(answers)
        batch = [
            SampledAnswer(
                prompt.prompt, text, prompt.answers, self.closed(row, answer), prompt.columns
            )
            for prompt, text, row, answer in zip(prompts, texts, rows, answers, strict=True)
        ]
        columns = [self._scored(function, batch, prompts) for function in self.functions]
        scores_RB = torch.tensor(columns, dtype=torch.float32)
        return texts, scores_RB.reshape(len(columns), len(batch)).T

    def weighted(self, scores_BR: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of each answer's rewards, shape (B,)."""
        return (scores_BR * scores_BR.new_tensor(self.weights_R)).sum(1)

    def _scored(
        self,
        function: RewardFunction[Any],
        batch: Sequence[SampledAnswer],
        prompts: Sequence[EncodedPrompt],
    ) -> list[float]:
        try:
            with time_limit(self.timeout_seconds):
                given = list(function.score_batch(batch))
        except TimeUp as error:
            what = (
                f"the reward '{function.method}' has not scored {len(batch)} answers within"
                f" {self.timeout_seconds:g} seconds"
            )
            fix = "correct the reward function, or raise reward_timeout_seconds"
            raise DataError("E119", what, fix=fix) from error
        if len(given) != len(batch):
            what = f"the reward '{function.method}' gives {len(given)} scores of {len(batch)}"
            raise DataError("E112", what, fix="correct the reward function")
        for prompt, reward in zip(prompts, given, strict=True):
            if not isinstance(reward, Real) or not abs(reward) <= _LARGEST:
                what = (
                    f"{prompt.origin}: the reward of '{function.method}' for an answer is"
                    f" {reward!r}"
                )
                raise DataError("E112", what, fix="correct the reward function")
        return [float(reward) for reward in given]

    def closed(self, row: Encoded, answer: Answer) -> Encoded:
        """Return a row as a reward model has learnt to read it: an answer that ended ends so."""
        end = self.context.models.tokenizer.eos_token_id
        if not self.stops or end is None or not answer.ids or answer.ids[-1] not in self.stops:
            return row
        return Encoded((*row.input_ids, end), (*row.labels, end), row.origin)


def _names(methods: Sequence[str]) -> list[str]:
    """Return a name for each method: a second 'length' is 'length_2'."""
    found: list[str] = []
    for place, method in enumerate(methods):
        earlier = methods[:place].count(method)
        found.append(f"{method}_{earlier + 1}" if earlier else method)
    return found

"""The contract kit fails on alignments that break the contract, and on these only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmft.api import Alignment, AlignmentConfig, DataError, PreferenceRow, StageResult
from llmft.testing import AlignmentContract
from llmft.toolkit import label_nll

Catches = Callable[..., None]


class Prefers(Alignment[AlignmentConfig]):
    """Reads preferences only, as its rows say."""

    method = "prefers"
    Config = AlignmentConfig
    rows = ("preference",)

    def train(self, context: Any) -> StageResult:
        rows = context.data.rows()
        if not all(isinstance(row, PreferenceRow) for row in rows):
            raise DataError("E302", "a row is no preference")
        result: StageResult = context.fit(context.data.encode_pairs(rows), self)
        return result

    def weight(self, batch: Any) -> float:
        return float(len(batch))

    def loss(self, model: Any, batch: Any) -> Any:
        return label_nll(model, [pair.chosen for pair in batch]).nll_N.sum(), {}


class TestPrefers(AlignmentContract):
    method_class = Prefers


class TrainsOnAnything(Prefers):
    """Trains on whatever comes."""

    def train(self, context: Any) -> StageResult:
        result: StageResult = context.fit(context.data.rows(), self)
        return result


class WeighsNothing(Prefers):
    """Gives nothing to divide its loss by."""

    def weight(self, batch: Any) -> float:
        return 0.0


class GivesAMean(Prefers):
    """Divides its loss, which the loop divides again."""

    def loss(self, model: Any, batch: Any) -> Any:
        loss, metrics = super().loss(model, batch)
        return loss / len(batch), metrics


class WeighsEveryBatchAlike(Prefers):
    """Gives a mean of means where batches differ in size."""

    def weight(self, batch: Any) -> float:
        return 1.0


class GivesALossOfEachPair(Prefers):
    """Leaves the sum to somebody else."""

    def loss(self, model: Any, batch: Any) -> Any:
        return label_nll(model, [pair.chosen for pair in batch]).nll_N, {}


class LosesTheGradient(Prefers):
    """Gives a loss that nothing can learn from."""

    def loss(self, model: Any, batch: Any) -> Any:
        loss, metrics = super().loss(model, batch)
        return loss.detach(), metrics


class RowsThatMeet(Prefers):
    """Gives each row a loss that depends on how many there are beside it."""

    def loss(self, model: Any, batch: Any) -> Any:
        loss, metrics = super().loss(model, batch)
        return loss * (1 + 0.5 * (len({id(one) for one in batch}) - 1)), metrics


class ForgetsTheResult(Prefers):
    """Trains and does not say what it made."""

    def train(self, context: Any) -> Any:
        super().train(context)


class ScoresInTensors(Prefers):
    """Evaluates to what is no number."""

    def evaluate(self, context: Any) -> Any:
        return {"wins": context.models.model.lm_head.weight.mean()}


class TrainsOnNothing(Prefers):
    """Says that it trained."""

    def train(self, context: Any) -> StageResult:
        return StageResult(self.produces)


class ReadsUnknownRows(Prefers):
    """Reads rows of a kind that there is not."""

    rows = ("poems",)  # type: ignore[assignment]


ALIGNMENTS = [
    (TrainsOnAnything, "test_it_refuses_rows_of_another_kind"),
    (WeighsNothing, "test_a_step_of_it_keeps_to_the_contract"),
    (GivesAMean, "test_a_step_of_it_keeps_to_the_contract"),
    (WeighsEveryBatchAlike, "test_a_step_of_it_keeps_to_the_contract"),
    (GivesALossOfEachPair, "test_a_step_of_it_keeps_to_the_contract"),
    (LosesTheGradient, "test_a_step_of_it_keeps_to_the_contract"),
    (RowsThatMeet, "test_a_step_of_it_keeps_to_the_contract"),
    (ForgetsTheResult, "test_a_step_of_it_keeps_to_the_contract"),
    (ScoresInTensors, "test_a_step_of_it_keeps_to_the_contract"),
    (TrainsOnNothing, "test_a_step_of_it_keeps_to_the_contract"),
    (ReadsUnknownRows, "test_the_class_declares_what_its_kind_must"),
]


@pytest.mark.parametrize(("alignment", "test"), ALIGNMENTS)
def test_the_kit_catches_a_wrong_alignment(alignment: Any, test: str, catches: Catches) -> None:
    catches(AlignmentContract, alignment, test)

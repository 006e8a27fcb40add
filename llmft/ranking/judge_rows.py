"""Rankings that follow from scores: a rule or a reward model in a person's place."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.api.errors import DataError
from llmft.ranking.ratings import Decision, Ranking, Ratings
from llmft.ranking.samples import Sample, rankable


def judged(samples: Sequence[Sample], scores: Sequence[Sequence[float]], rater: str) -> Ratings:
    """Return one rater's decision on every sample whose answers differ, from its answers' scores.

    scores: one for each completion of each sample; higher is better, equal ones are ties.
    Raises DataError (E112) where a score is no number.
    """
    by_item = {sample.id: row for sample, row in zip(samples, scores, strict=True)}
    decisions = {}
    for sample in rankable(samples):
        row = by_item[sample.id]
        if any(score != score for score in row):
            what = f"the judge gave no finite score to an answer of item {sample.id[:12]}"
            raise DataError("E112", what, fix="correct the judge")
        decisions[sample.id] = Decision(sample.id, _ranking(row), False, "", 0.0)
    return Ratings({rater: decisions})


def _ranking(scores: Sequence[float]) -> Ranking:
    """Return the indices by falling score, equal ones in one group."""
    return tuple(
        tuple(index for index, other in enumerate(scores) if other == score)
        for score in sorted(set(scores), reverse=True)
    )

"""How far raters agree: Krippendorff's alpha on ordinal ranks."""

from __future__ import annotations

from collections.abc import Sequence

from llmft.ranking.combining import decisions_on, doubled_ranks
from llmft.ranking.ratings import Ratings
from llmft.ranking.samples import Sample, rankable


def agreement(samples: Sequence[Sample], ratings: Ratings) -> float | None:
    """Return Krippendorff's alpha, ordinal: 1 for perfect agreement, 0 for that of chance.

    Each answer of a sample is a unit, and its rank with a rater the value. None where no sample was
    rated by two, or where nobody prefers any answer to another.
    """
    units = []  # how often each (doubled) rank was given to an answer
    for sample in rankable(samples):
        decisions = decisions_on(sample, ratings)
        if len(decisions) > 1:
            by_rater = [doubled_ranks(sample, decision) for decision in decisions]
            units += [list(ranks) for ranks in zip(*by_rater, strict=True)]
    domain = sorted({rank for ranks in units for rank in ranks})
    if len(domain) < 2:
        return None
    import krippendorff

    counts = [[ranks.count(rank) for rank in domain] for ranks in units]
    return float(
        krippendorff.alpha(value_counts=counts, value_domain=domain, level_of_measurement="ordinal")
    )

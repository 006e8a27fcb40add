"""From rankings to preferences: the raters' mean ranks, and the pairs that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from llmft.api.errors import DataError
from llmft.ranking.ratings import Decision, Ratings
from llmft.ranking.samples import Sample, rankable

Pairs = Literal["all", "best_worst"]
_KINDS = (
    "samples", "identical", "rated", "rated_by_two", "all_bad", "tied", "undecided", "empty",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Combined:
    """The preferences, and what became of every sample and of every two answers.

    rows: prompt, chosen, rejected, margin and answers. counts: `samples`; of these `identical`
    (all answers are the same), `rated` (by anybody), `rated_by_two` or more, `all_bad`; and of the
    possible pairs: `tied`, `undecided` (the raters disagree), `empty` (an answer has no text).
    """

    rows: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)


def preferences(
    samples: Sequence[Sample], ratings: Ratings, pairs: Pairs = "all"
) -> list[dict[str, Any]]:
    """Return the rows of the preference file; see `combine`."""
    return combine(samples, ratings, pairs).rows


def combine(samples: Sequence[Sample], ratings: Ratings, pairs: Pairs = "all") -> Combined:
    """Return the preferences that the ratings come to; decisions about other samples do not count.

    An answer's rank with one rater is its place, the mean of the places that tied answers take up;
    "all bad" ties all. One answer is chosen over another where its mean rank over the raters is
    better and more raters put it first than second. margin: the difference of the two mean ranks,
    divided by the largest that is possible, k - 1 for k different answers; above 0, at most 1.
    pairs: "all" that are so, or only that of the best and the worst answer of each sample.
    A sample that at least half of its raters call all bad makes no pair.
    """
    counts = Counter(samples=len(samples), identical=len(samples) - len(rankable(samples)))
    rows: list[dict[str, Any]] = []
    for sample in rankable(samples):
        decisions = decisions_on(sample, ratings)
        counts["rated"] += bool(decisions)
        counts["rated_by_two"] += len(decisions) > 1
        if not decisions:
            continue
        if 2 * sum(decision.all_bad for decision in decisions) >= len(decisions):
            counts["all_bad"] += 1
            continue
        rows += _rows(sample, decisions, pairs, counts)
    return Combined(rows, {kind: counts[kind] for kind in _KINDS} | {"pairs": len(rows)})


def decisions_on(sample: Sample, ratings: Ratings) -> list[Decision]:
    """Return the decisions on a sample; raise DataError (E111) where one cannot be on it."""
    found = []
    for rater, decisions in ratings.by_rater.items():
        decision = decisions.get(sample.id)
        if decision is None:
            continue
        if sum(map(len, decision.ranking)) != len(sample.completions):
            what = f"rater '{rater}' does not rank all answers of item {sample.id[:12]}"
            raise DataError("E111", what, fix="delete that line, and rank the item again")
        found.append(decision)
    return found


def doubled_ranks(sample: Sample, decision: Decision) -> list[int]:
    """Return twice the rank of each distinct answer (whole numbers, so that sums are exact).

    Ranks are 1 for the best to k for the worst; tied answers share the mean of their places.
    """
    count = len(sample.distinct)
    if decision.all_bad:
        return [count + 1] * count
    number = {index: n for n, same in enumerate(sample.distinct) for index in same}
    ranks, place = [0] * count, 1
    for group in decision.ranking:
        # Equal texts count once, where the best of them stands.
        members = {number[index] for index in group if not ranks[number[index]]}
        for member in members:
            ranks[member] = 2 * place + len(members) - 1
        place += len(members)
    return ranks


def _rows(
    sample: Sample, decisions: Sequence[Decision], pairs: Pairs, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    by_rater = [doubled_ranks(sample, decision) for decision in decisions]
    total = [sum(ranks) for ranks in zip(*by_rater, strict=True)]
    texts = [sample.completions[same[0]] for same in sample.distinct]
    order = sorted(range(len(texts)), key=total.__getitem__)
    chances = [(order[0], order[-1])] if pairs == "best_worst" else combinations(order, 2)
    prompt = sample.prompt if isinstance(sample.prompt, str) else list(sample.prompt)
    for better, worse in chances:
        ahead = sum(_sign(ranks[worse] - ranks[better]) for ranks in by_rater)
        if all(ranks[better] == ranks[worse] for ranks in by_rater):
            counts["tied"] += 1
        elif total[better] == total[worse] or ahead <= 0:
            counts["undecided"] += 1
        elif not (texts[better].strip() and texts[worse].strip()):
            counts["empty"] += 1
        else:
            gap = total[worse] - total[better]
            yield {
                "prompt": prompt,
                "chosen": texts[better],
                "rejected": texts[worse],
                "margin": round(gap / (2 * len(by_rater) * (len(texts) - 1)), 6),
                "answers": list(sample.answers),
            }


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)

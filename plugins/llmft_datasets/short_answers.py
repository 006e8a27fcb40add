"""How answers are judged: by their first line, as in the usual closed-book evaluation, or by
the number that they end with.

Where a right answer has several lines, the whole answer is compared with that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmft.api import Metric
from llmft.toolkit import exact_match, f1, final_number, first_line


def by_first_line(metric: Metric, answer: str, right: Sequence[str]) -> float:
    """Return the better of two scores: of the first line, and of the whole against long answers."""
    several = [text for text in right if "\n" in text.strip()]
    whole = metric(answer, several) if several else 0.0
    return max(metric(first_line(answer), right), whole)


METRICS: Mapping[str, Metric] = {
    "exact_match": lambda answer, right: by_first_line(exact_match, answer, right),
    "f1": lambda answer, right: by_first_line(f1, answer, right),
    "final_number": final_number,
}

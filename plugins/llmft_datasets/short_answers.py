"""How answers are judged: by their first line, as in the usual closed-book evaluation, or by
the number that they end with."""

from __future__ import annotations

from collections.abc import Mapping

from llmft.api import Metric
from llmft.toolkit import exact_match, f1, final_number, first_line

METRICS: Mapping[str, Metric] = {
    "exact_match": lambda answer, right: exact_match(first_line(answer), right),
    "f1": lambda answer, right: f1(first_line(answer), right),
    "final_number": final_number,
}

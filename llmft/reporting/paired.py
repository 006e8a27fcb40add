"""Whether one set of scores is better than another on the same rows: paired, with an interval.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmft.evaluation.intervals import difference_of

_SAMPLES = 10_000
_SEED = 17


@dataclass(frozen=True)
class Paired:
    """One metric of two on the same rows.

    rows: how many both have. first, second: the means. low, high: the 95 % interval of the mean
    difference, second less first: of right or wrong by Agresti and Min (2005), else by percentile
    bootstrap over rows (Efron and Tibshirani 1993, 13.3), which has no width where all rows agree.
    p: of McNemar's exact test where every score is 0 or 1 (McNemar 1947), else None.
    """

    metric: str
    rows: int
    first: float
    second: float
    low: float
    high: float
    p: float | None

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out no difference at all."""
        return self.low > 0 or self.high < 0


def paired(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Paired]:
    """Return each metric that both have, on the rows that both have: the same prompt and answers.

    A row holds `prompt`, maybe `right`, and numbers by metric.
    """
    rows = _common(first, second)
    names = [
        name
        for name in (rows[0][0] if rows else {})
        if all(_is_number(a.get(name)) and _is_number(b.get(name)) for a, b in rows)
    ]
    return [_of(name, rows) for name in names]


def _of(name: str, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Paired:
    a = [float(one[name]) for one, _ in rows]
    b = [float(two[name]) for _, two in rows]
    p = None
    if {*a, *b} <= {0.0, 1.0}:
        found = difference_of(a, b)  # as the run itself says of before and after
        low, high = float(found["low"] or 0.0), float(found["high"] or 0.0)
        lost = sum(x > y for x, y in zip(a, b, strict=True))
        won = sum(x < y for x, y in zip(a, b, strict=True))
        p = mcnemar(lost, won)
    else:
        low, high = interval([y - x for x, y in zip(a, b, strict=True)])
    return Paired(name, len(rows), math.fsum(a) / len(a), math.fsum(b) / len(b), low, high, p)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean: percentiles of the means of rows drawn with replacement.

    The draws are seeded, so the same numbers give the same interval.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=float)
    random = np.random.default_rng(_SEED)
    size = max(1, min(_SAMPLES, 20_000_000 // len(numbers)))
    means = [
        numbers[random.integers(0, len(numbers), (min(500, size - done), len(numbers)))].mean(1)
        for done in range(0, size, 500)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p of McNemar's exact test: rows that only one has right, at even odds.

    lost, won: how many only the first, and only the second, has right.
    """
    count, least = lost + won, min(lost, won)
    tail = sum(math.comb(count, k) for k in range(least + 1)) / 2**count
    return float(min(1.0, 2 * tail))


def _common(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    theirs = dict(_keyed(second))
    return [(row, theirs[key]) for key, row in _keyed(first) if key in theirs]


def _keyed(rows: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, int], Mapping[str, Any]]]:
    """Return rows with what names each: its prompt and right answers, and which of equal ones."""
    seen: dict[str, int] = {}
    found = []
    for row in rows:
        text = json.dumps([row.get("prompt"), row.get("right")], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        seen[key] = seen.get(key, -1) + 1
        found.append(((key, seen[key]), row))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

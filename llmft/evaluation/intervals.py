"""How sure a score is: 95 % confidence intervals of means and shares, and of paired differences.

A metric is the mean of a value for each row. Rows are taken as independent; a sum over tokens, such
as the loss, has pseudo-values (`ratio_values`), whose mean it is (Tukey's jackknife, linearised).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Score = dict[str, float | int | None]
"""`value`, `low`, `high` and `n`; the bounds are None where one row says nothing of them."""
_Z = 1.959963984540054


Range = tuple[float, float]
"""The lowest and the highest value that a metric can have."""


def score_of(values: Sequence[float], *, within: Range = (-math.inf, math.inf)) -> Score:
    """Return the mean of the rows' values with its interval.

    Where every value is 0 or 1, Wilson's (1927); else Student's t. within: the metric's range, in
    which the interval is.
    """
    mean = math.fsum(values) / len(values)
    if set(values) <= {0.0, 1.0}:
        low, high = wilson(mean, len(values))
    elif len(values) == 1:
        return {"value": mean, "low": None, "high": None, "n": 1}
    else:
        low, high = _around(mean, values)
        low, high = max(low, within[0]), min(high, within[1])
    return {"value": mean, "low": low, "high": high, "n": len(values)}


def difference_of(before: Sequence[float], after: Sequence[float]) -> Score:
    """Return the mean of after - before over the same rows, with its interval.

    Where every value is 0 or 1, Agresti and Min's (2005): half a row is added to each of the four
    cells; else Student's t on the differences.
    """
    differences = [a - b for a, b in zip(after, before, strict=True)]
    mean, count = math.fsum(differences) / len(differences), len(differences)
    if set(before) | set(after) <= {0.0, 1.0}:
        won, lost = differences.count(1.0) + 0.5, differences.count(-1.0) + 0.5
        middle = (won - lost) / (count + 2)
        error = math.sqrt(won + lost - (won - lost) ** 2 / (count + 2)) / (count + 2)
        low, high = max(-1.0, middle - _Z * error), min(1.0, middle + _Z * error)
        low, high = min(mean, low), max(mean, high)
    elif count == 1:
        return {"value": mean, "low": None, "high": None, "n": 1}
    else:
        low, high = _around(mean, differences)
    return {"value": mean, "low": low, "high": high, "n": count}


def scores_of(
    values: Mapping[str, Sequence[float]], ranges: Mapping[str, Range]
) -> dict[str, Score]:
    """Return the score of each metric from its rows' values. ranges: of metrics that have one."""
    no_range = (-math.inf, math.inf)
    return {
        name: score_of(rows, within=ranges.get(name, no_range)) for name, rows in values.items()
    }


def differences_of(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]
) -> dict[str, Score]:
    """Return the paired difference of each metric that has values for the same rows twice."""
    return {
        name: difference_of(before[name], rows)
        for name, rows in after.items()
        if len(before.get(name, ())) == len(rows)
    }


def ratio_values(sums: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return pseudo-values, one a row, whose mean is sum(sums) / sum(weights)."""
    ratio, weight = math.fsum(sums) / math.fsum(weights), math.fsum(weights) / len(weights)
    return [ratio + (s - ratio * w) / weight for s, w in zip(sums, weights, strict=True)]


GROUPS = 100
"""So many times at most a metric of all rows is computed again for its interval."""


def corpus_values(
    count: int, whole: Mapping[str, float], without: Callable[[Sequence[int]], Mapping[str, float]]
) -> dict[str, list[float]]:
    """Return pseudo-values, one a row, for metrics of all rows together: their mean is `whole`.

    Their interval is that of the jackknife that leaves groups of rows out (Shao and Tu 1995,
    section 2.3), here up to `GROUPS` of them. without: gives the metrics of the rows that are left,
    by number.
    """
    groups = min(count, GROUPS)
    if groups < 2:
        return {name: [value] * count for name, value in whole.items()}
    left = [
        without([row for row in range(count) if row % groups != group]) for group in range(groups)
    ]
    # Each row of a group has the group's value, as if it were one of `count` independent ones; the
    # factor gives their mean the jackknife's variance. Of one row a group it is Tukey's, count - 1.
    factor = math.sqrt((groups - 1) * (count - 1))
    found = {}
    for name, value in whole.items():
        each = [left[row % groups][name] for row in range(count)]
        mean = math.fsum(each) / count
        found[name] = [value + factor * (mean - one) for one in each]
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of `count` (Wilson 1927)."""
    middle = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    error = math.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2)
    half = _Z * error / (1 + _Z * _Z / count)
    # Rounding must not put the share itself outside.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def t_quantile(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t (Abramowitz and Stegun 26.7.5; 1, 2: exact)."""
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = _Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _around(mean: float, values: Sequence[float]) -> tuple[float, float]:
    freedom = len(values) - 1
    squares = math.fsum((value - mean) ** 2 for value in values)
    half = t_quantile(freedom) * math.sqrt(squares / freedom / len(values))
    return mean - half, mean + half

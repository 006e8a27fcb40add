"""95 % intervals: against tables, by hand, and by how often they hold the truth."""

from __future__ import annotations

import math
import random

import pytest

from llmft.evaluation.intervals import (
    corpus_values,
    difference_of,
    differences_of,
    ratio_values,
    score_of,
    scores_of,
    t_quantile,
    wilson,
)


@pytest.mark.parametrize(
    ("freedom", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)],
)
def test_student_t_is_that_of_the_tables(freedom, table):
    assert t_quantile(freedom) == pytest.approx(table, rel=2e-3)


def test_a_rate_has_wilsons_interval():
    score = score_of([1.0, 1.0, 0.0])
    assert score["value"] == pytest.approx(2 / 3)
    assert (score["low"], score["high"]) == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert score["n"] == 3
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # as in R's binom.wilson
    assert score_of([0.0] * 3)["high"] == pytest.approx(0.5615, abs=1e-4)  # not zero


def test_a_mean_has_students_interval_within_what_it_can_be():
    score = score_of([1.0, 2.0, 4.0])
    half = 4.3027 * math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2 / 3)
    assert (score["low"], score["high"]) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-4)
    assert score_of([0.2, 0.9], within=(0.0, 1.0))["high"] == 1.0
    assert score_of([0.4]) == {"value": 0.4, "low": None, "high": None, "n": 1}
    assert scores_of({"a": [0.2, 0.9], "b": [0.2, 0.9]}, {"a": (0.0, 1.0)})["b"]["high"] > 1


def test_a_difference_is_paired():
    rng = random.Random(1)
    before = [rng.gauss(0, 10) for _ in range(50)]
    after = [value + 1 + rng.gauss(0, 0.1) for value in before]
    found = difference_of(before, after)
    assert found["low"] < 1.02
    assert found["high"] > 0.98
    assert found["high"] - found["low"] < 0.1  # unpaired, it were about 8 wide
    assert difference_of([0.25], [0.75]) == {"value": 0.5, "low": None, "high": None, "n": 1}


def test_a_difference_of_rates_is_agresti_and_mins():
    before, after = [0.0] * 5 + [1.0] * 5, [0.0, 1.0, 1.0, 1.0, 0.0] + [1.0] * 4 + [0.0]
    found = difference_of(before, after)
    middle, error = 2 / 12, math.sqrt(5 - 4 / 12) / 12  # 3.5 won, 1.5 lost, of 12
    assert found["value"] == pytest.approx(0.2)
    assert found["low"] == pytest.approx(middle - 1.96 * error, abs=1e-4)
    assert found["high"] == pytest.approx(middle + 1.96 * error, abs=1e-4)
    same = difference_of([0.0] * 3, [0.0] * 3)
    assert same["low"] < 0 < same["high"]  # three rows that did not change prove little


def test_pseudo_values_have_the_ratio_as_their_mean_and_cover_it():
    sums, weights = [2.0, 9.0, 4.0], [1.0, 3.0, 2.0]
    assert math.fsum(ratio_values(sums, weights)) / 3 == pytest.approx(15 / 6)
    rng, held = random.Random(0), 0
    for _ in range(300):
        weights = [rng.randint(1, 9) for _ in range(40)]
        sums = [sum(rng.expovariate(1) for _ in range(count)) for count in weights]
        score = score_of(ratio_values(sums, weights))
        held += score["low"] <= 1 <= score["high"]
    assert 0.9 <= held / 300 <= 0.99


def test_only_metrics_of_the_same_rows_are_compared():
    before = {"a": [1.0, 2.0], "b": [1.0]}
    assert set(differences_of(before, {"a": [2.0, 3.5], "b": [1.0, 2.0], "c": [1.0]})) == {"a"}


def mean_of(values, name="m"):
    return lambda rows: {name: math.fsum(values[row] for row in rows) / len(rows)}


def test_the_jackknife_of_a_mean_gives_back_the_rows_values():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    whole = mean_of(values)(range(5))
    assert corpus_values(5, whole, mean_of(values))["m"] == pytest.approx(values)


def test_the_jackknife_of_groups_has_its_variance():
    random.seed(3)
    values = [random.random() for _ in range(300)]
    whole = mean_of(values)(range(300))
    found = corpus_values(300, whole, mean_of(values))["m"]
    assert math.fsum(found) / 300 == pytest.approx(whole["m"])
    left = [mean_of(values)([r for r in range(300) if r % 100 != g])["m"] for g in range(100)]
    middle = math.fsum(left) / 100
    wanted = 99 / 100 * math.fsum((one - middle) ** 2 for one in left)  # delete-a-group jackknife
    variance = math.fsum((one - whole["m"]) ** 2 for one in found) / 299 / 300
    assert variance == pytest.approx(wanted, rel=1e-9)


def test_one_row_has_no_jackknife():
    assert corpus_values(1, {"m": 0.5}, lambda rows: pytest.fail("asked")) == {"m": [0.5]}

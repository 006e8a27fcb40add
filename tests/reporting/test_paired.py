"""Paired tests, held against arithmetic by hand and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmft.reporting.paired import interval, mcnemar, paired


def test_mcnemar_is_the_binomial_tail():
    # 1 lost and 5 won of 6 that differ: 2 * (1 + 6) / 64
    assert mcnemar(1, 5) == mcnemar(5, 1) == pytest.approx(14 / 64)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 1024)


def test_the_interval_is_the_normal_one_for_many_rows():
    values = np.random.default_rng(0).normal(0.3, 1.0, 2000)
    low, high = interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval(values.tolist()) == (low, high)
    assert interval([0.5, 0.5]) == (0.5, 0.5)


def row(prompt: str, right: float, **more) -> dict:
    return {"prompt": prompt, "right": ["x"], "exact_match": right, **more}


def test_rows_are_paired_by_what_they_ask_and_not_by_their_place():
    first = [row(f"q{n}", 0.0, f1=0.25) for n in range(30)]
    second = [row(f"q{n}", float(n % 3 > 0), f1=0.5) for n in reversed(range(10, 40))]
    exact, f1 = paired(first, second)
    assert (exact.metric, exact.rows, exact.first) == ("exact_match", 20, 0.0)
    wins = sum(n % 3 > 0 for n in range(10, 30))
    assert exact.second == wins / 20
    assert exact.p == mcnemar(0, wins)
    assert exact.seen
    assert (f1.low, f1.high, f1.p) == (0.25, 0.25, None)


def test_equal_prompts_are_paired_in_their_order():
    first, second = [row("q", 0.0), row("q", 1.0)], [row("q", 0.0), row("q", 0.0), row("q", 1.0)]
    (found,) = paired(first, second)
    assert (found.rows, found.first, found.second) == (2, 0.5, 0.0)
    assert not found.seen


def test_nothing_in_common_gives_nothing():
    assert paired([row("a", 1.0)], [row("b", 1.0)]) == []
    assert paired([], []) == []

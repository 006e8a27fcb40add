"""The builtin metrics pass the public kit, and give what is computed by hand."""

from __future__ import annotations

import pytest
from llmft_metrics.distinct import Distinct
from llmft_metrics.exact_match import ExactMatch
from llmft_metrics.f1 import F1
from llmft_metrics.final_number import FinalNumber

from llmft.api import PromptRow, ScoredAnswer
from llmft.testing import MetricContract


class TestExactMatch(MetricContract):
    method_class = ExactMatch
    configs = [{}, {"first_line": True, "name": "em"}]


class TestF1(MetricContract):
    method_class = F1
    configs = [{}, {"first_line": True}]


class TestFinalNumber(MetricContract):
    method_class = FinalNumber


class TestDistinct(MetricContract):
    method_class = Distinct
    configs = [{}, {"n": 1}, {"n": 10}]


def answered(text: str, *references: str) -> ScoredAnswer:
    return ScoredAnswer("?", text, references, PromptRow("?", references))


@pytest.mark.parametrize(
    ("metric", "settings", "text", "value"),
    [
        (ExactMatch, {}, "the Oslo!", 1.0),
        (ExactMatch, {}, "Oslo\nOslo is", 0.0),
        (ExactMatch, {"first_line": True}, "Oslo\nOslo is", 1.0),
        (F1, {}, "Oslo in Norway", 0.5),  # precision 1/3, recall 1
        (F1, {"first_line": True}, "Oslo\nin Norway", 1.0),
    ],
)
def test_values_of_one_answer_by_hand(metric, settings, text, value):
    made = metric(metric.Config(method=metric.method, **settings))
    assert made.score(answered(text, "Oslo")) == pytest.approx(value)


def test_the_final_number_is_compared_as_a_number():
    made = FinalNumber(FinalNumber.Config(method="final_number"))
    assert made.score(answered("so 1,000.00", "it is 1000")) == 1.0
    assert made.score(answered("so 100", "it is 1000")) == 0.0


@pytest.mark.parametrize(("n", "value"), [(1, 4 / 7), (2, 4 / 5), (3, 1.0), (5, 0.0)])
def test_distinct_counts_ngrams_over_all_answers(n, value):
    # a b a c | a b d: words a a a b b c d; pairs ab ba ac ab bd; three: aba bac abd
    made = Distinct(Distinct.Config(method="distinct", n=n))
    assert made.score_corpus([answered("a b a c"), answered("a b d")]) == pytest.approx(value)

"""Metrics in a recipe: by name or as a block, each with a name of its own, and a direction."""

from __future__ import annotations

import pytest

from tests.recipes.fakes import GOOD

ASKED = "evaluate: {metrics: [exact_match, f1], limit: 500}"


def evaluate(text: str) -> str:
    assert ASKED in GOOD
    return GOOD.replace(ASKED, f"evaluate: {{{text}}}")


@pytest.mark.parametrize("text", [
    "metrics: [words, loss]",
    "metrics: [f1, {method: words, most: 3}]",
    "metrics: [{method: words}, {method: words, name: some, most: 3}, {method: chars, most: 9}]",
    "metrics: [words], eval_strategy: epoch, metric_for_best_model: words, generate_every: 1",
    "metrics: [{method: words, most: 60}], eval_strategy: epoch, generate_every: 2,"
    " metric_for_best_model: words_most",
])  # fmt: skip
def test_what_works_is_taken(faults, text):
    assert not faults(evaluate(text))


@pytest.mark.parametrize(("text", "code", "said", "column"), [
    ("metrics: [word]", "E043", "no metric is called 'word'; there is loss, perplexity,"
     " exact_match, f1, chars, words", 26),
    ("metrics: [{method: word}]", "E024", "no metric is called 'word'", 35),
    ("metrics: [loss, {most: 3}]", "E021", "'method' is missing", 32),
    ("metrics: [{method: words, mots: 3}]", "E020", "mots", 42),
    ("metrics: [{method: words, most: 0}]", "E023", "at least 1", 48),
    ("metrics: [chars]", "E021", "the metric 'chars' has settings that must be given", 26),
    ("metrics: [words, {method: words}]", "E040", "two scores would be called 'words'", 33),
    ("metrics: [f1, {method: words, name: f1}]", "E040", "would be called 'f1'", 30),
    ("metrics: [{method: words, name: loss}]", "E040", "would be called 'loss'", 26),
    ("metrics: [{method: words, most: 13}]", "E502", "ZeroDivisionError: thirteen", 26),
    ("metrics: [words], eval_strategy: epoch, metric_for_best_model: words", "E040",
     "'words' scores generated answers, and none are generated", 79),
    ("metrics: [loss], eval_strategy: epoch, metric_for_best_model: words", "E043",
     "'words' is to choose the best evaluation, and this stage scores loss", 78),
])  # fmt: skip
def test_what_cannot_work_is_refused_at_its_place(faults, text, code, said, column):
    found = faults(evaluate(text))
    assert [fault.code for fault in found] == [code], found
    assert said in found[0].what
    assert found[0].place.line == 17
    assert found[0].place.column == column

"""The metric that chooses the best evaluation is one that the stage scores during training."""

from __future__ import annotations

import pytest

from tests.recipes.fakes import GOOD

ASKED = "evaluate: {metrics: [exact_match, f1], limit: 500}"


def evaluate(text: str) -> str:
    assert ASKED in GOOD
    return GOOD.replace(ASKED, f"evaluate: {{{text}}}")


@pytest.mark.parametrize(("text", "code", "said"), [
    ("load_best_model_at_end: true", "E040", "has an effect only where a stage is scored during"),
    ("generate_every: 2", "E040", "has an effect only where a stage is scored during"),
    ("eval_steps: 2", "E040", "has an effect only where a stage is scored during"),
    ("eval_strategy: epoch, eval_steps: 2", "E040", "no effect with eval_strategy 'epoch'"),
    ("eval_strategy: epoch, early_stopping_threshold: 0.1", "E040", "early_stopping_patience"),
    ("eval_strategy: epoch, greater_is_better: true", "E040", "the best evaluation is chosen"),
    ("eval_strategy: steps, eval_steps: 0", "E023", "must be at least 1, got 0"),
    ("eval_strategy: steps, eval_steps: 1.5", "E023", "must be less than 1, got 1.5"),
    ("eval_strategy: epoch, load_best_model_at_end: true, metrics: [f1]", "E043", "scores f1"),
    ("eval_strategy: epoch, metric_for_best_model: eval_loss", "E043", "'eval_loss' is to choose"),
    ("eval_strategy: epoch, metric_for_best_model: f1, metrics: [f1]", "E040",
     "none are generated during training"),
])  # fmt: skip
def test_what_cannot_work_is_refused(faults, text, code, said):
    found = faults(evaluate(text))
    assert [fault.code for fault in found] == [code]
    assert said in found[0].what
    assert found[0].fix or code == "E023"
    assert found[0].place.line == 17


@pytest.mark.parametrize("text", [
    "eval_strategy: epoch, load_best_model_at_end: true",
    "eval_strategy: steps, eval_steps: 0.25, early_stopping_patience: 2",
    "eval_strategy: epoch, metric_for_best_model: f1, metrics: [f1], generate_every: 1",
    "eval_strategy: epoch, metric_for_best_model: perplexity, metrics: [perplexity]",
])  # fmt: skip
def test_what_works_is_taken(faults, text):
    assert not faults(evaluate(text))

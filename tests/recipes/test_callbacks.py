"""Callbacks in a recipe: blocks under a stage's `plugins`, each checked."""

from __future__ import annotations

import pytest

from tests.recipes.fakes import GOOD

ASKED = "    evaluate: {metrics: [exact_match, f1], limit: 500}\n"


def plugins(text: str, evaluate: str = "", *, steps: str = "num_train_epochs: 1") -> str:
    assert ASKED in GOOD
    scored = f"    evaluate: {{metrics: [loss], {evaluate}}}\n" if evaluate else ASKED
    made = GOOD.replace(ASKED, f"{scored}    plugins: {text}\n")
    return made.replace("num_train_epochs: 1", steps)


@pytest.mark.parametrize(("text", "evaluate"), [
    ("[]", ""),
    ("[{method: watch}, {method: watch, every: 2}, {method: average}]", ""),
    ("[{method: follow}]", "eval_strategy: epoch"),
])  # fmt: skip
def test_what_works_is_taken(faults, text, evaluate):
    assert not faults(plugins(text, evaluate))


@pytest.mark.parametrize(("text", "code", "said", "fix"), [
    ("[watch]", "E022", "expected a block of settings", "write {method: watch}"),
    ("[{method: watsh}]", "E024", "no callback is called 'watsh'", ""),
    ("[{every: 2}]", "E021", "'method' is missing", "write one of average, follow, watch"),
    ("[{method: watch, evry: 2}]", "E020", "evry", "every"),
    ("[{method: watch, every: 0}]", "E023", "at least 1", ""),
    ("[{method: watch, every: 99}]", "E040", "it never looks", "lower it"),
    ("[{method: watch, every: 13}]", "E502", "ZeroDivisionError: thirteen", ""),
    ("[{method: follow}]", "E040", "'follow' follows the scores of held-out rows",
     "write evaluate: {eval_strategy: epoch}"),
    ("[{method: average}, {method: watch}, {method: average}]", "E040",
     "each of these gives the weights", "keep one of them"),
])  # fmt: skip
def test_what_cannot_work_is_refused(faults, text, code, said, fix):
    found = faults(plugins(text, steps="max_steps: 50"))
    assert [fault.code for fault in found] == [code], found
    assert said in found[0].what
    assert fix in found[0].fix


def test_a_task_has_no_steps_for_them(faults):
    made = GOOD.replace("alignment: {method: sft}", "task: {method: collect}", 1)
    text = made.replace("      num_train_epochs: 1\n      learning_rate: 2e-4\n", "")
    text = text.replace(ASKED, "    plugins: [{method: watch}]\n")
    text = text.replace("    adapter: {method: lora, r: 16, lora_alpha: 32}\n", "")
    text = text.replace("path: rows.jsonl, split: train", "path: rows.jsonl, kind: prompt")
    assert any("'plugins' has no effect" in fault.what for fault in faults(text))


def test_a_plugin_of_the_run_is_not_one_of_a_stage(faults):
    text = GOOD + "plugins: [timer]\n"
    assert not faults(text)
    (fault,) = faults(plugins("[{method: timer}]"))
    assert "no callback is called 'timer'" in fault.what

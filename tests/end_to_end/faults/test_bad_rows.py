"""Rows that repeat, and settings that are no settings here."""

from __future__ import annotations

import pytest

from llmft.api import CompletionRow
from llmft.cli.main import main
from llmft.data.duplicates import duplicates


def rows(*numbers: int) -> list[CompletionRow]:
    return [
        CompletionRow(prompt=f"say {n}", completion=str(n), origin=f"file:{at}")
        for at, n in enumerate(numbers)
    ]


def test_d12_rows_that_repeat_and_rows_that_are_judged_and_learnt_are_counted():
    assert duplicates(rows(1, 2, 3), rows(4)).note() == ""
    assert duplicates(rows(1, 2, 2, 2), ()).note() == "2 of 4 training rows repeat another one"
    both = duplicates(rows(1, 2), rows(2, 3)).note()
    assert both.startswith("1 of 2 evaluation rows are also training")


def test_d12_the_run_says_so(recipe_file, capsys):
    made = [{"prompt": f"say {n % 5}", "completion": " x"} for n in range(12)]
    path = recipe_file(made, evaluate={"metrics": ["loss"], "holdout": 0.3})
    assert main(["run", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "training rows repeat another one" in said
    assert "evaluation rows are also training rows" in said


@pytest.mark.parametrize(("changes", "key"), [
    ({"data": {"shuffle_buffer": 9}}, "shuffle_buffer"),
    ({"train": {"load_best_model_at_end": True}}, "load_best_model_at_end"),
    ({"train": {"stop_if": "loss > 9"}}, "stop_if"),
])  # fmt: skip
def test_what_is_no_setting_is_refused_and_never_ignored(recipe_file, capsys, changes, key):
    assert main(["validate", str(recipe_file(**changes))]) == 2
    said = capsys.readouterr()
    assert key in said.out + said.err
    assert "error[" in said.out + said.err

"""The promise of the first page: nothing known before, most of it after, on unseen questions."""

from __future__ import annotations

import pytest

from llmft.cli.commands import shipped
from llmft.engine.session import run_recipe
from llmft.inference.answering import answer, load_run
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry


@pytest.mark.extended
def test_the_quickstart_teaches_a_model_to_answer_what_it_was_never_asked(tmp_path):
    registry = Registry.discover()
    overrides = [f"output_dir={tmp_path}"]
    summary = run_recipe(load_recipe(shipped.find("quickstart"), registry, overrides))
    stage = summary.stages["sft"]
    assert stage.before["exact_match"] <= 0.05
    assert stage.after["exact_match"] >= 0.5
    (said,) = answer(
        load_run(summary.folder, registry), summary.folder, ["What is the capital of Australia?"]
    )
    assert said == "Canberra"

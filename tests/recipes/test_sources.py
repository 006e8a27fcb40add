"""What the sources of a mixture are called."""

from __future__ import annotations

import pytest
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.mix import Mix

from llmft.recipes.sources import metric_of_source, scored_as, source_names


def names(*sources: dict) -> list[str]:
    made = [Jsonl.Config.model_validate({"method": "jsonl", **one}) for one in sources]
    return source_names(Mix.Config(method="mix", sources=made))


def test_each_source_has_a_name_of_its_own():
    same = {"path": "rows/a.jsonl"}
    assert names(same, same, same, same) == ["a", "a_2", "a_3", "a_4"]
    assert names(same, {"path": "b.jsonl"}, same, {"path": "other/b.jsonl"}) == [
        "a", "b", "a_2", "b_2"
    ]  # fmt: skip
    given = {"path": "c.jsonl", "name": "a_2"}
    assert names(same, same, given) == ["a", "a_3", "a_2"], "a name that is given is kept"


@pytest.mark.parametrize(
    ("metric", "known", "of"),
    [("a_loss", ["a"], "loss"), ("a_2_loss", ["a", "a_2"], "loss"), ("loss", ["a"], "loss")],
)
def test_the_score_of_a_source_is_of_a_metric(metric, known, of):
    assert metric_of_source(metric, known) == of
    assert scored_as("a", "loss") == "a_loss"

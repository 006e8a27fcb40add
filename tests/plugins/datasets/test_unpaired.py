"""Single answers with a label, in the forms in which people keep them."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.unpaired import Unpaired

from llmft.api.errors import DataError
from llmft.testing import DatasetContract

ASKED = {"role": "user", "content": "why?"}
SAID = {"role": "assistant", "content": "so"}


def row_of(record, **settings):
    block = {"method": "unpaired", "path": "rows.jsonl", **settings}
    return Unpaired(Unpaired.Config.model_validate(block)).row(record, "rows.jsonl:3")


class TestUnpaired(DatasetContract):
    method_class = Unpaired
    configs = [{"path": "rows.jsonl"}, {"path": "rows.jsonl", "columns": {"label": "up"}}]
    bad_records = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": None},
        {"prompt": "a", "completion": "b", "label": "perhaps"},
        {"prompt": "a", "completion": "b", "label": -1},
        {"prompt": "", "completion": "b", "label": True},
        {"prompt": "a", "completion": " ", "label": True},
        {"completion": "b", "label": True},
        {"prompt": [ASKED], "completion": [ASKED], "label": True},
        {"prompt": [ASKED], "completion": [{**SAID, "reasoning_content": "r"}], "label": True},
    ]

    def write(self, folder):
        path = folder / "rows.jsonl"
        row = {"prompt": "a", "completion": "b", "label": False}
        path.write_text("".join(json.dumps(row) + "\n" for _ in range(2)))
        return {"path": str(path)}


@pytest.mark.parametrize(
    ("label", "read"), [(True, True), (False, False), (1, True), (0, False), (1.0, True),
                        ("True", True), (" false", False), ("0", False)],
)  # fmt: skip
def test_a_label_is_true_or_false_however_it_is_written(label, read):
    row = row_of({"prompt": "p", "completion": "c", "label": label})
    assert (row.prompt, row.completion, row.label) == ("p", "c", read)
    assert row.origin == "rows.jsonl:3"


@pytest.mark.parametrize("record", [
    {"prompt": [ASKED], "completion": [SAID]},
    {"prompt": "why?", "completion": [SAID]},
    {"prompt": [ASKED], "completion": "so"},
    {"completion": [ASKED, SAID]},
])  # fmt: skip
def test_messages_are_a_prompt_and_the_last_answer(record):
    as_text = {k: json.dumps(v) if isinstance(v, list) else v for k, v in record.items()}
    for form in (record, as_text):  # a cell of a CSV file holds them as JSON
        row = row_of({**form, "label": True})
        assert [dict(turn) for turn in row.prompt] == [ASKED]
        assert row.completion == "so"


def test_chat_makes_a_text_a_users_message():
    row = row_of({"prompt": "why?", "completion": " so", "label": 1}, chat=True)
    assert ([dict(turn) for turn in row.prompt], row.completion) == ([ASKED], "so")


def test_a_wrong_label_is_named_with_its_value_and_a_way_out():
    with pytest.raises(DataError, match=r"rows\.jsonl:3: the label 'label' is 'perhaps'") as caught:
        row_of({"prompt": "p", "completion": "c", "label": "perhaps"})
    assert "data.columns.label" in caught.value.faults[0].fix
    with pytest.raises(DataError, match="the label 'up' is not there"):
        row_of({"prompt": "p", "completion": "c"}, columns={"label": "up"})


def test_a_smoke_run_has_answers_of_both_labels():
    config = Unpaired.Config.model_validate({"method": "unpaired", "path": "x", "columns": {
        "prompt": "Q {q}", "label": "up", "answers": "right"}})  # fmt: skip
    dataset = Unpaired(config)
    rows = [dataset.row(record, "r") for record in dataset.example_records()]
    assert {row.label for row in rows} == {True, False}
    assert rows[0].prompt == "Q example 0"

"""Texts with a class, in the forms in which people keep them."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.classification import Classification

from llmft.api.errors import DataError
from llmft.testing import DatasetContract

ASKED = {"role": "user", "content": "why?"}


def row_of(record, **settings):
    block = {"method": "classification", "path": "rows.jsonl", **settings}
    made = Classification(Classification.Config.model_validate(block))
    return made.row(record, "rows.jsonl:3")


class TestClassification(DatasetContract):
    method_class = Classification
    configs = [{"path": "rows.jsonl"}, {"path": "rows.jsonl", "columns": {"text_pair": "b"}}]
    bad_records = [
        {"text": "a"},
        {"text": "a", "label": None},
        {"text": "a", "label": " "},
        {"text": "a", "label": {"x": 1}},
        {"text": "a", "label": [None]},
        {"text": "a", "label": float("nan")},
        {"text": " ", "label": 1},
        {"messages": [], "label": 1},
        {"label": 1},
    ]

    def write(self, folder):
        path = folder / "rows.jsonl"
        rows = [{"text": "a", "label": 0}, {"text": "b", "label": "yes"}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": str(path)}


@pytest.mark.parametrize(
    ("label", "read"),
    [(True, "true"), (3, 3), (" yes ", "yes"), (2.5, 2.5), ([0, "b"], (0, "b")), ([], ())],
)
def test_a_label_is_a_name_a_number_or_a_list_of_them(label, read):
    row = row_of({"text": "a", "label": label})
    assert (row.prompt, row.label, row.origin) == ("a", read, "rows.jsonl:3")


def test_what_is_classified_is_a_text_a_pair_or_a_conversation():
    record = {"text": "a", "b": "c", "messages": [ASKED], "label": 1}
    assert row_of(record, columns={"text_pair": "b"}).text_pair == "c"
    assert row_of(record, columns={"text": "{text} {b}"}).prompt == "a c"
    assert row_of({"messages": [ASKED], "label": 1}).prompt == (ASKED,)
    assert row_of(record, chat=True).prompt == ({"role": "user", "content": "a"},)
    with pytest.raises(DataError, match="has no second text"):
        row_of(record, columns={"text": "messages", "text_pair": "b"})


def test_a_row_without_a_label_can_be_read_to_be_classified():
    block = {"method": "classification", "path": "rows.jsonl"}
    made = Classification(Classification.Config.model_validate(block))
    assert made.unlabelled({"text": "a"}, "f:1").label is None

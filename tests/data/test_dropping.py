"""Rows that a recipe leaves out: each setting acts, the rest stays, and all is counted."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.preference import Preference
from llmft_datasets.prompts import Prompts
from pydantic import ValidationError

from llmft.api.errors import DataError
from llmft.api.method_settings import Condition, DropRows
from llmft.assets.tiny_tokenizer import tiny_tokenizer
from llmft.data.encoding import Encoder
from llmft.data.stage_rows import stage_rows
from llmft.data.usable_rows import read_rows
from llmft.recipes.recipe import Stage
from tests.every_setting import Case, Lab, check, without_case

ROWS = [
    {"prompt": "a", "completion": "b", "lang": "en", "score": 1.5, "ok": True, "note": ""},
    {"prompt": "c", "completion": "d", "lang": "de", "score": "3", "ok": False, "note": "n"},
    {"prompt": "a", "completion": "b", "lang": "fr", "score": 4, "ok": True, "note": None},
    {"prompt": "a b c d e", "completion": "g", "lang": "en", "score": 5, "ok": False, "note": "m"},
]  # fmt: skip


def data(folder, rows=ROWS, cls=Jsonl, **settings):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return cls(cls.Config.model_validate({"method": cls.method, "path": str(path), **settings}))


def encoder():
    return Encoder(tiny_tokenizer(), None)


def whole(dataset, **stage):
    block = {"name": "s", "adapter": {"method": "lora"}, "alignment": {"method": "sft"}, **stage}
    return stage_rows(Stage.model_validate(block), dataset, 0, encoder)


def kept(block, lab):
    """Return the languages of the rows that stay."""
    dataset = data(lab.folder, drop=block.model_dump(exclude_none=True))
    places = [int(row.origin.rpartition(":")[2]) for row in whole(dataset)[0].rows]
    return [ROWS[place - 1]["lang"] for place in places]


def by(condition, lab):
    return kept(DropRows(where=[condition]), lab)


CONDITION = {
    "column": Case("lang", by, ["de", "fr"], also={"equals": "en"}),
    "equals": Case("en", by, ["de", "fr"], also={"column": "lang"}, alone=True),
    "not_equals": Case("en", by, ["en", "en"], also={"column": "lang"}, alone=True),
    "one_of": Case(["en", "de"], by, ["fr"], also={"column": "lang"}, alone=True),
    "none_of": Case(["en", "de"], by, ["en", "de", "en"], also={"column": "lang"}, alone=True),
    "below": Case(3.5, by, ["fr", "en"], also={"column": "score"}, alone=True),
    "above": Case(3.5, by, ["en", "de"], also={"column": "score"}, alone=True),
    "is_empty": Case(True, by, ["de", "en"], also={"column": "note"}, alone=True),
}
DROP = {
    "duplicates": Case(True, kept, ["en", "de", "en"]),
    "shorter_than": Case(6, kept, ["en"]),
    "longer_than": Case(5, kept, ["en", "de", "fr"]),
    "where": Case([{"column": "ok", "equals": True}], kept, ["de", "en"]),
}


@pytest.mark.parametrize("name", CONDITION)
def test_every_test_of_a_column_leaves_out_the_rows_it_says(tmp_path, monkeypatch, name):
    check(Condition, name, CONDITION[name], Lab(tmp_path, monkeypatch))


@pytest.mark.parametrize("name", DROP)
def test_every_setting_leaves_out_the_rows_it_says(tmp_path, monkeypatch, name):
    check(DropRows, name, DROP[name], Lab(tmp_path, monkeypatch))


def test_no_setting_is_without_a_case():
    assert not without_case(Condition, CONDITION)
    assert not without_case(DropRows, DROP)


def test_what_is_left_out_is_counted_with_why(tmp_path):
    where = [{"column": "lang", "one_of": ["de"]}, {"column": "score", "below": 2}]
    drop = {"duplicates": True, "where": where, "longer_than": 5}
    train, _ = whole(data(tmp_path, [*ROWS, ROWS[2]], drop=drop))
    assert train.note() == (
        "left out of 5 rows: 1 longer than 5 tokens, 1 that repeat an earlier one,"
        " 1 where 'lang' is one of ['de'], 1 where 'score' is below 2.0"
    )
    assert [row.prompt for row in train.rows] == ["a"]
    assert "score" not in train.unread
    assert "ok" in train.unread


def test_held_out_rows_are_left_out_by_the_same_rules(tmp_path):
    train, held = whole(data(tmp_path, drop={"longer_than": 5}), evaluate={"split": "train"})
    assert len(train.rows) == len(held.rows) == 3


def test_of_two_answers_the_longer_one_counts_and_prompts_have_a_length(tmp_path):
    pairs = [{"prompt": "a b", "chosen": " c", "rejected": " " + "d " * n} for n in (1, 20)]
    train, _ = whole(data(tmp_path, pairs, Preference, drop={"longer_than": 10}))
    assert [row.origin[-1] for row in train.rows] == ["1"]
    asked = [{"prompt": "a"}, {"prompt": "a b c d"}]
    train, _ = whole(data(tmp_path, asked, Prompts, drop={"shorter_than": 4}))
    assert [row.prompt for row in train.rows] == ["a b c d"]


@pytest.mark.parametrize(
    ("where", "said"),
    [({"column": "x", "equals": 1}, "no column 'x'"),
     ({"column": "lang", "below": 1}, "the column 'lang' is no number")],
)  # fmt: skip
def test_a_test_that_a_row_cannot_answer_is_a_bad_row(tmp_path, where, said):
    with pytest.raises(DataError, match=said):
        read_rows(data(tmp_path, drop={"where": [where]}), "train", None)


@pytest.mark.parametrize("block", [{"column": "a"}, {"column": "a", "below": 1, "above": 2}])
def test_a_condition_has_one_test(block):
    with pytest.raises(ValidationError, match="write one of equals"):
        Condition.model_validate(block)


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no row is left: left out of 4 rows: 4 shorter"):
        whole(data(tmp_path, drop={"shorter_than": 99}))
    with pytest.raises(DataError, match="has no rows left: left out of 4"):
        whole(data(tmp_path, drop={"where": [{"column": "prompt", "not_equals": "z"}]}))

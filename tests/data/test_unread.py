"""Columns and keys that nobody reads."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
from llmft_datasets.chat import Chat
from llmft_datasets.jsonl import Columns, Jsonl
from llmft_datasets.preference import Preference
from llmft_datasets.triviaqa import TriviaQA

from llmft.api import PromptRow
from llmft.data import unread
from llmft.data.unread import Unread
from llmft.data.usable_rows import read_rows


def rows_of(tmp_path, records, cls, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_rows(cls(cls.Config(method=cls.method, path=str(path), **settings)), "train", None)


def test_columns_that_no_template_names_are_counted(tmp_path):
    records = [{"q": "a", "a": "b", "id": 1, "source": "web"}, {"q": "c", "a": "d", "id": 2}]
    found = rows_of(tmp_path, records, Jsonl, columns=Columns(prompt="Q: {q}", completion="a"))
    assert found.unread == {"id": 2, "source": 1}


def test_keys_of_messages_that_carry_meaning_are_named(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo", "mood": 0, "info": {"first": "A"}},
    ]
    found = rows_of(tmp_path, [{"id": 7, "messages": turns}], Chat)
    assert found.unread == {"id": 1, "messages[].info": 1, "messages[].mood": 1}


def test_a_question_beside_guessed_prompts_is_named(tmp_path):
    record = {"system": "", "question": "Who?", "chosen": "It is A.", "rejected": "It is B."}
    assert rows_of(tmp_path, [record], Preference, common_start=True).unread == {
        "question": 1,
        "system": 1,
    }


def test_what_a_method_takes_whole_counts_as_read(tmp_path):
    record = {"question": "Who?", "answer": {"value": "A", "type": "x"}, "more": 1}
    # triviaqa copies the record for its templates, so any column may be in one of them
    assert rows_of(tmp_path, [record], TriviaQA).unread == {"answer.type": 1}


@pytest.mark.parametrize("take", [dict.items, dict.values, dict.copy, lambda r: {**r}, json.dumps])
def test_going_over_the_values_reads_them(take):
    seen = Unread()
    record = seen.watched({"a": 1, "b": {"c": 2}})
    if take in (dict.items, dict.values, dict.copy):
        getattr(record, take.__name__)()
    else:
        take(record)
    seen.count(record, PromptRow("p"))
    assert "a" not in seen.columns
    assert "b" not in seen.columns


def test_going_over_the_names_reads_nothing():
    seen = Unread()
    record = seen.watched({"a": 1, "b": 2})
    assert list(record) == ["a", "b"]
    assert "a" in record
    assert len(record) == 2
    seen.count(record, PromptRow("p"))
    assert seen.columns == {"a": 1, "b": 1}


def test_what_a_row_keeps_is_read_and_can_be_copied():
    seen = Unread()
    record = seen.watched({"m": [{"role": "user", "content": "x", "calls": [{"name": "f"}]}]})
    row = PromptRow(tuple(record["m"]))
    seen.count(record, row)
    assert seen.columns == {}
    assert asdict(row)["prompt"] == copy.deepcopy(row.prompt) == tuple(record["m"])


def test_after_the_first_records_nothing_is_watched(monkeypatch):
    monkeypatch.setattr(unread, "WATCHED", 1)
    seen = Unread()
    assert type(seen.watched({"a": 1})) is not dict
    plain = {"a": 1}
    assert seen.watched(plain) is plain

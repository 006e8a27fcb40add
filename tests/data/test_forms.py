"""Which form a file's rows have: by the columns that people's files really have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmft.api.errors import DataError
from llmft.data.forms import forms_of

TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Her."}]
SHAREGPT = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Her."}]
ROWS: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "OpenAI": ({"messages": TURNS}, "chat", "chat", {}),
    "ShareGPT": ({"conversations": SHAREGPT, "id": 1}, "chat", "chat",
                 {"messages_column": "conversations"}),
    "TRL's prompts": ({"prompt": "Who?", "completion": "Her."}, "instruction", "jsonl", {}),
    "Alpaca": ({"instruction": "Who?", "input": "", "output": "Her.", "text": "all"},
               "instruction", "jsonl",
               {"columns": {"prompt": "instruction", "completion": "output", "input": "input"}}),
    "an input that is asked": ({"input": "Who?", "output": "Her."}, "instruction", "jsonl",
                               {"columns": {"prompt": "input", "completion": "output"}}),
    "the same in capitals": ({"Input": "Who?", "Output": "Her."}, "instruction", "jsonl",
                             {"columns": {"prompt": "Input", "completion": "Output"}}),
    "capitals": ({"Question": "Who?", "Answer": "Her."}, "instruction", "jsonl",
                 {"columns": {"prompt": "Question", "completion": "Answer"}}),
    "talks as JSON text": ({"messages": json.dumps(TURNS)}, "chat", "chat", {}),
    "TRL's prompts of messages": ({"prompt": TURNS[:1], "completion": TURNS[1:], "system": None},
                                  "instruction", "jsonl",
                                  {"columns": {"system": "system"}, "chat": True}),
    "a system text": ({"system": "Be brief.", "question": "Who?", "response": "Her."},
                      "instruction", "jsonl",
                      {"columns": {"prompt": "question", "completion": "response",
                                   "system": "system"}}),
    "pairs": ({"prompt": "Who?", "chosen": "Her.", "rejected": "Him."}, "preference",
              "preference", {}),
    "pairs of talks": ({"chosen": TURNS, "rejected": TURNS}, "preference", "preference", {}),
    "pairs without a prompt": ({"chosen": "Who? Her.", "rejected": "Who? Him."}, "preference",
                               "preference", {"common_start": True}),
    "pairs as in HH": ({"chosen": "\n\nHuman: Who?\n\nAssistant: Her.",
                        "rejected": "\n\nHuman: Who?\n\nAssistant: Him."}, "preference",
                       "preference", {}),
    "thumbs": ({"prompt": "Who?", "completion": "Her.", "label": False}, "unpaired", "unpaired",
               {}),
    "classes": ({"text": "Once.", "label": "story"}, "classification", "classification", {}),
    "classes of other names": ({"sentence": "Once.", "intent": 3}, "classification",
                               "classification",
                               {"columns": {"text": "sentence", "label": "intent"}}),
    "stories": ({"text": "Once.", "id": 4}, "text", "jsonl", {"columns": {"text": "text"}}),
    "one column": ({"essay": "Once."}, "text", "jsonl", {"columns": {"text": "essay"}}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_the_form_and_its_data_block_are_told(case):
    record, name, method, settings = ROWS[case]
    form = forms_of([record, record])[0]
    assert (form.name, form.method, form.settings) == (name, method, settings)


def test_texts_with_classes_can_be_read_as_text_alone_and_few_other_rows_as_classes():
    classes = [{"text": f"Text {n}.", "label": n % 3} for n in range(30)]
    assert [form.name for form in forms_of(classes)] == ["classification", "text"]
    for label in (lambda n: f"own {n}", lambda n: n / 2, lambda n: "x" if n else None):
        other = [{"text": f"Text {n}.", "label": label(n)} for n in range(30)]
        assert [form.name for form in forms_of(other)] == ["text"]
    asked = [{"prompt": "Who?", "completion": "Her.", "text": "all", "category": "a"}] * 3
    assert [form.name for form in forms_of(asked)] == ["instruction"]


def test_a_column_counts_only_where_every_row_fills_it():
    rows = [{"prompt": "Who?", "completion": "Her.", "chosen": "Her.", "rejected": ""}] * 2
    assert [form.name for form in forms_of(rows)] == ["instruction"]


def test_columns_that_nobody_reads_are_told():
    (form,) = forms_of([{"prompt": "Who?", "completion": "Her.", "source": "web", "id": 3}])
    assert form.unread == ("source", "id")


def test_rows_that_can_be_read_in_two_ways_have_both():
    row = {"messages": TURNS, "prompt": "Who?", "completion": "Her."}
    assert [form.name for form in forms_of([row])] == ["chat", "instruction"]


def test_only_pairs_with_a_prompt_of_text_can_teach_all_of_rlhf():
    (with_prompt,) = forms_of([{"prompt": "Who?", "chosen": "Her.", "rejected": "Him."}])
    (without,) = forms_of([{"chosen": TURNS, "rejected": TURNS}])
    assert "rlhf" in with_prompt.goals
    assert "rlhf" not in without.goals


@pytest.mark.parametrize(
    ("row", "there", "hint"),
    [
        ({"qestion": "Who?", "n": 3}, "'qestion' (text), 'n' (number)", "meant as 'question'"),
        ({"a": TURNS, "b": [1]}, "'a' (messages), 'b' (list)", "messages; prompt and completion"),
        ({}, "no column at all", "text"),
    ],
)
def test_rows_of_no_form_are_refused_with_their_columns_and_what_is_near(row, there, hint):
    with pytest.raises(DataError, match="no form that is known") as caught:
        forms_of([row])
    assert there in caught.value.faults[0].what
    assert hint in caught.value.faults[0].fix

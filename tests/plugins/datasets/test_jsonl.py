"""Rows of one's own: through the chat template, or in Alpaca's style, with parts that may lack."""

from __future__ import annotations

import pytest
from llmft_datasets.jsonl import Jsonl
from pydantic import ValidationError

from llmft.api import DataError

COLUMNS = {"prompt": "instruction", "input": "input", "completion": "output"}
BARE = {"instruction": "Name a town.", "output": "Ulm."}
GIVEN = {"instruction": "Translate.", "input": "dog", "output": "chien"}


def jsonl(**settings) -> Jsonl:
    return Jsonl(Jsonl.Config(method="jsonl", path="rows.jsonl", **settings))


def turns(prompt) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in prompt]


def test_instructions_become_a_user_turn_with_their_input():
    data = jsonl(columns=COLUMNS, chat=True)
    row = data.row(GIVEN, "x:1")
    assert turns(row.prompt) == [("user", "Translate.\ndog")]
    assert row.completion == "chien"
    for empty in ({}, {"input": None}, {"input": ""}, {"input": " "}, {"input": float("nan")}):
        assert turns(data.row({**BARE, **empty}, "x:1").prompt) == [("user", "Name a town.")]


def test_alpacas_two_prompts_are_written_by_whether_there_is_an_input():
    data = jsonl(columns=COLUMNS, prompt_style="alpaca")
    assert data.row(GIVEN, "x:1").prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further"
        " context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nTranslate.\n\n### Input:\ndog\n\n### Response:\n"
    )
    without = (
        "Below is an instruction that describes a task. Write a response that appropriately"
        " completes the request.\n\n### Instruction:\nName a town.\n\n### Response:\n"
    )
    for empty in ({}, {"input": None}, {"input": ""}):
        assert data.row({**BARE, **empty}, "x:1").prompt == without
    assert data.ask("Name a town.") == without


def test_braces_in_a_row_are_not_a_template():
    row = jsonl(columns=COLUMNS, prompt_style="alpaca").row({**BARE, "input": "{x}"}, "x:1")
    assert "### Input:\n{x}\n" in row.prompt


def test_a_field_of_a_template_may_be_optional():
    data = jsonl(columns={"prompt": "{instruction} [{input?}]", "completion": "output"})
    assert data.row(GIVEN, "x:1").prompt == "Translate. [dog]"
    assert data.row(BARE, "x:1").prompt == data.row({**BARE, "input": None}, "x:1").prompt
    strict = jsonl(columns={"prompt": "{instruction} [{input}]", "completion": "output"})
    for record in (BARE, {**BARE, "input": None}):
        with pytest.raises(DataError, match=r"x:1: .*'input'") as caught:
            strict.row(record, "x:1")
        assert caught.value.faults[0].fix.startswith("write {input?} in the template")


def test_history_and_system_come_before_the_question():
    data = jsonl(
        columns={**COLUMNS, "system": "system", "history": "history"}, chat=True, system="Be kind."
    )
    record = {**BARE, "system": "Be brief.", "history": [["Hi", "Hello"], ["So?", "Well."]]}
    assert turns(data.row(record, "x:1").prompt) == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "So?"),
        ("assistant", "Well."), ("user", "Name a town."),
    ]  # fmt: skip
    messages = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert turns(data.row({**BARE, "history": messages}, "x:1").prompt) == [
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Name a town."),
    ]  # fmt: skip
    assert turns(data.ask("Why?")) == [("system", "Be kind."), ("user", "Why?")]
    for history, said in (([["Hi"]], "not two texts"), (messages[:1], "does not end with")):
        with pytest.raises(DataError, match=said):
            data.row({**BARE, "history": history}, "x:1")


@pytest.mark.parametrize(("settings", "said"), [
    ({"columns": {"text": "t"}, "chat": True}, "neither chat nor prompt_style"),
    ({"columns": {"text": "t"}, "prompt_style": "alpaca"}, "neither chat nor prompt_style"),
    ({"system": "Be brief."}, "need the chat template"),
    ({"columns": {"history": "h"}}, "need the chat template"),
    ({"special_tokens": "parse"}, "is about plain text"),
])  # fmt: skip
def test_what_has_no_effect_is_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        jsonl(**settings)


def test_an_answer_that_cannot_be_seen_is_empty():
    with pytest.raises(DataError, match="the text is empty"):
        jsonl(columns=COLUMNS).row({**BARE, "output": "\u200b\ufeff"}, "x:1")

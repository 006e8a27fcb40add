"""Rows of one's own: through the chat template, or in Alpaca's style, with parts that may lack."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.jsonl import Jsonl
from pydantic import ValidationError

from llmft.api import DataError
from llmft.data.usable_rows import read_rows

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


@pytest.mark.parametrize("chat", [False, True])
def test_a_question_is_put_as_the_rows_are(chat):
    columns = {"prompt": "Summarise: {article}{more?}\nShort:", "completion": "summary"}
    asked = jsonl(columns=columns, chat=chat).ask("A {fox}.")
    text = "Summarise: A {fox}.\nShort:"
    assert asked == text if not chat else turns(asked) == [("user", text)]


def test_a_template_of_several_columns_is_filled_by_no_question():
    columns = {"prompt": "{article} in {language}:", "completion": "summary"}
    with pytest.raises(DataError, match=r"reads 2 columns \(article, language\)") as caught:
        jsonl(columns=columns).ask("x")
    assert "--raw" in caught.value.faults[0].fix


def test_a_completion_that_begins_with_its_prompt_is_refused_until_the_recipe_chooses():
    row = {"prompt": "Say it: ", "completion": "Say it: now"}
    for chat in (False, True):
        with pytest.raises(DataError, match="x:1: the completion begins with the prompt"):
            jsonl(chat=chat).row(row, "x:1")
        assert jsonl(chat=chat, repeated_prompt="strip").row(row, "x:1").completion.strip() == "now"
        kept = jsonl(chat=chat, repeated_prompt="keep").row(row, "x:1")
        assert kept.completion == "Say it: now"
    assert jsonl().row({"prompt": "2+2", "completion": "2+2=4"}, "x:1").completion == "2+2=4"


@pytest.mark.parametrize("text", [r"Q: {q}\nA:", r"{q}\n", r"{q}\tA:", r"{q}\n\nabc"])
def test_a_backslash_and_a_letter_in_a_template_are_no_line_break(text):
    with pytest.raises(ValidationError, match="write the template in double quotes"):
        jsonl(columns={"prompt": text, "completion": "a"})


@pytest.mark.parametrize("text", [r"{q} \nabla f \neq \nu", r"{q} \times \text{{a}}", "a\\nb"])
def test_latex_in_a_template_and_columns_with_a_backslash_stay(text):
    assert jsonl(columns={"prompt": text, "completion": "a"}).config.columns.prompt == text


def test_columns_inside_others_are_named_with_dots(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"q": {"text": "Who?", "id": 1, "by": {"name": "A"}}, "a": {"best": "Her."}, "x": {}}'
    )
    columns = {"prompt": "{q.by.name}: {q.text}", "completion": "a.best"}
    data = Jsonl(Jsonl.Config(method="jsonl", path=str(path), columns=columns))
    found = read_rows(data, "train", None)
    assert [(row.prompt, row.completion) for row in found.rows] == [("A: Who?", "Her.")]
    assert found.unread == {"q.id": 1, "x": 1}
    wrong = {**columns, "completion": "a.worst"}
    data = Jsonl(Jsonl.Config(method="jsonl", path=str(path), columns=wrong))
    with pytest.raises(DataError, match=r"no column 'a.worst' \(there is: .*a.best"):
        read_rows(data, "train", None)


@pytest.mark.parametrize(
    ("value", "said"), [(1990.0, "the number 1990.0"), (float("inf"), "inf, not text")]
)
def test_numbers_that_another_program_spoilt_are_named(value, said):
    with pytest.raises(DataError, match=f"x:1: the column 'completion' is {said}"):
        jsonl().row({"prompt": "p", "completion": value}, "x:1")
    assert jsonl().row({"prompt": "p", "completion": 1990}, "x:1").completion == "1990"
    assert jsonl().row({"prompt": "p", "completion": 0.5}, "x:1").completion == "0.5"


ASKED = [{"role": "user", "content": "Which town?"}]
ANSWER = {"role": "assistant", "content": "Ulm."}


@pytest.mark.parametrize("as_text", [False, True])
def test_a_prompt_and_a_completion_may_be_messages(as_text):
    """TRL's conversational prompt-completion rows, in JSONL or as JSON text in CSV."""
    given = {"prompt": ASKED, "completion": [ANSWER]}
    record = {k: json.dumps(v) for k, v in given.items()} if as_text else given
    row = jsonl(chat=True, system="Be brief.").row(record, "x:1")
    assert turns(row.prompt) == [("system", "Be brief."), ("user", "Which town?")]
    assert (row.completion, row.answers, row.message) == ("Ulm.", ("Ulm.",), None)
    thought = {**ANSWER, "reasoning_content": "A town."}
    assert jsonl(chat=True).row({**given, "completion": [thought]}, "x:1").message == thought
    assert jsonl(chat=True).row({**given, "completion": "Ulm."}, "x:1").completion == "Ulm."


@pytest.mark.parametrize("value", [ASKED, json.dumps(ASKED)])
def test_messages_are_not_learnt_as_text_unless_a_template_says_so(value):
    record = {"prompt": value, "completion": "Ulm."}
    with pytest.raises(DataError, match=r"'prompt' (is a list|holds messages), not text") as caught:
        jsonl().row(record, "x:1")
    assert "data.chat: true" in caught.value.faults[0].fix
    meant = jsonl(columns={"prompt": "{prompt}"})
    if isinstance(value, str):
        assert meant.row(record, "x:1").prompt == value


def test_messages_that_do_not_fit_the_settings_are_refused():
    several = {"prompt": ASKED, "completion": [ANSWER, *ASKED, ANSWER]}
    with pytest.raises(DataError, match="not one turn of the assistant's"):
        jsonl(chat=True).row(several, "x:1")
    with pytest.raises(DataError, match="holds messages, to which neither"):
        jsonl(chat=True, prompt_style="alpaca").row({**several, "completion": "Ulm."}, "x:1")


def test_a_truth_value_and_a_name_with_blanks_are_refused_with_what_to_do():
    with pytest.raises(DataError, match="is a bool, not text") as caught:
        jsonl().row({"prompt": "Even?", "completion": True}, "x:1")
    assert "yes and no" in caught.value.faults[0].fix
    with pytest.raises(DataError, match=r"there is: prompt, ' completion'") as caught:
        jsonl().row({"prompt": "Even?", " completion": "yes"}, "x:1")
    assert "blanks around 'completion'" in caught.value.faults[0].fix


def test_right_answers_may_be_numbers_and_none_is_refused():
    data = jsonl(columns={"answers": "a"})
    row = {"prompt": "2+2?", "completion": "4"}
    assert data.row({**row, "a": [4, " four", ""]}, "x:1").answers == ("4", " four")
    assert data.row({**row, "a": []}, "x:1").answers == ("4",)  # the completion
    for empty in ("", ["", " "]):
        with pytest.raises(DataError, match="x:1: the column 'a' holds no right answer"):
            data.row({**row, "a": empty}, "x:1")

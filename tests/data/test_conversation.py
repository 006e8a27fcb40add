"""Conversations in the spellings that people keep them in, and what in them is refused by name."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.chat import Chat

from llmft.api import ChatRow, CompletionRow, Conversation
from llmft.api.errors import DataError
from llmft.data.conversation import messages_in, messages_of, tools_of, untrained
from llmft.data.usable_rows import Rows, usable_rows

ASKED = {"role": "user", "content": "Weather?"}
ARGUMENTS = {"town": "Bern", "days": 3}
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}]
CALLED = {"role": "assistant", "content": "", "tool_calls": CALLS}
ANSWERED = ({"role": "tool", "content": "rain"}, {"role": "assistant", "content": "Rain."})


@pytest.mark.parametrize("call", [
    {"role": "assistant", "content": None,
     "tool_calls": [{"function": {"name": "weather", "arguments": '{"town": "Bern", "days": 3}'}}]},
    {"role": "assistant", "content": "", "function_call": {"name": "weather",
                                                           "arguments": ARGUMENTS}},
    {"from": "function_call",
     "value": '{"name": "weather", "arguments": {"town": "Bern", "days": 3}}'},
    {"from": "gpt", "value": "", "tool_calls": [{"name": "weather", "arguments": ARGUMENTS}]},
    {"from": "gpt", "value": "",
     "tool_calls": [{"name": "weather", "function": None, "arguments": ARGUMENTS}]},
    {"from": "function_call", "function_call": None, "tool_calls": None,
     "value": '{"name": "weather", "arguments": {"town": "Bern", "days": 3}}'},
    {"role": "assistant", "content": "", "tool_calls": [  # as tables in columns give it
        {"function": {"name": "weather", "arguments": {"town": "Bern", "days": 3, "none": None}}}]},
])  # fmt: skip
@pytest.mark.parametrize("tool", [
    {"role": "tool", "content": "rain"}, {"from": "observation", "value": "rain"},
    {"role": "function", "name": None, "content": [{"type": "text", "text": "rain"}]},
])  # fmt: skip
def test_tool_calls_are_read_in_every_spelling(call, tool):
    assert messages_of([ASKED, call, tool, ANSWERED[1]], "x:1") == (ASKED, CALLED, *ANSWERED)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_under_one_name(key):
    (_, answer) = messages_of([ASKED, {"role": "assistant", "content": "4", key: "2+2"}], "x:1")
    assert answer == {"role": "assistant", "content": "4", "reasoning_content": "2+2"}


def test_parts_of_text_are_joined_and_others_named():
    parts = [{"type": "text", "text": "Wea"}, {"type": "text", "text": "ther?"}]
    said = messages_of([{"role": "user", "content": parts}, ANSWERED[1]], "x:1")
    assert said == (ASKED, ANSWERED[1])
    with pytest.raises(DataError, match=r"x:1: turn 0 has a part of the type 'image_url'"):
        messages_of([{"role": "user", "content": [*parts, {"type": "image_url"}]}], "x:1")


@pytest.mark.parametrize(("turns", "said"), [
    ([ASKED, {"role": "assistant", "content": "\u200b\ufeff"}], "turn 1 has no text"),
    ([ASKED, {**CALLED, "tool_calls": [{"function": {}}]}], "turn 1 has a tool call without"),
    ([ASKED, {**CALLED, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
     "turn 1 has a tool call that is not JSON"),
    ([{**ASKED, "tool_calls": CALLS}], "turn 0 is the user's and has tool_calls"),
    ([ASKED, CALLED, ANSWERED[1]], "two assistant turns follow each other"),
    ([ASKED, {"role": "assistant", "content": 7}], "turn 1 has an int in place of text"),
])  # fmt: skip
def test_what_is_no_turn_is_named(turns, said):
    with pytest.raises(DataError, match=said):
        messages_of(turns, "x:1")


def test_weights_and_flags_say_what_is_not_learnt():
    turns = [ASKED, {"weight": 0}, {"train": False}, {"weight": 1, "trainable": True}]
    assert untrained(turns, "x:1") == (1, 2)
    for wrong in ({"weight": 0.5}, {"train": "no"}):
        with pytest.raises(DataError, match="x:1: turn 0"):
            untrained([wrong], "x:1")


def test_tools_may_be_json_text_and_bare_functions():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for form in ([tool], [tool["function"]], '[{"name": "f", "parameters": {}}]'):
        assert tools_of(form, "x:1") == (tool,)
    with pytest.raises(DataError, match="not a list of JSON schemas"):
        tools_of({"name": "f"}, "x:1")


def chat(**settings) -> Chat:
    return Chat(Chat.Config(method="chat", path="rows.jsonl", **settings))


TALK = [ASKED, {"role": "assistant", "content": "Rain."}]


def test_a_system_text_comes_from_the_messages_a_column_or_the_recipe():
    own = [{"role": "system", "content": "Mine."}, *TALK]
    said = [
        chat(**settings).row(record, "x:1").messages[0]["content"]
        for settings, record in (
            ({"system": "Recipe's."}, {"messages": TALK}),
            ({"system": "Recipe's."}, {"messages": TALK, "system": "Column's."}),
            ({"system": "Recipe's."}, {"messages": own}),
            ({"system_column": "s"}, {"messages": TALK, "s": "Other column's."}),
        )
    ]
    assert said == ["Recipe's.", "Column's.", "Mine.", "Other column's."]
    with pytest.raises(DataError, match="its messages have another one"):
        chat().row({"messages": own, "system": "Column's."}, "x:1")
    assert chat(system="Be brief.").ask("Hi")[0] == {"role": "system", "content": "Be brief."}


def test_tools_and_template_arguments_go_with_the_messages_and_into_the_digest():
    record = {
        "messages": TALK,
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"a": 1, "b": None},
    }
    row = chat().row(record, "x:1")
    assert isinstance(row.messages, Conversation)
    assert row.messages[:-1].tools[0]["function"]["name"] == "f"
    assert row.messages.template_kwargs == {"a": 1}
    bare = chat().row({"messages": TALK}, "x:1")
    assert tuple(bare.messages) == tuple(row.messages)
    assert bare.messages != row.messages
    assert Rows([bare]).digest != Rows([row]).digest
    assert repr(bare) != repr(row)


def test_weights_move_with_a_system_text_that_is_put_before():
    turns = [*TALK, ASKED, {"role": "assistant", "content": "Sun.", "weight": 0}]
    row = chat(system="Be brief.").row({"messages": turns}, "x:1")
    assert row == ChatRow(row.messages, "x:1", skip=(4,))
    with pytest.raises(DataError, match="its weight is 0"):
        chat(learn="last").row({"messages": turns}, "x:1")


def test_the_last_answer_alone_keeps_its_tool_calls():
    row = chat(learn="last").row({"messages": [ASKED, CALLED]}, "x:1")
    assert row == CompletionRow((ASKED,), "", (), "x:1", CALLED)


TALK_TEXT = json.dumps(TALK)


def test_messages_as_json_text_are_messages_and_as_python_prints_them_are_named():
    assert messages_in(TALK_TEXT, "x:1") == messages_in(TALK, "x:1") == TALK
    assert messages_in("[1] is a list", "x:1") is None
    assert messages_in("[{", "x:1") is None
    with pytest.raises(DataError, match=r"x:1: .* as Python prints a list") as caught:
        messages_of(str(TALK), "x:1")
    assert "json.dumps" in caught.value.faults[0].fix


@pytest.mark.parametrize("read", [messages_of, untrained])
def test_a_key_twice_in_json_text_is_refused(read):
    with pytest.raises(DataError, match="x:1: the key 'content' is there twice"):
        read('[{"role": "user", "content": "a", "content": "b"}]', "x:1")
    call = '{"name": "f", "name": "g"}'
    with pytest.raises(DataError, match="the key 'name' is there twice"):
        messages_of([ASKED, {"from": "function_call", "value": call}], "x:1")
    with pytest.raises(DataError, match="the key 'name' is there twice"):
        tools_of(f"[{call}]", "x:1")


@pytest.mark.parametrize(
    ("data", "text"), [([{"t": 3}], '[{"t": 3}]'), ({"t": None}, '{"t": null}'), (42, "42")]
)
def test_a_tools_answer_may_be_data(data, text):
    said = messages_of([ASKED, CALLED, {"role": "tool", "content": data}, ANSWERED[1]], "x:1")
    assert said[2]["content"] == text


def test_a_key_that_holds_nothing_is_not_there():
    turn = {"role": None, "content": None, "from": "human", "value": "Weather?"}
    assert messages_of([turn, ANSWERED[1]], "x:1") == (ASKED, ANSWERED[1])


def test_data_in_place_of_a_users_text_is_named():
    for content, what in (
        ({"t": 3}, "a dict"),
        (7, "an int"),
        ([{"t": 3}], "a part without 'text'"),
    ):
        with pytest.raises(DataError, match=f"turn 0 has {what}"):
            messages_of([{"role": "user", "content": content}], "x:1")


@pytest.mark.parametrize("deep", [130, 500, 990, 100_000])
def test_brackets_inside_brackets_are_named_wherever_a_cell_holds_json(deep):
    nest = "[" * deep + "]" * deep
    calls = [{"function": {"name": "f", "arguments": f'{{"a": {nest}}}'}}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}]
    for read in (
        lambda: messages_of(nest, "x:1"),
        lambda: messages_of(turns, "x:1"),
        lambda: tools_of(f'[{{"a": {nest}}}]', "x:1"),
    ):
        with pytest.raises(DataError, match="more than 128 deep"):
            read()


def test_as_many_brackets_as_a_schema_may_have_are_read():
    schema = '{"properties": ' * 50 + "{}" + "}" * 50
    assert tools_of(f'[{{"function": {schema}}}]', "x:1")
    assert len(tools_of("[" + ", ".join(['{"a": [1]}'] * 500) + "]", "x:1")) == 500


def test_half_a_surrogate_pair_in_a_cell_of_json_is_named():
    half = r'[{"role": "user", "content": "\ud83d"}]'
    with pytest.raises(DataError, match="half of a surrogate pair"):
        messages_of(half, "x:1")
    assert messages_of(half.replace(r"\ud83d", r"\ud83d\ude42"), "x:1")[0]["content"] == "🙂"


NULLS = {"town": "Bern", "days": None}
CALLS_NULLS = [{"function": {"name": "weather", "arguments": NULLS}}]
DEFAULT = {"function": {"name": "weather", "parameters": {"days": {"default": None}}}}


@pytest.mark.parametrize("value", [
    json.dumps([ASKED, {**CALLED, "tool_calls": CALLS_NULLS}, *ANSWERED]),
    [ASKED, {**CALLED, "tool_calls": json.dumps(CALLS_NULLS)}, *ANSWERED],
    [ASKED, {"from": "function_call", "value": json.dumps(CALLS_NULLS[0]["function"])}, *ANSWERED],
    [ASKED, {**CALLED, "tool_calls": [{"function": {"name": "weather",
                                                   "arguments": json.dumps(NULLS)}}]}, *ANSWERED],
])  # fmt: skip
def test_a_null_in_json_text_is_kept(value):
    found = messages_of(value, "x:1")[1]["tool_calls"][0]["function"]["arguments"]
    assert found == {"town": "Bern", "days": None}
    assert tools_of(json.dumps([DEFAULT]), "x:1") == (DEFAULT,)


@pytest.mark.parametrize(("record", "left_out"), [
    ({"messages": [ASKED, {**CALLED, "tool_calls": CALLS_NULLS}, *ANSWERED]}, 1),
    ({"messages": [ASKED, CALLED, *ANSWERED], "tools": [DEFAULT]}, 1),
    ({"messages": [ASKED, CALLED, *ANSWERED], "tools": json.dumps([DEFAULT])}, 0),
    ({"messages": [ASKED, {**CALLED, "function_call": None}, *ANSWERED], "tools": None}, 0),
    ({"messages": [ASKED, {**CALLED, "tool_calls": [{"id": None, **CALLS[0]}]}, *ANSWERED]}, 0),
])  # fmt: skip
def test_nulls_that_are_left_out_are_counted(record, left_out):
    data = Chat(Chat.Config(method="chat", path="x.jsonl"))
    found = usable_rows(data, iter([("x:1", record), ("x:2", record)]))
    said = "null values of tools and tool calls are left out"
    assert found.met.total() == 2 * left_out
    assert (f"{said}, as tables in columns fill them in; JSON text keeps them: 2 of 2 rows"
            in found.note()) == bool(left_out)  # fmt: skip

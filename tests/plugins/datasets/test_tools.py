"""The tools beside prompts of messages, which a chat template writes before them."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.jsonl import Jsonl
from llmft_datasets.preference import Preference
from llmft_datasets.prompts import Prompts
from llmft_datasets.unpaired import Unpaired

from llmft.api import Conversation
from llmft.api.errors import DataError

ASKED = [{"role": "user", "content": "Add 1."}]
ANSWER = {"role": "assistant", "content": "Three."}
CALL = {"role": "assistant", "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}  # fmt: skip
RESULT = {"role": "tool", "content": "3"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "int"}}}}]
PAIR = {"chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Four."}]}


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [TOOLS[0]["function"]]])
@pytest.mark.parametrize(("kind", "settings", "record"), [
    (Jsonl, {"chat": True}, {"prompt": ASKED, "completion": [CALL]}),
    (Jsonl, {"chat": True}, {"prompt": ASKED, "completion": "Three."}),
    (Jsonl, {"chat": True}, {"prompt": "Add 1.", "completion": [CALL]}),
    (Preference, {}, {"prompt": ASKED, **PAIR}),
    (Preference, {}, {"prompt": [*ASKED, CALL, RESULT], "chosen": "Three.", "rejected": "Four."}),
    (Preference, {}, {key: [*ASKED, *value] for key, value in PAIR.items()}),
    (Unpaired, {}, {"prompt": ASKED, "completion": [ANSWER], "label": True}),
    (Unpaired, {}, {"prompt": ASKED, "completion": "Three.", "label": True}),
    (Prompts, {}, {"prompt": [*ASKED, CALL, RESULT]}),
])  # fmt: skip
def test_tools_beside_a_prompt_of_messages_are_kept(kind, settings, record, tools):
    dataset = kind(kind.Config(method=kind.method, path="x.jsonl", **settings))
    prompt = dataset.row({**record, "tools": tools}, "x:1").prompt
    assert isinstance(prompt, Conversation)
    assert prompt.tools == tuple(TOOLS)
    assert not getattr(dataset.row(record, "x:1").prompt, "tools", ())
    assert not getattr(dataset.row({**record, "tools": None}, "x:1").prompt, "tools", ())
    with pytest.raises(DataError, match="x:1: the tools are not a list of JSON schemas"):
        dataset.row({**record, "tools": 3}, "x:1")


def test_a_column_called_tools_beside_texts_is_not_read():
    dataset = Jsonl(Jsonl.Config(method="jsonl", path="x.jsonl", chat=True))
    row = dataset.row({"prompt": "a", "completion": "b", "tools": "hammer"}, "x:1")
    assert row.prompt == ({"role": "user", "content": "a"},)

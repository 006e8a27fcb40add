"""Prompts to be answered, as texts and as conversations."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.prompts import Prompts

ASKED = [{"role": "user", "content": "why?"}]


@pytest.mark.parametrize("value", [ASKED, json.dumps(ASKED)])
def test_a_prompt_of_messages_is_a_conversation_also_as_json_text(value):
    block = {"method": "prompts", "path": "rows.jsonl"}
    row = Prompts(Prompts.Config.model_validate(block)).row({"prompt": value}, "rows.csv:2")
    assert [dict(turn) for turn in row.prompt] == ASKED

"""Prompts to be answered, as texts and as conversations."""

from __future__ import annotations

import json

import pytest
from llmft_datasets.prompts import Prompts

from llmft.api import DataError

ASKED = [{"role": "user", "content": "why?"}]


@pytest.mark.parametrize("value", [ASKED, json.dumps(ASKED)])
def test_a_prompt_of_messages_is_a_conversation_also_as_json_text(value):
    block = {"method": "prompts", "path": "rows.jsonl"}
    row = Prompts(Prompts.Config.model_validate(block)).row({"prompt": value}, "rows.csv:2")
    assert [dict(turn) for turn in row.prompt] == ASKED


def prompts(**block):
    settings = {"method": "prompts", "path": "rows.jsonl", **block}
    return Prompts(Prompts.Config.model_validate(settings))


def test_the_answer_that_messages_end_with_is_left_out_and_a_system_text_comes_first():
    made = prompts(remove_response=True, system="Be brief.")
    spoken = [*ASKED, {"role": "assistant", "content": "because"}]
    asked = [{"role": "system", "content": "Be brief."}, *ASKED]
    for value in (spoken, ASKED, [*asked, spoken[1]]):
        assert [dict(turn) for turn in made.row({"prompt": value}, "row").prompt] == asked
    own = [{"role": "system", "content": "Shout."}, *spoken]
    assert made.row({"prompt": own}, "row").prompt[0]["content"] == "Shout."
    own[0] = {"role": "developer", "content": "Shout."}
    assert made.row({"prompt": own}, "row").prompt[0]["content"] == "Shout."
    assert len(prompts().row({"prompt": spoken}, "row").prompt) == 2


def test_a_system_text_of_plain_prompts_is_refused():
    with pytest.raises(DataError, match="plain text") as found:
        prompts(system="Be brief.").row({"prompt": "why?"}, "rows.csv:2")
    assert found.value.faults[0].code == "E101"
    assert len(prompts(system="Be brief.", chat=True).row({"prompt": "why?"}, "r").prompt) == 2

"""A conversation: history through the template, streaming, the untrained model, and commands."""

from __future__ import annotations

import io
import json
import sys

import pytest

from llmft.api import SamplingParams
from llmft.api.errors import DataError, RecipeError
from llmft.cli.main import main
from llmft.inference.answering import answer
from llmft.inference.chatting import Conversation
from llmft.inference.trained import trained_stage
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names
GREEDY = SamplingParams(8, temperature=0.0)


@pytest.fixture(scope="module")
def trained(lora_run):
    return trained_stage(lora_run)


def asked_ids(talked: Conversation, monkeypatch) -> list[list[int]]:
    """Return a list that fills with the ids of every prompt that is answered."""
    from llmft.modeling import decoding

    seen, plain = [], decoding.decode

    def noting(model, prompts, *args, **more):
        seen.extend(list(prompt) for prompt in prompts)
        return plain(model, prompts, *args, **more)

    monkeypatch.setattr(decoding, "decode", noting)
    return seen


def test_the_pieces_are_the_answer_that_generate_gives(trained):
    talked, pieces = Conversation(trained, GREEDY, whole=False), []
    said = talked.reply("say 3:", pieces.append)
    assert "".join(pieces) == said
    (wanted,) = answer(trained.job, trained.run, ["say 3:"], max_new_tokens=8)
    assert said.strip() == wanted
    assert len(pieces) > 1


def test_turns_go_with_the_next_question_until_they_are_forgotten(trained, monkeypatch):
    talked = Conversation(trained, GREEDY, system="be brief")
    seen = asked_ids(talked, monkeypatch)
    first = talked.reply("one")
    talked.reply("two")
    talked.reset()
    talked.reply("three")
    texts = [trained.base.tokenizer.decode(ids) for ids in seen]
    assert texts[0] == "<system>be brief\n<user>one\n<assistant>"
    assert texts[1] == f"<system>be brief\n<user>one\n<assistant>{first}\n<user>two\n<assistant>"
    assert texts[2] == "<system>be brief\n<user>three\n<assistant>"


def test_the_untrained_model_answers_the_same_question(trained):
    talked = Conversation(trained, GREEDY, whole=False)
    with pytest.raises(RecipeError, match="nothing was asked"):
        talked.base_reply()
    mine = talked.reply("say 3:")
    base = talked.base_reply()
    (wanted,) = answer(trained.job, trained.run, ["say 3:"], max_new_tokens=8, with_adapter=False)
    assert base.strip() == wanted
    assert base != mine
    assert talked.reply("say 3:") == mine  # the adapter is back
    assert [m["role"] for m in talked.messages] == ["user", "assistant"] * 2


def test_each_sampled_answer_has_numbers_of_its_own(trained):
    params = SamplingParams(8, temperature=2.0, top_k=50)
    one, same, other = (Conversation(trained, params, seed=s, whole=False) for s in (1, 1, 2))
    first = one.reply("x")
    assert same.reply("x") == first
    assert other.reply("x") != first
    assert one.reply("x") != first


def test_stopping_keeps_what_was_said(trained):
    talked, pieces = Conversation(trained, GREEDY, whole=False), []
    text = talked.reply("say 3:", pieces.append, lambda: len(pieces) >= 2)
    assert text == "".join(pieces[:2])
    assert talked.messages[-1]["content"] == text


def test_a_conversation_that_fills_the_model_is_refused_and_kept_as_it_was(trained):
    talked = Conversation(trained, GREEDY)
    with pytest.raises(DataError, match=r"256 positions.*/reset"):
        talked.reply("x" * 300)
    assert not talked.messages


def test_a_system_prompt_needs_a_conversation(trained, train):
    with pytest.raises(RecipeError, match="--chat"):
        Conversation(trained, GREEDY, system="be brief", whole=False)
    with pytest.raises(DataError, match="no chat template"):
        Conversation(trained_stage(train()), GREEDY, whole=True)


def typed(monkeypatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_the_command_reads_lines_and_obeys(lora_run, monkeypatch, capsys):
    typed(
        monkeypatch, "/base", "say 3:", "/base", "/set temperature=hot", "/set max_new_tokens=1",
        "again", "/nothing", "/system be brief", "/quit", "never",
    )  # fmt: skip
    assert main(["chat", str(lora_run), "--max-new-tokens", "6", "--chat"]) == 0
    out = capsys.readouterr().out
    assert out.count("error[E090]") == 3  # nothing asked, no number, no such command
    assert "(untrained) " in out
    assert "never" not in out


def test_json_gives_the_turns(lora_run, capsys):
    words = ["--message", "say 3:", "--message", "/base", "--max-new-tokens", "4", "--json"]
    assert main(["chat", str(lora_run), *words]) == 0
    told = json.loads(capsys.readouterr().out)["messages"]
    assert [turn["role"] for turn in told] == ["user", "assistant", "base"]
    assert main(["chat", str(lora_run), "--message", "/base"]) == 2


def test_what_a_model_writes_steers_no_terminal(lora_run, monkeypatch, capsys):
    monkeypatch.setattr(
        Conversation, "reply", lambda self, line, on_text, stopping: on_text("\x1b[2Jx") or "x"
    )
    assert main(["chat", str(lora_run), "--message", "hi"]) == 0
    assert "<U+001B>[2Jx" in capsys.readouterr().out

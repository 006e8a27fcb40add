"""How `generate` asks: as the rows were put, with a system text, in turns, or as it stands."""

from __future__ import annotations

import pytest
from llmft_datasets.chat import Chat
from llmft_datasets.jsonl import Jsonl

from llmft.api.errors import RecipeError
from llmft.cli.main import main
from llmft.inference.answering import answer
from llmft.inference.asking import Asking, in_turns
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names
ASKS = {"prompt": "Sum up: {article}\nShort:", "completion": "s"}


def jsonl(**settings):
    return Jsonl(Jsonl.Config(method="jsonl", path="x.jsonl", columns=ASKS, **settings))


def told(prompt):
    return [(turn["role"], turn["content"]) for turn in prompt]


def test_a_question_stands_in_the_stages_template_unless_it_is_put_raw():
    assert Asking().prompt(jsonl(), "A fox.") == "Sum up: A fox.\nShort:"
    assert Asking(raw=True).prompt(jsonl(), "A fox.") == "A fox."


def test_a_system_text_takes_the_place_of_the_recipes():
    for data in (jsonl(chat=True, system="Rhyme."), jsonl(chat=True)):
        asked = Asking(system="Be brief.").prompt(data, "A fox.")
        assert told(asked) == [("system", "Be brief."), ("user", "Sum up: A fox.\nShort:")]


def test_turns_are_asked_after_the_answers_before_them():
    data, asked = Chat(Chat.Config(method="chat", path="x.jsonl", system="Rhyme.")), []

    def reply(prompt):
        asked.append(told(prompt))
        return f"answer {len(asked)}"

    assert in_turns(Asking(turns=True), data, ["one", "two"], reply) == ["answer 1", "answer 2"]
    first = [("system", "Rhyme."), ("user", "one")]
    assert asked == [first, [*first, ("assistant", "answer 1"), ("user", "two")]]


@pytest.mark.parametrize(
    ("asking", "said"),
    [(Asking(system="x"), "no system text"), (Asking(turns=True), "no earlier turns"),
     (Asking(raw=True, turns=True), "--raw puts")],
)  # fmt: skip
def test_what_the_stage_cannot_be_asked_is_refused(asking, said):
    def put():
        asking.check()
        asking.prompt(jsonl(), "A fox.")

    with pytest.raises(RecipeError, match=said) as caught:
        put()
    assert caught.value.faults[0].fix


def test_the_command_takes_them(lora_run, capsys):
    assert main(["generate", str(lora_run), "say 3:", "--raw", "--max-new-tokens", "4"]) == 0
    (plain,) = answer_of(lora_run)
    assert capsys.readouterr().out.strip() == plain
    assert main(["generate", str(lora_run), "say 3:", "--system", "Be brief."]) == 2
    assert "no system text" in capsys.readouterr().err


def answer_of(run):
    from llmft.inference.answering import load_run
    from llmft.registry.registry import Registry

    return answer(load_run(run, Registry.discover()), run, ["say 3:"], max_new_tokens=4)

"""Answers to the harness are kept as JSON, and asked for once."""

from __future__ import annotations

import json
from types import SimpleNamespace

from llmft.evaluation.harness.answers import Answers, _key


def asked(*texts: str, **settings) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=(text, settings) if settings else (text, " a")) for text in texts]


def test_answers_are_asked_for_once_and_kept_as_json(tmp_path):
    file, sent = tmp_path / "answers.jsonl", []

    def ask(requests):
        sent.append([one.args[0] for one in requests])
        for one in requests:
            answers.add_partial("loglikelihood", one.args, (-1.5, True))
        return [(-1.5, True) for _ in requests]

    def through(*texts):
        return answers.through("loglikelihood", asked(*texts), ask)

    answers = Answers(file, "a model", lambda *_: None)
    assert through("x", "y") == [(-1.5, True)] * 2
    answers.close()
    with file.open("a") as torn:
        torn.write('{"key": "abc", "answ')
    answers = Answers(file, "a model", lambda *_: None)
    assert through("y", "z", "x") == [(-1.5, True)] * 3
    assert sent == [["x", "y"], ["z"]]
    answers.close()
    assert [set(json.loads(line)) for line in file.read_text().splitlines()[:2]] == [
        {"about"},
        {"key", "answer"},
    ]
    file.write_text(file.read_text()[1:])  # what it is of cannot be read
    answers = Answers(file, "a model", lambda *_: None)
    through("x")
    assert sent[-1] == ["x"]
    answers.close()
    answers = Answers(file, "another model", lambda *_: None)
    through("x")
    assert sent[-1] == ["x"]
    answers.close()


def test_a_drawn_answer_is_not_kept():
    drawn, greedy = asked("x", do_sample=True)[0], asked("x", do_sample=False)[0]
    assert _key("generate_until", drawn.args) is None
    assert _key("generate_until", greedy.args) is not None
    # So the harness takes a temperature, where nothing is said of do_sample.
    assert _key("generate_until", asked("x", temperature=0.7)[0].args) is None
    assert _key("generate_until", asked("x", temperature=0.0)[0].args) is not None
    cold = asked("x", do_sample=False, temperature=0.7)[0]
    assert _key("generate_until", cold.args) is not None

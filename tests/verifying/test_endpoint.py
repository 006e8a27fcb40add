"""Endpoints held against a run: of every ability, and with every fault that they can have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.cli.commands.verify_export import as_text
from llmft.cli.main import main
from llmft.exporting.merging import merge
from llmft.inference.trained import trained_stage
from llmft.system.api_client import ApiClient, Waiting
from llmft.verifying.endpoint import verify_endpoint
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures
from tests.extended import extended
from tests.verifying.other_endpoint import Able, OtherEndpoint
from tests.verifying.test_export import _chat_run, names

# ruff: noqa: F811 - fixtures by their names


@pytest.fixture(scope="module")
def single(lora_run, tmp_path_factory):
    """A run of plain prompts, and its merged folder."""
    trained = trained_stage(lora_run)
    return trained, merge(trained, tmp_path_factory.mktemp("single") / "out").folder


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """A run of conversations, and its merged folder."""
    folder = tmp_path_factory.mktemp("talk")
    rows = folder / "chats.jsonl"
    said = [(f"say {n}", str(n % 7)) for n in range(20)]
    turns = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in said
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in turns))
    trained = _chat_run(rows, folder)
    return trained, merge(trained, folder / "out").folder


@pytest.fixture
def verdict_on():
    """Return the verdict on an endpoint with these abilities."""
    started = []

    def verify(made, able: Able, **more):
        started.append(OtherEndpoint(made[1], able))
        client = ApiClient.at(started[-1].url)
        return verify_endpoint(made[0], client, prompts=3, max_new_tokens=6, **more)

    yield verify
    for one in started:
        one.close()


@pytest.mark.parametrize(("able", "how"), extended([
    (Able(), "of all tokens"),
    (Able(strict=True), "of all tokens"),
    (Able(tells_ids=False), "counted only"),
    (Able(echo=False), "of its own answers"),
    (Able(ids_in=False, tells_ids=False), "as texts"),
    (Able(ids_in=False, tells_ids=False, chat_form=True), "as texts"),
    (Able(echo=False, counts_end=False), "of its own answers"),
], [(Able(), "of all tokens"), (Able(echo=False), "of its own answers")]))  # fmt: skip
def test_an_endpoint_of_the_same_weights_is_the_same_however_little_it_tells(
    single, talk, verdict_on, able, how
):
    for made in (single, talk):
        verdict = verdict_on(made, able)
        assert verdict.fine, verdict
        assert not verdict.causes
        assert verdict.distance.tokens > 8
        assert verdict.distance.max_logp < 1e-4
        assert any(how in line for line in verdict.how)


@pytest.mark.parametrize("less", [
    {}, {"echo": False}, {"ids_in": False, "tells_ids": False},
    {"ids_in": False, "tells_ids": False, "chat_form": True},
])  # fmt: skip
def test_log_probabilities_are_compared_in_whatever_form_they_come(talk, verdict_on, less):
    verdict = verdict_on(talk, Able(shift=-0.25, **less))
    assert len(names(verdict)) == 2
    assert verdict.distance.max_logp == pytest.approx(0.25, abs=1e-4)
    assert verdict.distance.mean_logp == pytest.approx(0.25, abs=1e-4)


def test_a_token_at_the_start_is_named(single, verdict_on):
    verdict = verdict_on(single, Able(before=(256,)))
    assert names(verdict) == ["token ids in"]
    assert "at the end" not in verdict.causes[0]
    assert verdict.causes[0].startswith("BOS: ")
    counted = verdict_on(single, Able(before=(7,), tells_ids=False))
    assert names(counted) == ["token ids in"]
    assert counted.causes == ("BOS: the endpoint reads one token more in each prompt",)


def test_another_template_is_named(talk, verdict_on):
    other = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for able in (Able(template=other), Able(template=other, tells_ids=False)):
        verdict = verdict_on(talk, able)
        assert names(verdict) == ["token ids in"]
        assert verdict.causes[0].startswith("template: ")
    same_count = Able(template="<user>{{ messages[0].content }}!<assistant>")
    assert names(verdict_on(talk, same_count)) == ["token ids in"]


def test_another_precision_is_named_and_can_be_accepted(single, verdict_on):
    verdict = verdict_on(single, Able(dtype=torch.bfloat16))
    assert "log-probabilities, largest difference" in names(verdict)
    assert verdict.causes[0].startswith("dtype: ")
    assert verdict_on(single, Able(dtype=torch.bfloat16), tolerance=0.5).fine


def test_other_weights_are_named(single, talk, verdict_on):
    verdict = verdict_on((single[0], talk[1]), Able())
    assert "log-probabilities, mean difference" in names(verdict)
    assert any(cause.startswith("weights: ") for cause in verdict.causes)


@pytest.mark.parametrize("tells", [True, False])
def test_settings_of_generation_that_act_are_named(single, verdict_on, tells):
    def penalty(logits: torch.Tensor, row: list[int]) -> None:
        logits[int(logits.argmax())] -= 5.0

    verdict = verdict_on(single, Able(change=penalty, tells_ids=tells))
    assert names(verdict) == ["greedy answers"]
    assert verdict.causes[0].startswith("generation: ")
    assert verdict.partings[0].prompt == 0


@pytest.mark.parametrize(("tells", "place"), [(True, 2), (True, 20), (False, 2)])
def test_an_answer_may_part_at_a_tie(single, verdict_on, tells, place):
    def another(logits: torch.Tensor, row: list[int]) -> None:
        logits[logits.topk(place - 1).indices] -= 1e9

    verdict = verdict_on(single, Able(change=another, tells_ids=tells), tolerance=50.0)
    assert verdict.fine
    assert {part.what for part in verdict.partings} == {"a tie"}


def test_without_log_probabilities_nothing_is_proven(single, verdict_on):
    verdict = verdict_on(single, Able(logprobs=False))
    assert not verdict.fine
    assert "unproven" in verdict.causes[0]


def test_a_model_is_chosen_by_its_name(single, verdict_on):
    able = Able(name="mine")
    assert "as 'mine'" in verdict_on(single, able).how[0]
    assert able.seen[-1]["model"] == "mine"
    with pytest.raises(RecipeError, match=r"no model 'x' \(it has: mine\)"):
        verdict_on(single, able, model="x")


def test_the_command_shows_the_host_first_and_fails_where_they_part(single, verdict_on, capsys):
    run, few = str(single[0].run), ["--prompts", "2", "--max-new-tokens", "4"]
    endpoint = OtherEndpoint(single[1], Able())
    try:
        assert main(["verify", "export", run, endpoint.url, *few]) == 0
        told = capsys.readouterr()
        host = endpoint.url.removeprefix("http://").removesuffix("/v1")
        assert told.err.startswith(f"asking {host}, unencrypted, without a key (LLMFT_API_KEY)")
        assert "the endpoint answers as the run does" in told.out
        endpoint.able.before = (7,)
        endpoint.able.name = "\x1b[2J"
        assert main(["verify", "export", run, endpoint.url, *few]) == 6
        told = capsys.readouterr()
        assert "error[E407]" in told.err
        assert "\x1b" not in told.err
        assert main(["verify", "export", run, str(single[1]), "--model", "x"]) == 2
        assert main(["verify", "export", run, "http://me:secret@127.0.0.1/v1"]) == 2
        assert "secret" not in capsys.readouterr().err
    finally:
        endpoint.close()


@pytest.fixture
def time_for(monkeypatch):
    """Let the time be up after so many answers, the list of models among them."""

    def times(count: int) -> None:
        class Counted(Waiting):
            answers = count + 1  # with the list of models

            @property
            def left(self) -> float:
                Counted.answers -= 1
                return 600.0 if Counted.answers >= 0 else 0.0

        monkeypatch.setattr(
            ApiClient, "within", lambda self, most: replace(self, waiting=Counted(most))
        )

    return times


@pytest.mark.parametrize(("answers", "said", "compared"), [
    (2, "2 of 3 prompts were answered", "2 answers"),
    (4, "the prompts were answered as texts, and not all of them as token ids", "3 answers"),
    (7, "log-probabilities were told of 1 of 3 prompts with their answers", "3 answers"),
    (9, "", "3 answers"),
])  # fmt: skip
def test_what_was_answered_until_the_time_was_up_is_compared(
    single, verdict_on, time_for, answers, said, compared
):
    time_for(answers)
    verdict = verdict_on(single, Able())
    assert (verdict.unfinished, verdict.fine, verdict.causes) == (said, True, ())
    assert verdict.checks[1].compared == compared
    assert (f"time was up: {said}" in as_text(verdict)) == bool(said)
    assert ("the same: " in as_text(verdict)) == (not said)
    assert verdict.distance.tokens > 0


def test_what_differs_is_told_also_where_the_time_was_up(single, verdict_on, time_for):
    time_for(2)
    verdict = verdict_on(single, Able(before=(256,)))
    assert verdict.unfinished
    assert names(verdict)[0] == "token ids in"
    assert verdict.causes[0].startswith("BOS: ")
    time_for(4)  # it tells numbers by echo alone, and there was no time for it
    verdict = verdict_on(single, Able(logprobs=False))
    assert (verdict.fine, verdict.causes, len(verdict.checks)) == (True, (), 2)
    for nothing in (-1, 0):
        time_for(nothing)
        with pytest.raises(EnvironmentFault, match=r"E213.*answered none of 3 prompts in 1800"):
            verdict_on(single, Able())


def test_a_slow_endpoint_is_left_when_the_time_is_up(single, capsys):
    endpoint = OtherEndpoint(single[1], Able(hangs_after=2))
    words = ["verify", "export", str(single[0].run), endpoint.url, "--prompts", "3"]
    try:
        assert main([*words, "--max-new-tokens", "3", "--timeout", "3"]) == 4
    finally:
        endpoint.close()
    said = capsys.readouterr().err
    assert "token ids in" in said
    assert "was not compared whole in 3 seconds of waiting: 2 of 3 prompts were answered" in said
    assert "so far it answers as the run does — fix: ask less" in said
    assert main(["verify", "export", str(single[0].run), str(single[1]), "--timeout", "6"]) == 2
    assert "--timeout is for an endpoint" in capsys.readouterr().err


@pytest.mark.parametrize("told", [
    [], {}, {"choices": []}, {"choices": [None]}, {"choices": [{"text": "a", "logprobs": 3}]},
    {"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": ["x"]}}]},
    {"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [1e99]}}]},
    {"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": []}}]},
    {"choices": [{"text": "a"}], "usage": {"prompt_tokens": "3"}},
    {"choices": [{"text": "a", "prompt_token_ids": ["x"]}]},
])  # fmt: skip
def test_answers_of_another_form_are_refused(single, monkeypatch, told):
    monkeypatch.setattr(ApiClient, "get", lambda *_: {"data": [{"id": "x"}]})
    monkeypatch.setattr(ApiClient, "post", lambda *_: told)
    with pytest.raises(EnvironmentFault, match="another form than OpenAI's"):
        verify_endpoint(single[0], ApiClient("http://127.0.0.1:1/v1"), prompts=1)


def _answering(models, answer):
    """Return a client whose server lists models, and answers the same to every question."""

    class Client(ApiClient):
        def get(self, path):
            return models

        def post(self, path, body):
            return answer

    return Client("http://host/v1")


_LISTED = {"data": [{"id": "a"}]}
_WHOLE = {"choices": [{"text": " 3", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}


@pytest.mark.parametrize("ids", [[10**30], [-1], [10**4000], [2**31], [True], "12", {"1": 2}])
def test_ids_that_no_tokenizer_has_are_another_form(single, ids):
    for name in ("token_ids", "prompt_token_ids"):
        choice = _WHOLE["choices"][0] | {name: ids}
        client = _answering(_LISTED, _WHOLE | {"choices": [choice]})
        with pytest.raises(EnvironmentFault, match="another form") as caught:
            verify_endpoint(single[0], client, prompts=1, max_new_tokens=2)
        assert caught.value.faults[0].code == "E213"
    client = _answering(_LISTED, _WHOLE | {"usage": {"prompt_tokens": 10**4000}})
    with pytest.raises(EnvironmentFault, match="another form"):
        verify_endpoint(single[0], client, prompts=1, max_new_tokens=2)


def test_what_a_server_tells_at_length_is_not_told_at_length(single):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for listed in ({"data": [{"id": deep}]}, {"data": [{"id": 7}]}):
        with pytest.raises(EnvironmentFault, match="another form"):
            verify_endpoint(single[0], _answering(listed, _WHOLE), prompts=1, max_new_tokens=2)
    listed = {"data": [{"id": "x" * 10**6}, {"id": "y" * 10**6}]}
    with pytest.raises(RecipeError) as caught:
        verify_endpoint(single[0], _answering(listed, _WHOLE), prompts=1, max_new_tokens=2)
    assert len(str(caught.value)) < 1000
    choice = {"text": "\ud800" + "z" * 10**6, "token_ids": [5] * 10**6, "finish_reason": "stop"}
    client = _answering(_LISTED, _WHOLE | {"choices": [choice]})
    verdict = verify_endpoint(single[0], client, prompts=1, max_new_tokens=2)
    assert not verdict.fine
    assert len(as_text(verdict)) < 8000

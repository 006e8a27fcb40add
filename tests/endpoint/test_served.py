"""Which runs are served: names, one base in memory, and that damaged ones are refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest
import torch

from llmft.api import SamplingParams
from llmft.api.errors import CheckpointError, DataError, LlmftError, RecipeError
from llmft.cli.commands import serve as command
from llmft.endpoint.answering import Question, answered
from llmft.endpoint.served import Served, asked_runs, load

from .conftest import Client


def test_runs_of_one_base_hold_it_once_and_answer_as_each_alone(serving, train, lora_run, loaded):
    second = train({"method": "lora", "r": 2, "target_modules": ["o_proj"]})
    one, base, two = load(asked_runs([str(lora_run), f"two={second}"]), base=True)
    assert [one.name, base.name, two.name] == ["tiny", "base", "two"]

    def storages(served: Served) -> set[int]:
        return {p.data_ptr() for p in served.model.parameters()}

    frozen = storages(base)
    assert frozen <= storages(one)
    assert frozen <= storages(two)
    assert len(storages(one) - frozen) == 2 * 6  # of each of its modules, A and B
    assert len(storages(two) - frozen) == 2 * 2
    client: Client = serving([one, base, two])
    (alone,) = load(asked_runs([str(second)]))
    wanted = serving([alone]).complete(logprobs=1).data["choices"]
    assert client.complete(model="two", logprobs=1).data["choices"] == wanted
    said = [client.complete(model=m, logprobs=1).data["choices"] for m in ("tiny", "base")]
    assert said[0] != wanted != said[1] != said[0]


def test_whatever_adapter_stands_on_it_the_base_stays_as_it_is(train, lora_run):
    adapters = [
        {"method": "lora", "r": 2, "target_modules": ["o_proj"], "init_lora_weights": "pissa"},
        {"method": "lora", "r": 2, "target_modules": ["o_proj"], "bias": "all",
         "modules_to_save": ["lm_head"]},
        {"method": "dora", "r": 2, "target_modules": ["o_proj"]},
        {"method": "prompt", "num_virtual_tokens": 4},
    ]  # fmt: skip
    runs = [lora_run, *map(train, adapters)]
    names = ["zero", "pissa", "bias", "dora", "prompt"]
    together = load(asked_runs([f"{n}={r}" for n, r in zip(names, runs, strict=True)]), base=True)
    found = {one.name: one for one in together}
    for name, run in zip(names, runs, strict=True):
        (alone,) = load(asked_runs([f"{name}={run}"]))
        assert said(found[name]) == said(alone)
    base, bare = found["base"], found["base"].trained.model(with_adapter=False)
    for (name, own), (_, there) in zip(
        bare.named_parameters(), base.model.named_parameters(), strict=True
    ):
        assert torch.equal(own, there), name
    assert len({str(said(one)) for one in together}) == len(together)


def said(served: Served) -> list[tuple[int, float | None]]:
    """Return the tokens of an answer, with their log-probabilities."""
    params = SamplingParams(6, temperature=0.0)
    answer = answered(Question(served, served.text_ids("say 3:"), params, (0,), top=0))
    return [(token.id, token.logp) for token in answer.tokens]


def test_what_trains_the_base_has_one_of_its_own(train, lora_run):
    whole = train({"method": "full"})
    one, two, base = load(asked_runs([f"a={lora_run}", f"b={whole}", f"c={lora_run}"]))
    full = {p.data_ptr() for p in two.model.parameters()}
    assert not full & {p.data_ptr() for p in one.model.parameters()}
    assert {p.data_ptr() for p in base.model.parameters()} & {
        p.data_ptr() for p in one.model.parameters()
    }


def test_a_run_that_adds_tokens_has_a_base_with_their_rows(serving, train, lora_run):
    more = train(add_tokens=[f"<{n}>" for n in range(50)])  # 43 rows of the base are spare
    one, two = load(asked_runs([f"one={lora_run}", f"two={more}"]))
    assert (one.vocabulary, two.vocabulary) == (300, 307)
    client: Client = serving([one, two])
    assert client.complete(model="two", prompt=[256, 306]).data["choices"]
    assert (
        "306 is no token"
        in client.complete(model="one", prompt=[256, 306]).data["error"]["message"]
    )


def test_names_are_the_recipes_or_those_given(lora_run, train, tmp_path):
    other = train({"method": "lora", "r": 2, "target_modules": ["o_proj"]})
    assert [one.name for one in asked_runs([str(lora_run)])] == ["tiny"]
    both = [one.name for one in asked_runs([str(lora_run), str(other)])]
    assert both == [f"tiny/{lora_run.name}", f"tiny/{other.name}"]
    given = asked_runs([f"a={lora_run}", str(other)])
    assert [one.name for one in given] == ["a", "tiny"]
    odd = tmp_path / "a=b"
    shutil.copytree(lora_run, odd)
    assert asked_runs([str(odd)])[0].run == odd
    for words in ([f"a={other}", f"a={lora_run}"], [f"base={other}"], [f"={other}"],
                  [f"\x1b={other}"], [str(other), str(other)]):  # fmt: skip
        with pytest.raises(RecipeError, match="cannot be the name"):
            asked_runs(words)


def test_a_damaged_run_is_refused_before_a_weight_is_loaded(lora_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lora_run, run)
    weights = run / "stages" / "sft" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(LlmftError) as caught:
        load(asked_runs([str(run)]))
    assert caught.value.faults[0].code == "E401"
    with pytest.raises(CheckpointError, match="not a run folder"):
        load(asked_runs([str(tmp_path)]))


def test_a_template_is_needed_to_chat(train):
    with pytest.raises(DataError, match="no chat template"):
        load(asked_runs([str(train())]), chat=True)


def test_words_around_a_question_are_said_at_the_start(loaded, monkeypatch):
    single, _, whole = loaded
    assert "single questions" in single.remark
    assert whole.remark
    monkeypatch.setattr(
        type(whole.trained.dataset), "ask", lambda _, q: ({"role": "user", "content": q},)
    )
    assert not whole.remark


def test_a_key_is_needed_off_the_loopback_and_made_where_none_is_given(monkeypatch):
    monkeypatch.delenv(command.KEY_VARIABLE, raising=False)
    assert command._key(loopback=True) == (None, False)
    (key, made), (other, _) = command._key(loopback=False), command._key(loopback=False)
    assert made
    assert key != other
    assert len(str(key)) == 43
    monkeypatch.setenv(command.KEY_VARIABLE, "x" * 16)
    for loopback in (True, False):
        assert command._key(loopback=loopback) == ("x" * 16, False)
    for bad in ("short", "with a space in the middle", "x" * 16 + "\n", "é" * 16):
        monkeypatch.setenv(command.KEY_VARIABLE, bad)
        with pytest.raises(RecipeError, match="is no key"):
            command._key(loopback=True)


@pytest.mark.extended
def test_the_command_serves_until_it_is_interrupted(lora_run):
    words = [sys.executable, "-m", "llmft", "serve", str(lora_run), "--port", "0"]
    secret = "canary-canary-canary"
    started = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {command.KEY_VARIABLE: secret},
    )  # fmt: skip
    assert started.stderr is not None
    said = ""
    for line in started.stderr:
        said += line
        if found := re.search(r"serving at (http://127\.0\.0\.1:\d+/v1)", line):
            break
    asked = urllib.request.Request(
        f"{found[1]}/completions",
        json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"},
    )
    with urllib.request.urlopen(asked, timeout=30) as told:
        assert json.load(told)["usage"]["completion_tokens"] <= 2
    started.send_signal(signal.SIGINT)
    out, rest = started.communicate(timeout=30)
    assert started.returncode == 0
    assert "POST /v1/completions 200" in rest
    assert secret not in said + rest + out
    assert "Traceback" not in rest

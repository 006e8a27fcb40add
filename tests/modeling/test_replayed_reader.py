"""Tokens read by one recorded step, held against the cache that grows by each."""

from __future__ import annotations

import pytest
import torch
from llmft_adapters.lora import Lora
from llmft_adapters.prefix import Prefix

from llmft.api import SamplingParams
from llmft.modeling import replayed_reader, token_reader
from llmft.modeling.decoding import decode
from llmft.testing import measures
from llmft.testing.tiny_architectures import ARCHITECTURES, tiny

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [11, 12], [21, 22, 23, 24], [31]]


@pytest.fixture(autouse=True)
def _one_thread():
    with measures.one_thread():
        yield


@pytest.fixture
def steps(monkeypatch):
    """Record steps as a GPU would, but run them each time; return how often each was run."""
    counts: list[int] = []

    def record(run, again):
        run()
        again()
        counts.append(0)
        number = len(counts) - 1

        def replay():
            counts[number] += 1
            run()

        return replay

    monkeypatch.setattr(token_reader, "replays", lambda device: True)
    monkeypatch.setattr(replayed_reader, "by_graph", record)
    return counts


def _model(kind: str, method: str | None = None):
    torch.manual_seed(0)
    base = tiny(kind)
    if method is None:
        return base.eval()
    cls, settings = {"lora": (Lora, {"r": 4}), "prefix": (Prefix, {"num_virtual_tokens": 3})}[
        method
    ]
    model = cls(cls.Config.model_validate({"method": method, **settings})).attach(
        base.requires_grad_(False)
    )
    measures.nudge(model)
    return model.eval()


def _same(model, steps, monkeypatch, **settings) -> None:
    params = SamplingParams(40, temperature=1.0, stop_token_ids=(3, 9, 17, 30), **settings)
    found = decode(model, PROMPTS * 2, params, batch_size=10)
    monkeypatch.setattr(token_reader, "replays", lambda device: False)
    want = decode(model, PROMPTS * 2, params, batch_size=10)
    assert [a.ids for a in found] == [a.ids for a in want]
    for a, b in zip(found, want, strict=True):
        assert a.logps == pytest.approx(b.logps, abs=1e-4)
    assert max(len(a.ids) for a in want) > 20


@pytest.mark.parametrize("method", [None, "lora", "prefix"])
def test_answers_are_those_of_a_cache_that_grows(method, steps, monkeypatch):
    """Rows of many lengths, which end at different tokens; the recording is left and made anew."""
    _same(_model("llama", method), steps, monkeypatch)
    assert steps
    assert steps[0] > 1


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_architecture_is_right_or_goes_without(kind, steps, monkeypatch):
    """A step whose logits are off, or that cannot be had, is not used."""
    _same(_model(kind), steps, monkeypatch)


def test_fewer_rows_are_recorded_anew(steps, monkeypatch):
    """Half the rows have ended: a step of the rest is recorded, and its answers are right."""
    model = _model("llama")
    model.get_output_embeddings().weight.data.mul_(4)
    params = SamplingParams(120, temperature=1.0, stop_token_ids=tuple(range(3, 9)))
    found = decode(model, PROMPTS * 4, params, batch_size=20)
    assert len(steps) > 1
    assert all(count > 1 for count in steps)
    monkeypatch.setattr(token_reader, "replays", lambda device: False)
    assert [a.ids for a in found] == [
        a.ids for a in decode(model, PROMPTS * 4, params, batch_size=20)
    ]


@pytest.mark.parametrize("how", ["fails", "wrong", "no number"])
def test_without_a_right_recording_the_model_is_asked_each_time(how, steps, monkeypatch):
    """What cannot be recorded, and what is off, is read as before, and answers are the same."""
    whole = replayed_reader.by_graph

    def record(run, again):
        if how == "fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        replay = whole(run, again)
        owner, factor = run.__self__, -1 if how == "wrong" else float("nan")
        return lambda: (replay(), owner.logits.mul_(factor))

    monkeypatch.setattr(replayed_reader, "by_graph", record)
    _same(_model("llama"), steps, monkeypatch)
    assert steps == ([] if how == "fails" else [1])


def test_short_answers_are_not_worth_a_recording(steps):
    """It takes as long as several tokens."""
    params = SamplingParams(10, temperature=0.0, stop_token_ids=())
    decode(_model("llama"), PROMPTS, params, batch_size=5)
    assert steps == []

"""What is answered: the run's own answers, plain transformers' numbers, whole and in pieces."""

from __future__ import annotations

import pytest
import torch

from llmft.inference.answering import answer


@pytest.fixture(scope="module")
def plain(loaded):
    """The run's model as plain transformers and PEFT load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained = loaded[0].trained
    base = AutoModelForCausalLM.from_pretrained(trained.base.path, dtype=torch.float32)
    return PeftModel.from_pretrained(base, trained.adapter_folder).eval()


@torch.no_grad()
def plain_logps(model, ids: list[int]) -> torch.Tensor:
    """Return the log-probabilities (T, V) of what comes after each token."""
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@torch.no_grad()
def plain_answer(model, ids: list[int], count: int) -> list[int]:
    """Return the likeliest tokens, each read from the start again."""
    said: list[int] = []
    for _ in range(count):
        said.append(int(plain_logps(model, ids + said)[-1].argmax()))
        if said[-1] == model.config.eos_token_id:
            break
    return said


def test_the_greedy_answer_is_that_of_generate(client, loaded):
    trained = loaded[0].trained
    for model, with_adapter in (("tiny", True), ("base", False)):
        told = client.chat(model=model).data["choices"][0]
        (wanted,) = answer(
            trained.job, trained.run, ["say 3:"], max_new_tokens=8, with_adapter=with_adapter
        )
        assert told["message"]["content"].strip() == wanted
        assert client.complete(model=model).data["choices"][0]["text"].strip() == wanted


def test_messages_go_through_the_chat_template_as_they_stand(client, loaded, plain):
    said = [("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in said]
    told = client.chat(model="talk", messages=messages, return_token_ids=True).data
    text = "<system>be brief\n<user>a\n<assistant>b\n<user>c\n<assistant>"
    ids = loaded[0].tokenizer(text, add_special_tokens=False)["input_ids"]
    assert told["prompt_token_ids"] == ids
    assert told["choices"][0]["token_ids"] == plain_answer(plain, ids, 8)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    many = client.chat(model="talk", messages=[{"role": "user", "content": parts}])
    one = client.chat(model="talk", text="ab")
    assert many.data["choices"] == [
        {**one.data["choices"][0], "message": many.data["choices"][0]["message"]}
    ]
    assert many.data["usage"] == one.data["usage"]


def test_a_run_of_single_questions_takes_one(client):
    turns = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    told = client.chat(messages=turns)
    assert told.status == 400
    assert "single questions" in told.data["error"]["message"]


def test_log_probabilities_are_the_models_own(client, plain):
    prompt = [10, 20, 30]
    told = client.complete(prompt, logprobs=3, echo=True, max_tokens=4, return_token_ids=True)
    (choice,) = told.data["choices"]
    ids = prompt + choice["token_ids"]
    logps = plain_logps(plain, ids)
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None
    wanted = [float(logps[t, ids[t + 1]]) for t in range(len(ids) - 1)]
    assert found["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
    best = logps[len(prompt) - 1].topk(3).values.tolist()
    assert sorted(found["top_logprobs"][3].values(), reverse=True) == pytest.approx(best, abs=1e-4)
    assert choice["text"].startswith(choice["logprobs"]["tokens"][0])
    only = client.complete(prompt, logprobs=0, echo=True, max_tokens=0).data["choices"][0]
    assert only["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted[:2], abs=1e-4)
    assert only["logprobs"]["top_logprobs"] == [None] * 3


def test_sampling_leaves_the_log_probabilities_as_they_are(client, plain):
    told = client.complete(
        [10, 20], logprobs=1, max_tokens=3, temperature=5, top_p=0.9, seed=1, return_token_ids=True
    )
    (choice,) = told.data["choices"]
    ids = [10, 20, *choice["token_ids"]]
    logps = plain_logps(plain, ids)
    wanted = [float(logps[t + 1, ids[t + 2]]) for t in range(len(choice["token_ids"]))]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted, abs=1e-4)


def test_chat_log_probabilities_name_each_token_and_the_likeliest(client):
    told = client.chat(logprobs=True, top_logprobs=2, max_tokens=3).data["choices"][0]
    content = told["logprobs"]["content"]
    assert len(content) == 3
    for one in content:
        assert one["top_logprobs"][0]["token"] == one["token"]
        assert one["top_logprobs"][0]["logprob"] == one["logprob"] <= 0
        assert one["bytes"] is None or bytes(one["bytes"]).decode() == one["token"]
    assert "".join(one["token"] for one in content) == told["message"]["content"]
    assert client.chat().data["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("kind", ["chat", "complete"])
def test_a_stream_has_the_same_text_in_pieces(client, kind):
    ask = getattr(client, kind)
    whole = ask().data
    told = ask(stream=True, stream_options={"include_usage": True})
    assert told.headers["Content-Type"].startswith("text/event-stream")
    *chunks, last = told.events
    assert last["usage"] == whole["usage"]
    parts = [chunk["choices"][0] for chunk in chunks]
    texts = [p["delta"].get("content", "") if kind == "chat" else p["text"] for p in parts]
    (choice,) = whole["choices"]
    assert "".join(texts) == (choice["message"]["content"] if kind == "chat" else choice["text"])
    assert sum(map(bool, texts)) > 1
    assert [p["finish_reason"] for p in parts][-1] == choice["finish_reason"]
    assert {p["finish_reason"] for p in parts[:-1]} == {None}
    assert "usage" not in ask(stream=True).events[-1]


def test_a_stop_text_ends_the_answer_before_it(client):
    text = client.complete(max_tokens=12).data["choices"][0]["text"]
    stop = text[3:5]
    for streamed in (False, True):
        told = client.complete(max_tokens=12, stop=[stop, "never there"], stream=streamed)
        parts = [e["choices"][0] for e in told.events] if streamed else told.data["choices"]
        assert "".join(part["text"] for part in parts) == text[: text.index(stop)]
        assert parts[-1]["finish_reason"] == "stop"
    assert client.complete(max_tokens=12, stop="never there").data["choices"][0]["text"] == text


def test_a_seed_repeats_a_sampled_answer_and_none_does_not(client):
    def said(**more):
        told = client.complete(temperature=3.0, max_tokens=12, return_token_ids=True, **more)
        return told.data["choices"][0]["token_ids"]

    assert said(seed=5) == said(seed=5) != said(seed=6)
    assert said() != said()
    assert said(seed=5, top_k=1) == said(seed=9, top_p=1e-9)


def test_several_prompts_are_answered_in_order(client):
    told = client.complete([[10, 20], [30, 40, 50]], echo=True, max_tokens=0, logprobs=0).data
    assert [choice["index"] for choice in told["choices"]] == [0, 1]
    assert [len(choice["logprobs"]["tokens"]) for choice in told["choices"]] == [2, 3]
    assert told["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
    texts = client.complete(["say 3:", "say 4:"], return_token_ids=True).data["choices"]
    alone = client.complete("say 4:", return_token_ids=True).data["choices"][0]
    assert texts[1] == alone | {"index": 1}


def test_many_at_once_get_what_each_gets_alone(client):
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int):
        model, text = ("tiny", "talk")[number % 2], f"say {number}:"
        told = client.chat(text, model=model, max_tokens=4, stream=number % 3 == 0)
        return [e["choices"] for e in told.events] if number % 3 == 0 else told.data["choices"]

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_openais_own_client_is_understood(client):
    openai = pytest.importorskip("openai")
    asked = {"model": "talk", "messages": [{"role": "user", "content": "hi"}], "temperature": 0,
             "max_tokens": 6}  # fmt: skip
    with openai.OpenAI(base_url=client.server.address, api_key="none", max_retries=0) as there:
        assert [m.id for m in there.models.list()] == ["tiny", "base", "talk"]
        said = there.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        assert said.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0
        stream = there.chat.completions.create(**asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == said.choices[0].message.content
        done = there.completions.create(model="tiny", prompt="a", max_tokens=3, logprobs=1)
        assert len(done.choices[0].logprobs.tokens) == 3
        with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
            there.chat.completions.create(**asked, frequency_penalty=1.0)
        with pytest.raises(openai.NotFoundError, match="no model 'x'"):
            there.completions.create(model="x", prompt="a")


def test_n_answers_to_a_prompt_are_drawn_apart_and_its_tokens_counted_once(client):
    asked = {"temperature": 1.5, "seed": 5, "return_token_ids": True}
    one = client.complete("say 3:", **asked).data
    told = client.complete(["say 3:", "say 4:"], n=3, **asked).data
    assert [choice["index"] for choice in told["choices"]] == list(range(6))
    assert told["choices"][0]["token_ids"] == one["choices"][0]["token_ids"]
    assert len({tuple(choice["token_ids"]) for choice in told["choices"]}) == 6
    prompts = [choice["prompt_token_ids"] for choice in told["choices"]]
    assert prompts[0] == prompts[1] == prompts[2] != prompts[3] == prompts[5]
    assert told["usage"]["prompt_tokens"] == 2 * one["usage"]["prompt_tokens"]
    assert told["usage"]["completion_tokens"] == sum(
        len(choice["token_ids"]) for choice in told["choices"]
    )
    many = client.chat(n=2, **asked).data
    assert [choice["index"] for choice in many["choices"]] == [0, 1]
    assert many["choices"][0]["message"] == client.chat(**asked).data["choices"][0]["message"]
    assert many["choices"][0]["message"] != many["choices"][1]["message"]

"""Who gets in and what gets in; what is logged; and that no request ends the server."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.endpoint import answering, requests, server
from llmft.endpoint.answering import Answerer, Busy, Question
from llmft.endpoint.requests import BadRequest, ChatRequest, CompletionRequest, read
from llmft.endpoint.server import Endpoint

from .conftest import KEY

JSON = {"Content_Type": "application/json"}
ASKED = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()


@pytest.mark.parametrize(("changed", "param"), [
    ({"prompt": []}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": [[]]}, "prompt"),
    ({"prompt": [10**9]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": None}, "prompt"), ({"prompt": ["a"] * 129}, "prompt"), ({"prompt": 7}, "prompt"),
    ({"prompt": ["a", "b"], "stream": True}, "prompt"), ({"prompt": "x" * 300}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"), ({"max_tokens": "8"}, "max_tokens"),
    ({"max_tokens": 256}, "max_tokens"),
    ({"temperature": -1}, "temperature"), ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0}, "top_p"), ({"top_p": 1.1}, "top_p"), ({"n": 0}, "n"), ({"n": 129}, "n"),
    ({"n": 2, "stream": True}, "n"), ({"prompt": ["a"] * 65, "n": 2}, "n"), ({"seed": 1.5}, "seed"),
    ({"stop": ""}, "stop"), ({"stop": ["x"] * 17}, "stop"), ({"stop": "x" * 257}, "stop"),
    ({"logprobs": 21}, "logprobs"), ({"best_of": 3}, "best_of"), ({"suffix": "b"}, "suffix"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"), ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"lerning": 1}, "lerning"), ({"model": ["tiny"]}, "model"), ({"stream": "yes"}, "stream"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_name(client, changed, param):
    told = client.complete(**({"prompt": "a"} | changed))
    assert told.status == 400
    assert told.data["error"]["type"] == "invalid_request_error"
    assert told.data["error"]["param"] == param


@pytest.mark.parametrize(("changed", "param"), [
    ({"messages": []}, "messages"), ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ({"tools": [{"type": "function"}]}, "tools"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tool_choice": "required"}, "tool_choice"), ({"messages": [
        {"role": "user", "content": "x" * 300}]}, "messages"),
])  # fmt: skip
def test_what_a_chat_cannot_be_is_refused_by_name(client, changed, param):
    told = client.chat(**({"model": "talk"} | changed))
    assert told.status == 400
    assert told.data["error"]["param"] == param


def test_what_asks_for_nothing_is_taken(client):
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {},
               "repetition_penalty": 1.0, "user": "me", "metadata": {}, "store": False}  # fmt: skip
    alone = client.complete().data["choices"]
    assert client.complete(**neutral, best_of=1, suffix="").data["choices"] == alone
    more = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}
    assert client.chat(**neutral, **more).status == 200


def test_an_unknown_model_names_those_that_are_there(client):
    told = client.complete(model="x\x1b[2J")
    assert told.status == 404
    assert told.data["error"]["code"] == "model_not_found"
    assert "tiny, base, talk" in told.data["error"]["message"]


def test_models_are_listed(client):
    told = client.send("GET", "/v1/models").data
    assert [one["id"] for one in told["data"]] == ["tiny", "base", "talk"]
    assert client.send("GET", "/v1/models/talk").data["id"] == "talk"
    assert client.send("GET", "/v1/models/nobody").status == 404
    assert client.send("GET", "/health").data == {"status": "ok"}


def test_a_body_is_json_of_a_stated_and_small_size(client):
    path = "/v1/completions"
    assert client.send("POST", path, ASKED).status == 415
    assert client.send("POST", path, ASKED, Content_Type="text/plain").status == 415
    chunked = {"Transfer_Encoding": "chunked"}
    assert client.send("POST", path, None, **JSON, **chunked).status == 411
    for size in (server.LARGEST_BODY + 1, "9" * 5000):
        assert client.send("POST", path, b"{}", **JSON, Content_Length=str(size)).status == 413
    for body in (b"{", b"[" * 200_000, b"[]", b"null", b'"\xff"'):
        assert client.send("POST", path, body, **JSON).status == 400
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert client.send(method, path).status == 501
    assert client.send("POST", "/v1/embeddings", ASKED, **JSON).status == 404
    assert client.send("POST", path, ASKED, **JSON).status == 200


@pytest.mark.parametrize(("each", "form", "kind"), [
    *((each, b'"prompt": [%s]', CompletionRequest) for each in ("{}", "[]", "-1", "[-1]", "null")),
    ("{}", b'"messages": [%s]', ChatRequest),
    ("{}", b'"messages": [{"role": "user", "content": [%s]}]', ChatRequest),
    ('""', b'"prompt": "a", "stop": [%s]', CompletionRequest),
    ('"%x": 0', b'"prompt": "a", %s', CompletionRequest),
    ('"%x": 0', b'"messages": [{"role": "user", "content": [{%s}]}]', ChatRequest),
])  # fmt: skip
def test_a_body_of_many_mistakes_is_refused_at_the_first(each, form, kind):
    many = ", ".join(each % n if "%" in each else each for n in range(60_000)).encode()
    body = json.loads(b'{"model": "tiny", ' + form % many + b"}")
    began = time.process_time()
    with pytest.raises(BadRequest) as caught:
        read(kind, body)
    assert time.process_time() - began < 0.5
    assert len(str(caught.value)) < 200


def test_so_many_log_probabilities_are_told_at_most(client, monkeypatch):
    monkeypatch.setattr(requests, "_MOST_LOGPS", 11)
    assert client.complete([1, 2, 3, 4, 5], echo=True, logprobs=1).status == 200
    told = client.complete([1, 2, 3, 4], echo=True, logprobs=2)
    assert (told.status, told.data["error"]["param"]) == (400, "logprobs")
    assert "12 log-probabilities" in told.data["error"]["message"]
    assert client.complete([[1, 2, 3]] * 2, echo=True, logprobs=1).status == 400
    assert client.complete([1, 2, 3, 4], echo=True).status == 200


def _raw(client, sent: bytes) -> bytes:
    """Return everything that is answered to bytes, until the connection ends."""
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=10) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: raw.recv(65536), b""))


def test_what_a_request_brings_is_never_taken_for_the_next_one(client):
    host = f"Host: 127.0.0.1:{client.server.server_port}\r\n".encode()
    inner = b"GET /v1/models HTTP/1.1\r\n" + host + b"\r\n"
    size = b"Content-Length: %d\r\n" % len(inner)
    post = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + host
    told = _raw(client, b"GET /health HTTP/1.1\r\n" + host + size + b"\r\n" + inner)
    assert told.count(b"HTTP/1.1 ") == 1
    assert told.count(b"HTTP/1.1 200") == 1
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    for framed in (b"Content-Length: 2\r\n" + size + b"\r\n{}", size + chunked, chunked):
        told = _raw(client, post + framed + inner)
        assert told.count(b"HTTP/1.1 ") == 1
        assert told.startswith((b"HTTP/1.1 400", b"HTTP/1.1 411"))
    assert _raw(client, inner * 2).count(b"HTTP/1.1 200") == 2  # one after another is fine


def test_the_head_of_a_request_is_small(client):
    host = f"Host: 127.0.0.1:{client.server.server_port}\r\n".encode()
    start, line = b"GET /health HTTP/1.1\r\n" + host, b"X-%d: " + b"x" * 10_000 + b"\r\n"
    assert _raw(client, start + b"".join(line % n for n in range(5)) + b"\r\n")[9:12] == b"200"
    assert _raw(client, start + b"".join(line % n for n in range(7)) + b"\r\n")[9:12] == b"431"


def test_other_pages_and_foreign_names_get_nothing(client):
    there = f"127.0.0.1:{client.server.server_port}"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"},
                    {"Host": "evil.example"}, {"Host": "127.0.0.1"}):  # fmt: skip
        assert client.send("POST", "/v1/completions", ASKED, **JSON, **headers).status == 403
    assert client.send("GET", "/v1/models", Host="evil.example").status == 403
    own = {"Origin": f"http://{there}"}
    assert client.send("POST", "/v1/completions", ASKED, **JSON, **own).status == 200


def test_where_there_is_a_key_nothing_is_told_without_it(serving):
    client = serving(key=KEY)
    for given in ({}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY}x"},
                  {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer "}):  # fmt: skip
        told = client.send("POST", "/v1/completions", ASKED, **JSON, **given)
        assert told.status == 401
        assert told.data["error"]["type"] == "authentication_error"
        assert client.send("GET", "/v1/models", **given).status == 401
    right = {"Authorization": f"Bearer {KEY}"}
    assert client.send("POST", "/v1/completions", ASKED, **JSON, **right).status == 200
    assert client.send("GET", "/v1/models", **right).status == 200
    assert not any(KEY in line for line in client.log)


def test_elsewhere_than_on_the_loopback_any_host_name_may_be_used(serving):
    client = serving(key=KEY, host="0.0.0.0")
    right = {"Authorization": f"Bearer {KEY}", "Host": "my-machine.example:1"}
    assert client.send("GET", "/v1/models", **right).status == 200


def test_a_port_that_is_taken_is_an_error_of_the_machine(client, loaded):
    for port, host in ((client.server.server_port, "127.0.0.1"), (0, "203.0.113.9")):
        with pytest.raises(EnvironmentFault, match="cannot serve on"):
            Endpoint(loaded, host=host, port=port, key=None)


def test_the_log_has_a_line_for_each_request_and_no_strangers_text_acts_in_it(serving):
    client = serving()
    client.complete()
    with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=10) as raw:
        raw.sendall(b"GET /\x1b[2J" + b"y" * 5000 + b" HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n")
        raw.recv(4096)
    for _ in range(50):
        if len(client.log) > 1:
            break
        time.sleep(0.05)
    first, second = client.log
    assert first.startswith("127.0.0.1 POST /v1/completions 200 tiny 6+")
    assert "GET /<U+001B>[2Jyyy" in second
    assert " 403 " in second
    assert len(second) < 200


def test_a_failure_of_the_model_is_told_and_the_next_request_is_answered(client, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of \x1b memory")

    with monkeypatch.context() as patched:
        patched.setattr(answering, "answered", fail)
        told = client.complete()
        assert told.status == 500
        assert told.data["error"]["type"] == "server_error"
        assert "out of" in told.data["error"]["message"]
        assert client.complete(stream=True).status == 500
    assert client.complete().status == 200


def test_when_too_many_wait_the_next_one_is_sent_away(client, loaded, monkeypatch):
    monkeypatch.setattr(answering, "MOST_WAITING", 2)
    answerer = Answerer()  # it is not started: nobody is answered
    question = Question(loaded[0], [1], None, (0,))
    answerer.ask(question)
    answerer.ask(question)
    with pytest.raises(Busy):
        answerer.ask(question)
    monkeypatch.setattr(client.server, "answerer", answerer)
    told = client.complete()
    assert told.status == 429
    assert told.data["error"]["code"] == "busy"


def test_a_client_that_hangs_up_ends_its_answer(client, loaded, monkeypatch):
    began, ended = threading.Event(), threading.Event()

    def endless(question, on_piece, cancelled):
        began.set()
        while not cancelled():
            time.sleep(0.02)
        ended.set()
        return answering.Answer()

    with monkeypatch.context() as patched:
        patched.setattr(answering, "answered", endless)
        with socket.create_connection(("127.0.0.1", client.server.server_port), timeout=10) as raw:
            host = f"127.0.0.1:{client.server.server_port}"
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(ASKED)}"
            raw.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + ASKED)
            assert began.wait(10)
        assert ended.wait(10)
    assert client.complete().status == 200


def test_an_answer_may_take_longer_than_a_request(client, monkeypatch):
    monkeypatch.setattr(client.server, "deadline", 0.5)
    plain = answering.answered

    def slow(question, on_piece, cancelled):
        time.sleep(1.25)
        return plain(question, on_piece, cancelled)

    monkeypatch.setattr(answering, "answered", slow)
    assert client.complete().status == 200

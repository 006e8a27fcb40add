"""A server is asked by the address that was typed; its key goes nowhere else; all is bounded."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.system import api_client
from llmft.system.api_client import ApiClient, Declined, OutOfTime

Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers as it is told, and notes the key of each request."""

    def __init__(self, reply: Reply) -> None:
        self.keys: list[str | None] = []
        keys = self.keys

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keys.append(self.headers.get("Authorization"))
                length = int(self.headers.get("Content-Length", 0))
                self.rfile.read(length)
                reply(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Server]]:
    started: list[Server] = []

    def start(reply: Reply) -> Server:
        started.append(Server(reply))
        return started[-1]

    yield start
    for one in started:
        one.http.shutdown()
        one.http.server_close()


def saying(status: int, body: Any = None, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def test_the_key_goes_to_the_host_alone(serve):
    there = serve(saying(200, {"a": 1}))
    client = ApiClient.at(f"http://{there.place}", "key")
    assert client.base.endswith("/v1")
    assert client.get("/models") == {"a": 1} == client.post("/x", {})
    assert ApiClient.at(f"http://{there.place}").get("/models") == {"a": 1}
    assert there.keys == ["Bearer key", "Bearer key", None]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(serve, status):
    other = serve(saying(200, {}))
    there = serve(saying(status, {}, Location=f"http://{other.place}/v1/models"))
    with pytest.raises(EnvironmentFault, match="another address, which is not followed"):
        ApiClient.at(f"http://{there.place}", "key").get("/models")
    assert not other.keys


def test_no_proxy_stands_before_the_loopback(serve, monkeypatch):
    proxy, there = serve(saying(200, {})), serve(saying(200, {"a": 1}))
    monkeypatch.setenv("http_proxy", f"http://{proxy.place}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ApiClient.at(f"http://{there.place}", "key").get("/models") == {"a": 1}
    assert not proxy.keys


@pytest.mark.parametrize("url", [
    "ftp://h/v1", "http://", "http://u:p@h/v1", "http://h/v1?x=1", "http://h/v1#x", "http://h:x/",
    "http://h\\@g/v1", "http://h /v1", "http://h/\x1b", "http://ex\u00e4mple/v1", "http://[::1/v1",
])  # fmt: skip
def test_an_odd_address_is_refused(url):
    with pytest.raises(RecipeError) as caught:
        ApiClient.at(url)
    assert caught.value.faults[0].code == "E211"


@pytest.mark.parametrize("head", [b"HTTP/1.1 " + b"2" * 9000, b"2" * 9000])
def test_little_of_a_broken_first_line_is_told(serve, head):
    def reply(handler):
        handler.wfile.write(head + b"\r\n\r\n")

    with pytest.raises(EnvironmentFault, match=r"E213.*cannot be asked") as caught:
        ApiClient.at(f"http://{serve(reply).place}").get("/models")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("reply", "told"), [
    (saying(401, {}), "refuses the key"), (saying(403, {}), "refuses the key"),
    (saying(500, {"error": {"message": "out of memory"}}), "status 500: out of memory"),
    (saying(200, b"<html>"), "something else than JSON"),
    (saying(200, b"[" * 10**5), "something else than JSON"),
    (saying(200, b"\xff"), "something else than JSON"),
])  # fmt: skip
def test_what_a_server_says_is_told(serve, reply, told):
    with pytest.raises(EnvironmentFault, match=told) as caught:
        ApiClient.at(f"http://{serve(reply).place}", "key").get("/models")
    assert caught.value.faults[0].code == "E213"


@pytest.mark.parametrize(("body", "why"), [
    ({"error": {"message": "no echo"}}, "no echo"), ({"detail": "x" * 999}, "x" * 300),
    ({"message": "m"}, "m"), ([1], "status 422"), (b"<html>", "status 422"),
])  # fmt: skip
def test_what_a_server_declines_can_be_asked_otherwise(serve, body, why):
    with pytest.raises(Declined) as caught:
        ApiClient.at(f"http://{serve(saying(422, body)).place}").post("/x", {})
    assert str(caught.value) == why
    assert caught.value.status == 422


def test_nobody_there_and_silence_and_too_much_are_told(serve, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(EnvironmentFault, match="cannot be asked"):
            ApiClient.at(f"http://127.0.0.1:{free.getsockname()[1]}").get("/models")
    monkeypatch.setattr(api_client, "LARGEST_ANSWER", 2**20)
    with pytest.raises(EnvironmentFault, match="more than 1 MiB"):
        ApiClient.at(f"http://{serve(saying(200, b'x' * 2**21)).place}").get("/models")

    ended = threading.Event()

    def byte_by_byte(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not ended.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    def silent(handler: BaseHTTPRequestHandler) -> None:
        ended.wait(20)

    monkeypatch.setattr(api_client, "LONGEST", 0.5)
    with pytest.raises(EnvironmentFault, match="is not done"):
        ApiClient.at(f"http://{serve(byte_by_byte).place}").get("/models")
    monkeypatch.setattr(api_client, "LONGEST", 20)
    monkeypatch.setattr(api_client, "SILENCE", 0.5)
    with pytest.raises(EnvironmentFault, match="cannot be asked: timed out"):
        ApiClient.at(f"http://{serve(silent).place}").get("/models")
    ended.set()


def test_all_answers_together_are_waited_for_no_longer_than_asked(serve):
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.4)
        saying(200, b"{}")(handler)

    client = ApiClient.at(f"http://{serve(slow).place}").within(1.0)
    began = time.monotonic()
    assert client.get("/models") == {}
    assert 0.4 <= client.waiting.waited < 1.0
    with pytest.raises(OutOfTime):
        [client.get("/models") for _ in range(9)]
    assert 1.0 <= time.monotonic() - began < 3.0
    began = time.monotonic()
    with pytest.raises(OutOfTime):  # and it is not asked again
        client.get("/models")
    assert time.monotonic() - began < 0.2


_HEAD = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("start", "again"), [
    (b"", b"H"), (_HEAD, b"X"), (_HEAD, b"X-A: b\r\n"), (_CHUNKED, b"1"),
    (_CHUNKED + b"0\r\n", b"X-A: b\r\n"), (_CHUNKED, b"1\r\n \r\n"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    (b"HTTP/1.1 422 No\r\nContent-Length: 60000\r\n\r\n", b"x"),
    (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 60000\r\n\r\n", b"x"),
])  # fmt: skip
def test_no_part_of_an_answer_goes_on_for_ever(monkeypatch, start, again):
    monkeypatch.setattr(api_client, "LONGEST", 0.6)
    ended = threading.Event()

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(start)
            while not ended.wait(0.02):
                connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises((EnvironmentFault, Declined)):
            ApiClient.at(f"http://127.0.0.1:{listening.getsockname()[1]}").get("/models")
        assert time.monotonic() - began < 5
        ended.set()
        thread.join(5)

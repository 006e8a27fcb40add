"""Who gets in, what gets in, and that nothing is confirmed before it is on disk."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import socket
import threading
import time
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.ranking import server as serving
from llmft.ranking.requests import Desk
from llmft.system import bounded_server

from .conftest import lines, served

TOKEN = "t" * 43
JSON = {"Content-Type": "application/json", "X-Llmft-Token": TOKEN}


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def server(session):
    with served(Desk(session, lambda: "llmft run x", lambda: 0.5), TOKEN) as found:
        yield found


@pytest.fixture
def ask(server):
    def ask(method="GET", path=f"/{TOKEN}/", body=None, headers=None, host=None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        with closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            sent = {"Host": host or f"127.0.0.1:{server.server_port}"} | (headers or {})
            if body is not None:
                sent = {"Content-Length": str(len(body))} | sent
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    return ask


@pytest.fixture
def decide(ask, samples):
    def decide(headers=JSON, **changes):
        body = {"item": samples[2].id, "groups": [[1], [0]], "all_bad": False, "seconds": 2}
        data = json.dumps(body | changes).encode()
        return ask("POST", f"/{TOKEN}/api/decide", data, headers)

    return decide


def test_only_the_loopback_interface_is_bound(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+/{TOKEN}/", server.address)


@pytest.mark.parametrize(
    "path",
    ["/", "/wrong/", f"/{TOKEN[:-1]}/", f"/{TOKEN}", f"/{TOKEN}x/api/item", "/api/item", "//",
     f"/x/../{TOKEN}/", f"/{TOKEN.upper()}/", "/favicon.ico", f"/%74{TOKEN[1:]}/"],
)  # fmt: skip
def test_without_the_token_there_is_nothing(ask, path):
    answer = ask(path=path)
    assert answer.status == 403
    assert b"Norway" not in answer.body


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}", ""])
def test_a_foreign_host_name_gets_nothing(ask, server, host):
    assert ask(host=host.format(port=server.server_port) or " ").status == 403
    assert ask(host=f"localhost:{server.server_port}").status == 200


def test_a_post_needs_the_token_in_a_header_too(decide, ratings):
    assert decide(headers={"Content-Type": "application/json"}).status == 403
    assert decide(headers=JSON | {"X-Llmft-Token": "wrong"}).status == 403
    assert decide(headers=JSON | {"Origin": "http://evil.example"}).status == 403
    assert decide(headers=JSON | {"Origin": "null"}).status == 403
    assert lines(ratings) == []


def test_a_post_is_json_of_a_stated_and_small_size(ask, decide, ratings):
    path = f"/{TOKEN}/api/decide"
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert decide(headers=JSON | {"Content-Type": kind}).status == 415
    assert ask("POST", path, headers=JSON).status == 411
    assert ask("POST", path, headers=JSON | {"Transfer-Encoding": "chunked"}).status == 411
    for size in (bounded_server.LARGEST_BODY + 1, 10**15, "9" * 5000):
        assert ask("POST", path, headers=JSON | {"Content-Length": str(size)}).status == 413
    assert ask("POST", path, b"{", JSON).status == 400
    assert ask("POST", path, b"[" * 60_000, JSON).status == 400
    assert ask("POST", path, b"[]", JSON).status == 422
    assert lines(ratings) == []


def test_no_path_leads_out_of_the_page(ask):
    for path in (
        "../server.py", "..%2fserver.py", "%2e%2e/server.py", "page/../index.html", "style.css/",
        "//etc/passwd", "index.html", "style.css%00", "..\\server.py", "api", "api/decide",
    ):  # fmt: skip
        assert ask(path=f"/{TOKEN}/{path}").status == 404, path
    assert ask("POST", f"/{TOKEN}/api/other", b"{}", JSON).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X" * 100])
def test_other_methods_are_refused(ask, method):
    answer = ask(method)
    assert answer.status == 501
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_every_answer_forbids_foreign_content_frames_referrers_and_caching(ask):
    for answer in (ask(), ask(path="/"), ask("PUT"), ask(path=f"/{TOKEN}/api/item")):
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in answer.headers["Server"]


def test_the_page_asks_for_nothing_from_anywhere_else(ask):
    for name in serving._FILES:
        answer = ask(path=f"/{TOKEN}/{name}")
        assert answer.status == 200
        text = answer.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|innerHTML|outerHTML|insertAdjacent|eval\(", text), (
            name
        )


def test_a_sample_is_shown_without_a_word_on_which_completion_is_which(ask, session, samples):
    told = ask(path=f"/{TOKEN}/api/item").data
    assert (told["at"], told["item"], told["total"], told["rated"]) == (0, samples[0].id, 3, 0)
    assert [answer["text"] for answer in told["answers"]] == list(session.show(0).texts)
    assert set(told["answers"][0]) == {"text", "copies"}
    assert ask(path=f"/{TOKEN}/api/item?at=1").data["turns"][0]["role"] == "system"
    for at in ("3", "99", "999999999"):
        assert ask(path=f"/{TOKEN}/api/item?at={at}").data["done"]["go_on"] == "llmft run x"
    for at in ("-1", "x", "1" * 5000, "%D9%A1"):
        assert ask(path=f"/{TOKEN}/api/item?at={at}").data["at"] == 0


def test_a_decision_is_on_disk_before_the_answer_says_so(decide, ratings, samples, monkeypatch):
    events = []
    fsync, send = os.fsync, serving._Handler.send_body
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("fsync") or fsync(handle))
    monkeypatch.setattr(
        serving._Handler, "send_body", lambda *args: events.append("answer") or send(*args)
    )
    answer = decide()
    assert answer.data["saved"] == samples[2].id
    assert (answer.data["rated"], answer.data["next"]) == (1, 0)
    assert events == ["fsync", "fsync", "answer"]  # the file, and its folder as it is new
    assert len(lines(ratings)) == 1


def test_a_full_disk_is_told_and_the_next_try_succeeds(decide, ratings, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = decide()
    assert answer.status == 507
    assert "no space left" in answer.data["error"]
    assert lines(ratings) == []
    assert decide().status == 200
    assert len(lines(ratings)) == 1


def test_what_is_no_decision_is_refused(decide, ratings):
    for changes in ({"item": "0" * 64}, {"item": None}, {"item": []}, {"groups": [[0]]},
                    {"groups": {}}, {"all_bad": None}, {"seconds": None},
                    {"seconds": 10**400}):  # fmt: skip
        assert decide(**changes).status == 422, changes
    assert lines(ratings) == []


def test_many_decisions_at_once_are_whole_lines(decide, ratings):
    threads = [threading.Thread(target=decide) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(ratings)) == 16


def test_garbage_and_silence_do_not_stop_the_server(ask, server):
    for data in (b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as raw:
            raw.sendall(data)
    assert ask().status == 200


def test_an_address_that_is_none_is_refused(ask):
    assert ask("GET", "http://[x/").status == 400


def test_a_port_that_is_taken_is_an_error_of_the_machine(server, session):
    with pytest.raises(EnvironmentFault, match=f"cannot serve on 127.0.0.1:{server.server_port}"):
        serving.Server(Desk(session), TOKEN, server.server_port)


def test_the_page_can_end_the_program(ask, server):
    assert ask("POST", f"/{TOKEN}/api/finish", b"{}", JSON).data == {"finished": True}
    assert server.finished.wait(5)


@pytest.mark.extended
def test_more_idle_connections_than_a_process_may_open_do_not_shut_the_page_out(server, ask):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("this process may not open so many connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3000, hard))
    held = []
    try:
        for _ in range(1080):
            held.append(socket.create_connection(("127.0.0.1", server.server_port), timeout=10))
        began = time.process_time()
        for _ in range(5):
            assert ask().status == 200
            time.sleep(0.1)
        assert time.process_time() - began < 2  # it does not spin
        assert len(server._since) <= bounded_server.MOST_CONNECTIONS
        assert threading.active_count() < 200
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_request_that_comes_byte_by_byte_is_ended(server, monkeypatch):
    monkeypatch.setattr(server, "deadline", 1.0)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as slow:
        began, ended = time.monotonic(), False
        while not ended and time.monotonic() - began < 15:
            try:
                slow.sendall(b"G")
                slow.settimeout(0.3)
                ended = slow.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended
        assert time.monotonic() - began < 12


def test_a_connection_that_goes_on_asking_is_kept(server, monkeypatch):
    monkeypatch.setattr(server, "deadline", 1.0)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    with closing(connection):
        for _ in range(5):
            connection.request("GET", f"/{TOKEN}/style.css")
            assert connection.getresponse().read()
            time.sleep(0.35)

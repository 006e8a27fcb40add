"""A hub that answers byte by byte is given up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from huggingface_hub import constants

from llmft.api.errors import EnvironmentFault
from llmft.system import hub_commits

_HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(params=[_HEAD, _HEAD + b"Content-Length: 99999\r\n\r\n"], ids=["head", "body"])
def dripping(request, monkeypatch, tmp_path):
    """A hub whose every answer begins so, and goes on for ever."""
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(request.param)
            while not ended.wait(0.05):
                connection.sendall(b"X")

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(hub_commits, "_WHOLE_SECONDS", 0.2)
        hub_commits.begin()
        yield
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
    hub_commits.begin()


def test_a_hub_that_drips_is_given_up(dripping):
    for ask in (
        lambda: hub_commits.of_model("a/b", None),
        lambda: hub_commits.of_adapter("a/b", None),
        lambda: hub_commits.file_of_model("a/b", "0" * 40, "x.json", 9),
    ):
        hub_commits.begin()
        began = time.monotonic()
        with pytest.raises(EnvironmentFault) as caught:
            ask()
        assert caught.value.faults[0].code == "E201"
        assert time.monotonic() - began < 10
    hub_commits.begin()
    assert hub_commits.of_dataset("a/b", None) is None
    assert hub_commits.unreachable()

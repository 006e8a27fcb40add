"""An endpoint in this process, over runs of a few steps, and a client that speaks plain HTTP."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmft.endpoint.served import Served, asked_runs, load
from llmft.endpoint.server import Endpoint
from tests.exporting.conftest import lora_run, rows_file, train

__all__ = ["lora_run", "rows_file", "train"]
KEY = "k" * 32


@dataclass(frozen=True)
class Told:
    status: int
    headers: Any
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events, but the last, which is [DONE]."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]


class Client:
    """Sends requests to an endpoint. log: the lines that it logged."""

    def __init__(self, server: Endpoint, log: list[str]) -> None:
        self.server, self.log = server, log

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Told:
        port = self.server.server_port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Told(answer.status, answer.headers, answer.read())

    def post(self, path: str, **body: Any) -> Told:
        data = json.dumps(body).encode()
        return self.send("POST", f"/v1/{path}", data, Content_Type="application/json")

    def chat(self, text: str = "say 3:", **more: Any) -> Told:
        messages = [{"role": "user", "content": text}]
        asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8}
        return self.post("chat/completions", **(asked | more))

    def complete(self, prompt: Any = "say 3:", **more: Any) -> Told:
        asked = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 8}
        return self.post("completions", **(asked | more))


@pytest.fixture(scope="session")
def loaded(lora_run: Path) -> list[Served]:
    """The same run as trained, and through its chat template, and its base."""
    (single, base) = load(asked_runs([str(lora_run)]), base=True)
    whole = Served("talk", single.trained, single.model, True)
    return [single, base, whole]


@pytest.fixture(scope="session")
def serving(loaded: list[Served]) -> Iterator[Callable[..., Client]]:
    """Start an endpoint, and return its client."""
    started: list[Endpoint] = []

    def start(served: list[Served] = loaded, **more: Any) -> Client:
        log: list[str] = []
        asked = {"host": "127.0.0.1", "port": 0, "key": None, "log": log.append} | more
        server = Endpoint(served, **asked)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        started.append(server)
        return Client(server, log)

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def client(serving: Callable[..., Client]) -> Client:
    return serving()

"""What programs say to each other: requests to `llmft serve`, and answers to `verify export`.

No connection is opened: both ends are a pair of sockets in one process, so that what does open one
is noticed. The run and its model are loaded once, before any input is tried.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

REQUESTS: dict[str, tuple[str, Any]] = {
    "models": ("GET /v1/models", None),
    "one": ("GET /v1/models/tiny", None),
    "text": ("POST /v1/completions", {
        "model": "tiny", "prompt": "say 3:", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9,
        "top_k": 5, "seed": 3, "stop": ["x", "yy"], "logprobs": 2, "echo": True, "n": 1,
        "user": "me", "metadata": {"a": "b"}, "logit_bias": {}, "return_token_ids": True,
    }),
    "ids": ("POST /v1/completions", {
        "model": "tiny", "prompt": [[1, 2], [3]], "max_tokens": 2, "logprobs": 1, "suffix": "",
    }),
    "chat": ("POST /v1/chat/completions", {
        "model": "tiny", "messages": [{"role": "user", "content": "say 3:"}], "max_tokens": 2,
        "logprobs": True, "top_logprobs": 2, "tools": [], "response_format": {"type": "text"},
    }),
    "stream": ("POST /v1/chat/completions", {
        "model": "talk", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True},
    }),
}  # fmt: skip
_HOST = b"127.0.0.1:1"
_READ, _REST = 8.0, 0.3  # seconds: what is held ends before; and for what never comes
_loaded: dict[str, Any] = {}


def make(place: Path) -> None:
    """Load a run, and write the messages that are to be changed, as they are."""
    from llmft.endpoint.served import Served, asked_runs, load

    _loaded["base"] = place / "base"
    with chdir(place / "base"):
        (single,) = load(asked_runs(["tiny=run"]))
    trained = single.trained
    _loaded["served"] = [single, Served("talk", trained, single.model, True)]
    object.__setattr__(trained, "model", lambda: single.model)  # it is not loaded for each input
    (place / "served").mkdir()
    for number, (name, (line, body)) in enumerate(REQUESTS.items()):
        data = b"" if body is None else json.dumps(body).encode()
        head = [line.encode() + b" HTTP/1.1", b"Host: " + _HOST]
        if body is not None:
            head += [b"Content-Type: application/json", b"Content-Length: %d" % len(data)]
        whole = b"\r\n".join(head) + b"\r\n\r\n" + data
        (place / "served" / f"{number}-{name}.http").write_bytes(whole)
    (place / "endpoint").mkdir()
    serving = _endpoint()

    def record(number: int, asked: bytes) -> bytes:
        answer = _answer(serving, asked)
        (place / "endpoint" / f"{number}.http").write_bytes(answer)
        return answer

    if (outcome := _verified(record)) != "right":
        raise RuntimeError(f"a true server is not as the run: {outcome}")
    serving.server_close()


def served(dice: float) -> str:
    """Send the requests one after another, each on a connection of its own; then a plain one."""
    fine, log = True, list[str]()
    serving = _endpoint(log.append)
    for path in sorted(Path().glob("*.http")):
        sent = path.read_bytes()
        told = _answer(serving, sent)
        fine = fine and told.startswith(b"HTTP/1.1 200")
        if b" 500 " in told[:20] or b"Traceback" in told:
            return f"bug {told[-300:]!r}"
    plain = b"GET /v1/models HTTP/1.1\r\nHost: " + _HOST + b"\r\n\r\n"
    if not _answer(serving, plain).startswith(b"HTTP/1.1 200"):
        return "bug the server answers no more"
    if not all(line.isprintable() for line in log):
        return "bug a line of the log is not printable"
    return "right" if fine else "fault refused"


def asked(dice: float) -> str:
    """Verify the run beside a server that answers what the files hold, in their order."""
    here = Path.cwd()
    return _verified(lambda number, _: (here / f"{number}.http").read_bytes())


def _endpoint(log: Callable[[str], None] = lambda _: None) -> Any:
    from llmft.endpoint import server

    class Watched(server.Endpoint):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A traceback on the server's screen is no answer."""
            import sys

            if not isinstance(sys.exception(), OSError):
                os.write(2, f"{sys.exception()!r}\n".encode())
                os._exit(3)

    server._Handler.timeout = _REST
    serving = Watched(_loaded["served"], host="127.0.0.1", port=0, key=None, log=log)
    serving.hosts = {_HOST.decode()}
    return serving


def _answer(serving: Any, sent: bytes) -> bytes:
    """Return all that is answered to bytes, after which the client says no more."""
    ours, theirs = socket.socketpair()
    with ours:
        serving.process_request(theirs, ("127.0.0.1", 1))
        writing = threading.Thread(target=_send, args=(ours, sent), daemon=True)
        writing.start()
        ours.settimeout(_READ)
        told = b""
        with suppress(ConnectionError):  # refused, with bytes left that were not read
            while piece := ours.recv(65536):
                told += piece
                if _is_whole(told):
                    writing.join(_READ)
                    ours.shutdown(socket.SHUT_WR)  # before, it would have hung up
    return told


def _is_whole(told: bytes) -> bool:
    head, _, body = told.partition(b"\r\n\r\n")
    sizes = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
    return body.endswith(b"0\r\n\r\n") or (bool(sizes) and len(body) >= sizes[0])


def _send(to: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # it was refused before it was read
        to.sendall(data)


class _Connection(http.client.HTTPConnection):
    """A connection whose other end answers from a function of what was asked."""

    replies: Callable[[bytes], bytes]

    def connect(self) -> None:
        self.sock, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()

    def _serve(self, theirs: socket.socket) -> None:
        with theirs:
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += theirs.recv(65536)
            head, _, body = asked.partition(b"\r\n\r\n")
            sizes = [int(line[15:]) for line in head.lower().split(b"\r\n")
                     if line.startswith(b"content-length:")]  # fmt: skip
            while len(body) < sum(sizes):
                body += theirs.recv(65536)
            _send(theirs, type(self).replies(head + b"\r\n\r\n" + body))


def _verified(answer: Callable[[int, bytes], bytes]) -> str:
    import io
    import urllib.request
    from contextlib import redirect_stderr, redirect_stdout

    from llmft.api.errors import LlmftError
    from llmft.cli.commands.output import printable
    from llmft.cli.commands.verify_export import as_json, as_text
    from llmft.system.api_client import ApiClient
    from llmft.verifying.endpoint import verify_endpoint

    asked: list[bytes] = []

    def reply(sent: bytes) -> bytes:
        sent = sent.replace(b"Host: 127.0.0.1\r\n", b"Host: " + _HOST + b"\r\n")
        asked.append(sent)
        try:
            return answer(len(asked) - 1, sent)
        except FileNotFoundError:  # it asks more often than before
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"

    class Handler(urllib.request.HTTPHandler):
        def http_open(self, request: Any) -> Any:
            _Connection.replies = staticmethod(reply)  # type: ignore[assignment]
            return self.do_open(_Connection, request)

    class Client(ApiClient):
        def _opener(self) -> urllib.request.OpenerDirector:
            opener = super()._opener()
            for other in [h for h in opener.handlers if type(h) is urllib.request.HTTPHandler]:
                opener.handlers.remove(other)
            opener.handle_open.pop("http", None)
            opener.add_handler(Handler())
            return opener

    trained = _loaded["served"][0].trained
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), chdir(_loaded["base"]):
            client = Client("http://" + _HOST.decode() + "/v1", "key")
            verdict = verify_endpoint(trained, client, prompts=1, max_new_tokens=2)
            json.dumps(as_json(verdict))
            text = printable(as_text(verdict))
            text.encode()
    except LlmftError as error:
        code, text = error.faults[0].code, str(error)
        return f"fault {code}" if len(text) < 3000 else f"bug {code}: {len(text)} characters"
    if len(text) > 20_000:
        return f"bug the verdict has {len(text):,} characters"
    return "right" if verdict.fine else "fault E407"

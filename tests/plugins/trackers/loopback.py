"""Servers on the loopback that keep what they were sent, for the trackers' tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Sent(NamedTuple):
    """One request: what was asked, with which login, and its body."""

    verb: str
    path: str
    login: str
    body: Any


class Loopback(BaseHTTPRequestHandler):
    """Answers what `answer` says, and keeps every request in `seen`."""

    seen: list[Sent]
    url: str

    def answer(self, sent: Sent) -> tuple[int, Any]:
        """Return the status and the body, as JSON, or for a redirect its location."""
        return 404, {}

    def _any(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw
        login = self.headers.get("Authorization", "") + self.headers.get("Cookie", "")
        sent = Sent(self.command, self.path, login, body)
        self.seen.append(sent)
        status, reply = self.answer(sent)
        data = b"" if 300 <= status < 400 else json.dumps(reply).encode()
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", reply)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = _any

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(handler: type[Loopback], host: str = "127.0.0.1") -> Iterator[type[Loopback]]:
    """Serve a handler of its own: its `url`, and what it has `seen`."""
    own = type("Handler", (handler,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        own.url = f"http://{host}:{http.server_port}"
        yield own
        http.shutdown()

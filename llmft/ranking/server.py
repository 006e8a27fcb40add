"""The page's server: for this machine alone, and for whoever knows the token in the address.

Only the loopback interface is bound. The Host header must be ours (a foreign name that resolves to
127.0.0.1 gets nothing), every path begins with the token, and what changes something also needs the
token in a header and a JSON body, which no foreign page can send. Files come from a fixed list.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import compare_digest
from typing import Any
from urllib.parse import parse_qs, urlsplit

from llmft.api.errors import EnvironmentFault, LlmftError
from llmft.ranking.requests import Asked, Desk

LARGEST_BODY = 64 * 1024
MOST_CONNECTIONS = 64
DEADLINE = 30.0  # seconds, for a whole request with its answer, and for a connection at rest
TOKEN_HEADER = "X-Llmft-Token"
_DIGITS = re.compile(r"[0-9]{1,9}")
_PAGE = Path(__file__).parent / "page"
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in ("page.js", "cards.js", "drag.js", "order.js", "saving.js", "words.js")
    },
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Serves one rater's session on 127.0.0.1; `finished` is set when the page says so.

    Raises EnvironmentFault (E209) where the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, desk: Desk, token: str, port: int = 0) -> None:
        self.desk, self.token = desk, token
        self.finished = threading.Event()
        self._since: dict[Any, float] = {}  # an open connection, and when its last answer ended
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "no such port"
            what = f"cannot serve on 127.0.0.1:{port}: {reason.lower()}"
            raise EnvironmentFault("E209", what, fix="give another --port, or none") from error
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def server_bind(self) -> None:
        """Bind; HTTPServer would also ask the name service for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a connection; where too many are open, the one that rests longest is ended."""
        since = self._since
        if len(since) >= MOST_CONNECTIONS:
            self._end(min(list(since), key=lambda one: since.get(one, 0.0)))
        since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that has ended."""
        self._since.pop(request, None)
        super().shutdown_request(request)

    def answered(self, request: Any) -> None:
        """Let a connection rest, or send its next request, for the whole time again."""
        if request in self._since:
            self._since[request] = time.monotonic()

    def service_actions(self) -> None:
        """End connections whose request takes too long, byte by byte or not at all."""
        late = time.monotonic() - DEADLINE
        for request, since in list(self._since.items()):
            if since < late:
                self._end(request)

    def _end(self, request: Any) -> None:
        self._since.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)  # whoever reads or writes it sees the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that hangs up in mid-answer; show our own mistakes."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "llmft", ""
    timeout = DEADLINE

    def handle_one_request(self) -> None:
        """Answer one request, and let the connection rest."""
        super().handle_one_request()
        self.server.answered(self.connection)

    def do_GET(self) -> None:
        """Answer with a file of the page, or with a sample."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """Take a decision, or the end."""
        self._answered(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no proper request, with our headers."""
        self.close_connection = True
        self._send_json(HTTPStatus(code), {"error": HTTPStatus(code).phrase.lower()})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the rater's."""

    def _answered(self, answer: Any) -> None:
        try:
            answer()
        except _Refused as refused:
            self.close_connection = True  # a body that was not read would be the next request
            self._send_json(refused.status, {"error": str(refused)})
        except LlmftError as error:
            self._send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": error.faults[0].what})

    def _get(self) -> None:
        path, query = self._path()
        if path == "api/item":
            number = query.get("at", [None])[0]
            at = int(number) if number and _DIGITS.fullmatch(number) else None
            self._send_json(HTTPStatus.OK, self._asked(lambda: self.server.desk.item(at)))
        elif path in _FILES:
            name, kind = _FILES[path]
            self._send(HTTPStatus.OK, kind, (_PAGE / name).read_bytes())
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        path, _ = self._path()
        self._check_token(self.headers.get(TOKEN_HEADER, ""))
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "this comes from another page")
        body = self._json_body()
        if path == "api/decide":
            self._send_json(HTTPStatus.OK, self._asked(lambda: self.server.desk.decide(body)))
        elif path == "api/finish":
            self._send_json(HTTPStatus.OK, {"finished": True})
            self.server.finished.set()
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _path(self) -> tuple[str, dict[str, list[str]]]:
        """Return what stands after the token, and the query; refuse who does not belong here."""
        if self.headers.get("Host", "").lower() not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "this is not the address of this program")
        try:
            parts = urlsplit(self.path)
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "this is no address") from error
        token, slash, rest = parts.path.removeprefix("/").partition("/")
        self._check_token(token if slash else "")
        return rest, parse_qs(parts.query)

    def _check_token(self, token: str) -> None:
        if not compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "open the address that the program printed")

    def _json_body(self) -> Any:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the body must be given")
        if not _DIGITS.fullmatch(length) or int(length) > LARGEST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from error

    def _asked(self, ask: Any) -> Asked:
        try:
            answer: Asked = ask()
        except (ValueError, OverflowError) as error:
            raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        return answer

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

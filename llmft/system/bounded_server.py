"""A small HTTP server whose connections, requests, bodies and times are bounded.

For the ranking page and for `llmft serve`. Who may ask is decided by whoever builds on it: what is
here checks the Host header (a foreign name that resolves to this machine gets nothing), the origin
of a request, the token, and that a body is JSON of a stated and small size, which no foreign page
can send.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import socketserver
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import compare_digest
from typing import Any, cast

from llmft.api.errors import EnvironmentFault

LARGEST_BODY = LARGEST_HEAD = 64 * 1024
MOST_CONNECTIONS = 64
DEADLINE = 30.0  # seconds, for a whole request with its answer, and for a connection at rest
LOOPBACK = "127.0.0.1"
DIGITS = re.compile(r"[0-9]{1,9}")
_CODING = "Transfer-Encoding"
_LOCAL_NAMES = (LOOPBACK, "localhost", "[::1]")


class BoundedServer(ThreadingHTTPServer):
    """Listens on one address with so many connections at most, each for so long.

    A request that is worked on says so by `answered`, which gives its connection the whole time
    again. hosts: what the Host header may be; None: anything, where the token alone decides.
    Raises EnvironmentFault (E209) where the address or the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 64
    deadline = DEADLINE

    def __init__(self, handler: type[BoundedHandler], port: int, host: str = LOOPBACK) -> None:
        self._since: dict[Any, float] = {}  # an open connection, and when its last answer ended
        self._host = host
        shown = f"[{host}]" if ":" in host else host
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no such port"
            what = f"cannot serve on {shown}:{port}: {reason.lower()}"
            raise EnvironmentFault("E209", what, fix="give another --port, or none") from error
        self.place = f"{shown}:{self.server_port}"
        self.loopback = is_loopback(host)
        self.hosts: set[str] | None = (
            {f"{name}:{self.server_port}" for name in (*_LOCAL_NAMES, shown)}
            if self.loopback
            else None
        )

    def server_bind(self) -> None:
        """Bind; HTTPServer would also ask the name service for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self._host, self.server_address[1]

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
        late = time.monotonic() - self.deadline
        for request, since in list(self._since.items()):
            if since < late:
                self._end(request)

    def _end(self, request: Any) -> None:
        self._since.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)  # whoever reads or writes it sees the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hangs up in mid-answer; show our own mistakes."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class BoundedHandler(BaseHTTPRequestHandler):
    """What the handlers of both servers share. headers_sent: those of every answer."""

    server: BoundedServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "llmft", ""
    timeout = DEADLINE
    headers_sent: Mapping[str, str] = {}
    largest_body = LARGEST_BODY

    def handle_one_request(self) -> None:
        """Answer one request, and let the connection rest."""
        super().handle_one_request()
        self.server.answered(self.connection)

    def parse_request(self) -> bool:
        """Read the head of a request, of so many bytes at most; refuse one of two lengths."""
        file = self.rfile
        self.rfile = cast(Any, _Head(file))
        try:
            read = super().parse_request()
        finally:
            self.rfile = file
        if not read:
            return False
        lengths, chunked = self.headers.get_all("Content-Length", []), self.headers.get(_CODING)
        if len(lengths) > 1 or (lengths and chunked is not None):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        if self.command != "POST" and (lengths not in ([], ["0"]) or chunked is not None):
            self.close_connection = True  # its body is not read, and is no next request
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no proper request, with our headers."""
        self.close_connection = True
        status = HTTPStatus(code)
        self.send_json(status, self.error_body(status, status.phrase.lower()))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: what a client sends is not shown as it came."""

    def error_body(self, status: HTTPStatus, why: str) -> Any:
        """Return what a client that is refused is told."""
        return {"error": why}

    def answer_by(self, answer: Callable[[], None]) -> None:
        """Answer a request; one that is refused hears why, and its connection ends."""
        try:
            answer()
        except Refused as refused:
            self.close_connection = True  # a body that was not read would be the next request
            self.send_json(refused.status, self.error_body(refused.status, str(refused)))

    def check_host(self) -> None:
        """Refuse a request whose Host header is not one of ours."""
        hosts = self.server.hosts
        if hosts is not None and self.headers.get("Host", "").lower() not in hosts:
            raise Refused(HTTPStatus.FORBIDDEN, "this is not the address of this program")

    def check_origin(self) -> None:
        """Refuse what another page's script sends."""
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in (self.server.hosts or ()):
            raise Refused(HTTPStatus.FORBIDDEN, "this comes from another page")

    def json_body(self) -> Any:
        """Return the body as data; refuse one that is no JSON, or of an unknown or large size."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            what = "the body must be JSON, with the header Content-Type: application/json"
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, what)
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the body must be given")
        if not DIGITS.fullmatch(length) or int(length) > self.largest_body:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too large")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from error

    def send_json(self, status: HTTPStatus, value: Any) -> None:
        """Answer with data."""
        self.send_body(status, "application/json", json.dumps(value).encode())

    def send_body(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        """Answer with bytes of a kind."""
        self.send_head(status, kind, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def send_head(self, status: HTTPStatus, kind: str, more: Mapping[str, str]) -> None:
        """Begin an answer."""
        self.send_response(status)
        for name, value in {**self.headers_sent, "Content-Type": kind, **more}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


class _Head:
    """The lines of a request's head; http.server reads 100 of them, of 64 KB each."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, LARGEST_HEAD

    def readline(self, most: int) -> bytes:
        """Return the next line. Raises LineTooLong, which http.server answers with 431."""
        line: bytes = self._file.readline(min(most, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("head")
        return line


def same_token(given: str, wanted: str) -> bool:
    """Return whether a token is the right one, in a time that does not tell how far it is."""
    return compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own, which no other can reach."""
    import ipaddress

    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

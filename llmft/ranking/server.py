"""The page's server: for this machine alone, and for whoever knows the token in the address.

Only the loopback interface is bound. The Host header must be ours (a foreign name that resolves to
127.0.0.1 gets nothing), every path begins with the token, and what changes something also needs the
token in a header and a JSON body, which no foreign page can send. Files come from a fixed list.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from llmft.api.errors import LlmftError
from llmft.ranking.requests import Asked, Desk
from llmft.system.bounded_server import (
    DIGITS,
    LOOPBACK,
    BoundedHandler,
    BoundedServer,
    Refused,
    same_token,
)

TOKEN_HEADER = "X-Llmft-Token"
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


class Server(BoundedServer):
    """Serves one rater's session on 127.0.0.1; `finished` is set when the page says so.

    Raises EnvironmentFault (E209) where the port cannot be had.
    """

    def __init__(self, desk: Desk, token: str, port: int = 0) -> None:
        self.desk, self.token = desk, token
        self.finished = threading.Event()
        super().__init__(_Handler, port)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"


class _Handler(BoundedHandler):
    server: Server
    headers_sent = _HEADERS

    def do_GET(self) -> None:
        """Answer with a file of the page, or with a sample."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """Take a decision, or the end."""
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        try:
            self.answer_by(answer)
        except LlmftError as error:
            self.send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": error.faults[0].what})

    def _get(self) -> None:
        path, query = self._path()
        if path == "api/item":
            number = query.get("at", [None])[0]
            at = int(number) if number and DIGITS.fullmatch(number) else None
            self.send_json(HTTPStatus.OK, self._asked(lambda: self.server.desk.item(at)))
        elif path in _FILES:
            name, kind = _FILES[path]
            self.send_body(HTTPStatus.OK, kind, (_PAGE / name).read_bytes())
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        path, _ = self._path()
        self._check_token(self.headers.get(TOKEN_HEADER, ""))
        self.check_origin()
        body = self.json_body()
        if path == "api/decide":
            self.send_json(HTTPStatus.OK, self._asked(lambda: self.server.desk.decide(body)))
        elif path == "api/finish":
            self.send_json(HTTPStatus.OK, {"finished": True})
            self.server.finished.set()
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _path(self) -> tuple[str, dict[str, list[str]]]:
        """Return what stands after the token, and the query; refuse who does not belong here."""
        self.check_host()
        try:
            parts = urlsplit(self.path)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "this is no address") from error
        token, slash, rest = parts.path.removeprefix("/").partition("/")
        self._check_token(token if slash else "")
        return rest, parse_qs(parts.query)

    def _check_token(self, token: str) -> None:
        if not same_token(token, self.server.token):
            raise Refused(HTTPStatus.FORBIDDEN, "open the address that the program printed")

    def _asked(self, ask: Any) -> Asked:
        try:
            answer: Asked = ask()
        except (ValueError, OverflowError) as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        return answer

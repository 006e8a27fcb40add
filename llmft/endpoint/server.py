"""The endpoint's server: OpenAI's paths, for this machine alone or for whoever has the key.

On the loopback, the Host header must be ours and a body must be JSON, which no foreign page can
send. Elsewhere a key is needed; where there is one, it is needed on the loopback too.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from llmft.api.errors import LlmftError
from llmft.api.shown_text import on_one_line
from llmft.endpoint import responses
from llmft.endpoint.answering import Answer, Answerer, Busy, Gone, Piece, Question, Reply
from llmft.endpoint.requests import (
    BadRequest,
    ChatRequest,
    CompletionRequest,
    read,
)
from llmft.endpoint.responses import ChatResponse, CompletionResponse, Response
from llmft.endpoint.served import Served
from llmft.system.bounded_server import BoundedHandler, BoundedServer, Refused, same_token

LARGEST_BODY = 2**20
_KINDS: dict[str, tuple[type[Any], type[Response]]] = {
    "/v1/chat/completions": (ChatRequest, ChatResponse),
    "/v1/completions": (CompletionRequest, CompletionResponse),
}
_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}
_SHOWN = 100


class Endpoint(BoundedServer):
    """Serves models by their names. key: what clients must send; None: nothing is asked for.

    log: told a line of each request. Raises EnvironmentFault (E209) where the port cannot be had.
    """

    def __init__(
        self,
        served: Sequence[Served],
        *,
        host: str,
        port: int,
        key: str | None,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.served = {one.name: one for one in served}
        self.key, self.log = key, log
        self.created = int(time.time())
        self.answerer, self.reading = Answerer(), threading.Lock()
        super().__init__(_Handler, port, host)
        self.answerer.start()

    @property
    def address(self) -> str:
        """What a client is given as its base URL."""
        return f"http://{self.place}/v1"


class _Handler(BoundedHandler):
    server: Endpoint
    headers_sent = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    largest_body = LARGEST_BODY
    _tokens = ""

    def do_GET(self) -> None:
        """Tell which models there are."""
        self._logged(self._get)

    def do_POST(self) -> None:
        """Answer a question."""
        self._logged(self._post)

    def error_body(self, status: HTTPStatus, why: str) -> Any:
        """Return an error in OpenAI's form."""
        return responses.error(why, _TYPES.get(status, "invalid_request_error"))

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Remember how a request was answered, for the line that is logged."""
        self._code = int(code)

    def _logged(self, answer: Callable[[], None]) -> None:
        began, self._code, self._tokens = time.monotonic(), 0, ""
        try:
            self.answer_by(answer)
        except Gone:
            self.close_connection = True
            self._tokens += "; the client hung up"
        finally:
            who, path = str(self.client_address[0]), self.path[:_SHOWN]
            line = f"{who} {self.command} {path} {self._code or '-'}{self._tokens}"
            self.server.log(on_one_line(f"{line} {time.monotonic() - began:.2f} s"))

    def _get(self) -> None:
        self.check_host()
        path = self.path.partition("?")[0]
        if path == "/health":
            return self.send_json(HTTPStatus.OK, {"status": "ok"})
        self._check_key()
        names, created = list(self.server.served), self.server.created
        if path == "/v1/models":
            return self.send_json(HTTPStatus.OK, responses.models(names, created))
        name = unquote(path.removeprefix("/v1/models/"))
        if path.startswith("/v1/models/") and name in names:
            return self.send_json(HTTPStatus.OK, responses.model(name, created))
        raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this path")

    def _post(self) -> None:
        self.check_host()
        self.check_origin()
        self._check_key()
        kinds = _KINDS.get(self.path.partition("?")[0])
        if kinds is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this path")
        body = self.json_body()
        try:
            request = read(kinds[0], body)
            served = self.server.served.get(request.model)
            if served is None:
                there = ", ".join(self.server.served)
                why = f"there is no model '{request.model}' here (there is: {there})"
                raise BadRequest(why, "model", "model_not_found")
            with self.server.reading:  # tokenizers are not made for several threads
                questions = request.questions(served)
            response = kinds[1](questions, ids=bool(request.return_token_ids))
            answering = _Answering(self, questions, response)
            if request.stream:
                answering.stream(usage=request.usage_in_stream)
            else:
                answering.whole()
        except BadRequest as error:
            status = (
                HTTPStatus.NOT_FOUND if error.code == "model_not_found" else HTTPStatus.BAD_REQUEST
            )
            self._fail(status, str(error), error.param, error.code)
        except LlmftError as error:
            fault = error.faults[0]
            why = fault.what + (f" — {fault.fix}" if fault.fix else "")
            self._fail(HTTPStatus.BAD_REQUEST, why, None, fault.code)
        except Busy:
            self._fail(HTTPStatus.TOO_MANY_REQUESTS, "too many requests wait", None, "busy")
        except (Gone, OSError):
            raise
        except Exception as error:  # the model, or we: the server goes on
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}"[:500])

    def _fail(
        self, status: HTTPStatus, why: str, param: str | None = None, code: str | None = None
    ) -> None:
        kind = _TYPES.get(status, "invalid_request_error")
        if self._code == HTTPStatus.OK:  # in the middle of a stream
            self.close_connection = True
            self._tokens += f"; failed: {why}"
            return
        self.send_json(status, responses.error(why, kind, param, code))

    def _check_key(self) -> None:
        key = self.server.key
        if key is None:
            return
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not same_token(given.strip(), key):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the key is missing or wrong")

    def alive(self) -> bool:
        """Return whether the client is still there; its connection is then not at rest."""
        self.server.answered(self.connection)
        try:
            watched = select.poll()  # unlike select, for any number of open files
            watched.register(self.connection, select.POLLIN)
            return not watched.poll(0) or self.connection.recv(1, socket.MSG_PEEK) != b""
        except (OSError, ValueError):
            return False


class _Answering:
    """The answers to one request, on their way to its client."""

    def __init__(
        self, handler: _Handler, questions: Sequence[Question], response: Response
    ) -> None:
        self.handler, self.questions, self.response = handler, questions, response
        self.begun = False

    def whole(self) -> None:
        """Answer when everything is there."""
        answers = []
        for question in self.questions:
            answers.append(self._ask(question).whole(self.handler.alive))
        self._count(answers)
        self.handler.send_json(HTTPStatus.OK, self.response.whole(answers))

    def stream(self, *, usage: bool) -> None:
        """Answer in server-sent events, piece by piece. usage: count the tokens at the end."""
        for part in self._ask(self.questions[0]).parts(self.handler.alive):
            if not self.begun:
                self._begin()
                self._send(self.response.first_chunks())
            if isinstance(part, Piece):
                if part.text or part.tokens:
                    self._send([self.response.chunk(part)])
            else:
                self._count([part])
                self._send([self.response.last_chunk(part)])
                if usage:
                    self._send([self.response.usage_chunk(part)])
        self._write(b"data: [DONE]\n\n")
        self._write(b"")

    def _ask(self, question: Question) -> Reply:
        return self.handler.server.answerer.ask(question)

    def _count(self, answers: Sequence[Answer]) -> None:
        used = responses.usage(self.questions, answers)
        tokens = f"{used['prompt_tokens']}+{used['completion_tokens']} tokens"
        self.handler._tokens = f" {self.response.served.name} {tokens}"

    def _begin(self) -> None:
        self.begun = True
        self.chunked = self.handler.request_version != "HTTP/1.0"
        if not self.chunked:
            self.handler.close_connection = True
        more = {"Transfer-Encoding": "chunked"} if self.chunked else {}
        self.handler.send_head(HTTPStatus.OK, "text/event-stream; charset=utf-8", more)

    def _send(self, chunks: Iterable[Any]) -> None:
        for chunk in chunks:
            self._write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        """Write a chunk; an empty one is the end."""
        if self.chunked:
            data = b"%x\r\n%s\r\n" % (len(data), data)
        self.handler.wfile.write(data)

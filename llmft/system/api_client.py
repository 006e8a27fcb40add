"""Asks one named server in JSON: its address is checked, redirects are refused, all is bounded.

A key goes to the host that the screen names and to no other.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from llmft.api.errors import EnvironmentFault, RecipeError
from llmft.system.bounded_server import is_loopback
from llmft.system.time_limit import TimeUp, time_limit

SILENCE, LONGEST = 120.0, 900.0  # seconds without a byte, and for a whole answer
LARGEST_ANSWER = 2**25  # as JSON it can take 20 times as much
_PIECE = 2**16
_SHOWN = 300


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would hand the key on to whichever host it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return None, so that the redirect is an error."""


class Declined(Exception):
    """The server answers that it will not: status, and what it says."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class OutOfTime(Exception):
    """All that a client may wait for its server has been waited."""


@dataclass
class Waiting:
    """How long a client waits for its server, all answers together. most, waited: in seconds."""

    most: float
    waited: float = 0.0

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return max(0.0, self.most - self.waited)


class Unavailable(EnvironmentFault):
    """The server is busy, fails or cannot be reached now: the same request may work later."""


@dataclass(frozen=True)
class ApiClient:
    """One server. base: its address, without a slash at the end. key: sent as a bearer token.

    waiting: for all of its answers; None: each is bounded, and they are not together.
    """

    base: str
    key: str | None = None
    waiting: Waiting | None = None

    @classmethod
    def at(cls, url: str, key: str | None = None) -> ApiClient:
        """Return the client for an address that was typed; one without a path gets `/v1`.

        Raises RecipeError (E211) where it is not a plain http or https address.
        """
        fix = "type it as http://host:port/v1"
        try:
            parts = urlsplit(url)
            plain = parts.scheme in ("http", "https") and bool(parts.hostname)
            odd = parts.username is not None or parts.query or parts.fragment or "\\" in url
            _ = parts.port
        except ValueError:
            plain, odd = False, True
        if not plain or odd or not url.isascii() or not url.isprintable() or " " in url:
            raise RecipeError("E211", "this is not the plain address of an endpoint", fix=fix)
        path = parts.path.rstrip("/") or "/v1"
        return cls(f"{parts.scheme}://{parts.netloc}{path}", key)

    @property
    def host(self) -> str:
        """The host, with its port where the address has one."""
        return urlsplit(self.base).netloc

    def within(self, seconds: float) -> ApiClient:
        """Return this client for so many seconds of waiting; then it raises OutOfTime."""
        return replace(self, waiting=Waiting(seconds))

    def get(self, path: str) -> Any:
        """Return what the server tells at a path. Raises as `post` does."""
        return self._told(urllib.request.Request(f"{self.base}{path}"))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return what the server answers to a body.

        Raises Declined where it refuses what is asked (400, 404, 413, 422, 501), and
        EnvironmentFault (E213) where it cannot be reached, refuses the key, fails, sends elsewhere,
        or answers no JSON, too much, or too slowly; OutOfTime, see `within`.
        """
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return self._told(urllib.request.Request(f"{self.base}{path}", data, headers))

    def _told(self, request: urllib.request.Request) -> Any:
        left = self.waiting.left if self.waiting else LONGEST
        if not left:
            raise OutOfTime
        began = time.monotonic()
        try:
            # Its head, its chunks and its refusals too, byte by byte.
            with time_limit(min(LONGEST, left)):
                return self._answered(request)
        except TimeUp:
            if left < LONGEST:
                raise OutOfTime from None
            raise self._fault(f"is not done after {LONGEST:.0f} seconds") from None
        finally:
            if self.waiting:
                self.waiting.waited += time.monotonic() - began

    def _answered(self, request: urllib.request.Request) -> Any:
        if self.key is not None:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with self._opener().open(request, timeout=SILENCE) as answer:
                return json.loads(self._read(answer))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            said = str(reason)[:_SHOWN] or type(error).__name__  # of its first line, it may be
            raise Unavailable(
                "E213", f"the endpoint at {self.host} cannot be asked: {said}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._fault("answers something else than JSON") from error

    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if is_loopback(urlsplit(self.base).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))
        return urllib.request.build_opener(*handlers)

    def _read(self, answer: Any) -> bytes:
        found = bytearray()
        while piece := answer.read1(_PIECE):
            found += piece
            if len(found) > LARGEST_ANSWER:
                raise self._fault(f"answers with more than {LARGEST_ANSWER >> 20} MiB")
        return bytes(found)

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        code = error.code
        if 300 <= code < 400:
            return self._fault("sends on to another address, which is not followed")
        if code in (401, 403):
            fix = "set LLMFT_API_KEY to its key"
            return self._fault("refuses the key" if self.key else "needs a key", fix)
        why = ""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, RecursionError):
            why = _message(json.loads(error.read(_PIECE)))
        if code in (400, 404, 405, 413, 422, 501):
            return Declined(code, why or f"status {code}")
        said = f"fails with status {code}" + (f": {why}" if why else "")
        if code == 429 or code >= 500:
            return Unavailable("E213", f"the endpoint at {self.host} {said}")
        return self._fault(said)

    def _fault(self, what: str, fix: str = "") -> EnvironmentFault:
        return EnvironmentFault("E213", f"the endpoint at {self.host} {what}", fix=fix)


def _message(told: Any) -> str:
    """Return what an error says, in OpenAI's form or in that of other servers."""
    found = told
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return found[:_SHOWN] if isinstance(found, str) else ""

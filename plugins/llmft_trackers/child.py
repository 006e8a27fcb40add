"""The library's end: a process in an empty folder, JSON lines in, remarks for a person out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TextIO

FINISH_SECONDS = 7.0
_PROBE_SECONDS = 3.0
Message = Mapping[str, Any]
Say = Callable[[Message], None]


class LibraryRun(Protocol):
    """A run as a library has it."""

    def tell(self, messages: Sequence[Message]) -> None:
        """Hand messages on, in their order; what raises is tried no more."""

    def finish(self, done: bool) -> bool:
        """End the run, and return whether the library has everything."""


def serve(library: str, begin: Callable[[Message, Path, Say], LibraryRun]) -> None:
    """Hand every line on to a library, and finish when there are no more; then end this process.

    begin: starts the run from the first message, the folder where the user is, and what takes a
    remark. It works in an empty folder: libraries read settings from the working folder.
    """
    lines, answers = own_channels()
    here, code = Path.cwd(), 0

    def told(message: Message) -> None:
        say(answers, message)

    with empty_folder(library):
        run = begin(json.loads(lines.readline()), here, told)
        queue = _queue_of(lines)
        done, ended = False, False
        while not ended:
            messages = [queue.get()]
            while not queue.empty():
                messages.append(queue.get())
            ended = messages[-1] is None
            kept = [message for message in messages if message is not None]
            for message in kept:
                if "exit_code" in message:
                    done = message["exit_code"] == 0
            run.tell(kept)
        end_in(FINISH_SECONDS + 3)
        try:
            code = 0 if run.finish(done) else 1
        except Exception:  # the library's own errors, of whatever kind
            code = 1
    os._exit(code)  # a library's exit handlers would wait once more


def _queue_of(lines: TextIO) -> SimpleQueue[dict[str, Any] | None]:
    """Return a queue of the messages, None last: what came meanwhile is handed on together."""
    queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def read() -> None:
        for line in lines:
            queue.put(json.loads(line))
        queue.put(None)

    threading.Thread(target=read, daemon=True).start()
    return queue


def own_channels() -> tuple[TextIO, TextIO]:
    """Return what the tracker writes and reads; what the library prints goes nowhere."""
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return lines, answers


def say(answers: TextIO, message: Message) -> None:
    """Answer the tracker: `remark` for a person, `left` for what to do if this process ends."""
    answers.write(json.dumps(message) + "\n")
    answers.flush()


@contextlib.contextmanager
def empty_folder(library: str) -> Iterator[str]:
    """Work in an empty folder, which also takes the files that a library drops."""
    with tempfile.TemporaryDirectory(prefix=f"llmft-{library}-") as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        os.chdir(scratch)
        yield scratch


def end_in(seconds: float) -> None:
    """End this process then: whoever started it may be gone, and nothing else would."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would hand the key on to whichever host it names."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return None, so that the redirect is an error."""


def is_reachable(base: str) -> bool:
    """Return whether anything answers there, asked without a key; takes a few seconds at most."""
    found = [False]

    def ask() -> None:
        opener = urllib.request.build_opener(NoRedirects)
        try:
            with opener.open(urllib.request.Request(base), timeout=_PROBE_SECONDS):
                found[0] = True
        except urllib.error.HTTPError:
            found[0] = True  # what it says does not matter here
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PROBE_SECONDS + 1)  # looking up a name may hang, and knows no timeout
    return found[0]


def follow_no_redirects() -> None:
    """Let `requests` follow no redirect in this process: a key or a session would go along."""
    import requests

    def none(self: Any, response: Any) -> None:
        return None

    setattr(requests.Session, "get_redirect_target", none)  # noqa: B010


def first_line(error: Exception, *secrets: str | None) -> str:
    """Return what an error says, without logins in addresses and without secrets."""
    text = str(error)
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    lines = re.sub(r"://[^/\s@]*@", "://", text).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:200]


def as_typed(folder: str, here: Path) -> str:
    """Return a folder as the user, who is `here`, would type it."""
    path = Path(folder)
    return str(path.relative_to(here)) if path.is_relative_to(here) else folder


def flat(values: Any, above: str = "") -> dict[str, Any]:
    """Return a tree's leaves by their path, such as `stages.sft.train.seed`.

    An item of a list goes by its name, where it has one, else by its place.
    """
    if isinstance(values, Mapping):
        items = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, list | tuple) and any(isinstance(v, Mapping) for v in values):
        named = [v.get("name") if isinstance(v, Mapping) else None for v in values]
        items = [(str(named[at] or at), value) for at, value in enumerate(values)]
    else:
        return {above: values}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{above}.{key}" if above else key)
    return found

"""`llmft serve RUN...`."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmft.api.errors import Interrupted, RecipeError
from llmft.api.shown_text import escaped
from llmft.system.quiet import captured_output

KEY_VARIABLE = "LLMFT_API_KEY"
_LEAST_KEY = 16


def serve(
    runs: Sequence[str],
    stage: str | None,
    *,
    host: str,
    port: int,
    chat: bool,
    base: bool,
    as_json: bool,
) -> None:
    """Serve runs until Ctrl-C. Raises Interrupted at SIGTERM."""
    from llmft.system.bounded_server import is_loopback
    from llmft.system.signals import leave_on_signal

    key, made = _key(loopback=is_loopback(host))
    say = _to(sys.stderr)
    with captured_output(Path(os.devnull)):  # upstream's chatter is no part of what is said
        from llmft.endpoint.served import asked_runs, load
        from llmft.endpoint.server import Endpoint

        served = load(asked_runs(runs), stage, chat=chat, base=base)
        server = Endpoint(served, host=host, port=port, key=key, log=say)
    worker = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    started = {
        "address": server.address,
        "models": [one.name for one in served],
        "key": "made" if made else KEY_VARIABLE if key else None,
    }
    try:
        with leave_on_signal():
            worker.start()
            _announce(started, served, key if made else None, say, as_json=as_json)
            threading.Event().wait()
    except Interrupted as stop:
        if stop.exit_code != 128 + signal.SIGINT:
            raise
    finally:
        if worker.is_alive():
            server.shutdown()
        server.server_close()


def _announce(
    started: dict[str, Any],
    served: Sequence[Any],
    made: str | None,
    say: Callable[[str], None],
    *,
    as_json: bool,
) -> None:
    """Say where what is served, and which key was made for it."""
    if as_json:
        from llmft.cli.app import dumped

        more = {"made_key": made} if made else {}
        print(dumped({"ok": True} | started | more), flush=True)
        return
    for one in served:
        note = f" ({one.remark})" if one.remark else ""
        say(f"model '{one.name}': {one.trained.run}, stage '{one.trained.folder.name}'{note}")
    if made:
        say(f"the key that clients need, made for this start: {made}")
        say(f"a key of your own is taken from {KEY_VARIABLE}")
    elif started["key"]:
        say(f"clients need the key of {KEY_VARIABLE}")
    say(f"serving at {started['address']}; stop with Ctrl-C")


def _key(*, loopback: bool) -> tuple[str | None, bool]:
    """Return the key that clients need, or None, and whether it was made here."""
    given = os.environ.get(KEY_VARIABLE, "")
    if not given:
        return (None, False) if loopback else (secrets.token_urlsafe(32), True)
    if len(given) < _LEAST_KEY or not (
        given.isascii() and given.isprintable() and " " not in given
    ):
        what = f"{KEY_VARIABLE} is no key: {_LEAST_KEY} letters, digits and signs are the least"
        fix = f'export {KEY_VARIABLE}="$(openssl rand -hex 32)", or unset it'
        raise RecipeError("E090", what, fix=fix)
    return given, False


def _to(stream: Any) -> Callable[[str], None]:
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            print(escaped(text), file=stream, flush=True)

    return say

"""Serving the page until the rater is done, or a signal says so."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
import stat
import sys
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmft.api.errors import EnvironmentFault, Interrupted, LlmftError
from llmft.ranking.requests import Desk
from llmft.ranking.server import Server
from llmft.system import fsio
from llmft.system.signals import leave_on_signal


def serve(
    desk: Desk, ratings: Path, port: int, say: Callable[[str], None], *, open_page: bool
) -> None:
    """Serve the page until the rater finishes it or presses Ctrl-C.

    A process that was killed leaves port and token behind, in the user's own folder. The next one
    takes them up, so that a page that is still open goes on by itself, and saves what it could not.
    Raises Interrupted at SIGTERM.
    """
    session = desk.session
    kept = kept_address(ratings, session.rater)
    server = _server(desk, port, kept)
    with suppress(OSError, LlmftError):  # then a killed process leaves nothing behind
        fsio.write_json(kept, {"port": server.server_port, "token": server.token})
    worker = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    try:
        with leave_on_signal():
            worker.start()
            say(f"rating as {session.rater}; open {server.address}")
            say("every decision is saved at once; stop with Ctrl-C; you can continue at any time")
            if open_page and _has_desktop():
                webbrowser.open(server.address)
            server.finished.wait()
    except Interrupted as stop:
        if stop.exit_code != 128 + signal.SIGINT:
            raise
        say("")
    finally:
        if worker.is_alive():
            server.shutdown()
        session.finish()
        server.server_close()
        with suppress(OSError):
            kept.unlink(missing_ok=True)


def kept_address(ratings: Path, rater: str) -> Path:
    """Return the file that keeps a page's port and token.

    It is in the user's own folder: ratings may come from somebody else, who would know the token.
    """
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    name = hashlib.sha256(os.fsencode(f"{ratings.resolve()}/{rater}")).hexdigest()[:32]
    return Path(home) / "llmft" / "pages" / f"{name}.json"


def _server(desk: Desk, port: int, kept: Path) -> Server:
    former = _former(kept)
    if former is not None and port in (0, former[0]):
        try:
            return Server(desk, former[1], former[0])
        except EnvironmentFault:  # somebody else has the port by now
            pass
    return Server(desk, secrets.token_urlsafe(32), port)


def _former(kept: Path) -> tuple[int, str] | None:
    """Return the port and the token that a killed process left, if it was this user's."""
    try:
        state = kept.lstat()
        if state.st_uid != os.geteuid() or not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077:
            return None
        told = json.loads(kept.read_text("utf-8"))
        port, token = told["port"], told["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = type(port) is int and isinstance(token, str)
    return (port, token) if known and re.fullmatch(r"[\w-]{43}", token, re.ASCII) else None


def _has_desktop() -> bool:
    """Return whether a browser would open in a window, and not in this terminal."""
    shown = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(shown) or sys.platform == "darwin"

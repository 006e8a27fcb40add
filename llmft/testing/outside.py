"""What a method asks of the network, and which programs it starts, while it is watched."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_OUTSIDE = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen")
_listening: list[list[str]] = []
_hooked: list[bool] = []


@contextlib.contextmanager
def reaching_outside() -> Iterator[list[str]]:
    """Collect what is asked of the network, and the programs that are started.

    An OSError that a refused connection raises ends the block quietly.
    """
    if not _hooked:  # an audit hook stays for the life of the process: one is enough
        sys.addaudithook(_heard)
        _hooked.append(True)
    found: list[str] = []
    _listening.append(found)
    try:
        with contextlib.suppress(OSError):
            yield found
    finally:
        _listening.remove(found)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event in _OUTSIDE:
        for found in _listening:
            found.append(event)

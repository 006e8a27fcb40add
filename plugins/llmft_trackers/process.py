"""The tracker's end of the process that tells a library: never waited for; ended when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from subprocess import TimeoutExpired
from typing import Any

from llmft.toolkit import start_python

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|KEY", re.IGNORECASE)
_END_SECONDS = 10.0


class TrackerProcess:
    """A process that is told messages, and has remarks for a person.

    library: what it tells, as a person knows it. variables: the process's environment.
    """

    def __init__(self, library: str, module: str, variables: Mapping[str, str]) -> None:
        self._library = library
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._remarks: SimpleQueue[str] = SimpleQueue()
        # A Ctrl-C is for the run, which then ends this one in order.
        self._process = start_python(module, variables=variables)
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Hand a message over; returns at once."""
        self._lines.put(json.dumps(message, default=str))

    def remarks(self) -> Iterator[str]:
        """Return what has been remarked since the last time."""
        while not self._remarks.empty():
            yield self._remarks.get()

    def close(self) -> None:
        """Wait until everything is told, ten seconds at most; then end the process."""
        self._lines.put(None)
        try:
            self._process.wait(_END_SECONDS)
        except TimeoutExpired:
            self._process.kill()  # a library's own process sees that, and ends
        for thread in self._threads:
            thread.join(1.0)

    def _write(self) -> None:
        """Feed the process, so that one that does not read holds up this thread and no other."""
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):  # it has ended: its files say how far it got
            while (line := self._lines.get()) is not None:
                stream.write(line + "\n")
                stream.flush()
            stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        left = ""
        for line in self._process.stdout:
            message = json.loads(line)
            left = message.get("left", left)
            if "remark" in message:
                self._remarks.put(message["remark"])
        if self._process.wait() == 0 and not left:
            return
        send = f"afterwards: {left}" if left else "metrics.jsonl has every number"
        self._remarks.put(f"{self._library} did not receive everything; {send}")


def variables_without_secrets(kept: Callable[[str], bool]) -> dict[str, str]:
    """Return the environment for a process that logs: no secret but those that `kept` takes."""
    return {
        name: value
        for name, value in os.environ.items()
        if kept(name) or not _SECRET_NAME.search(name)
    }

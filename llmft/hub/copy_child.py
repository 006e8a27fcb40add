"""The process that copies a run while it trains: JSON lines in, JSON lines out.

A process of its own, so that no library of a client takes numbers from the run's generators, holds
up its steps, or ends it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llmft.hub import remote_copy
from llmft.hub.remote_folder import fault, remote_folder


def main() -> None:
    """Copy each folder that is named, one after another, until told to end."""
    # A scheduler signals all of a job's processes; the run decides when this one ends.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    begin = json.loads(lines.readline())
    queue: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read() -> None:
        for line in lines:
            queue.put(json.loads(line))
        os._exit(1)  # the run was killed: whoever goes on with it copies it, too

    threading.Thread(target=read, daemon=True).start()
    address = begin["address"]
    remote, before, number = None, None, 0
    while "end" not in (asked := queue.get()):
        folder, started = Path(asked["folder"]), time.monotonic()
        try:
            if remote is None:
                opened = remote_folder(address)
                before, number = remote_copy.newest(opened), remote_copy.last_number(opened)
                remote_copy.refuse_another(before, address, begin["run_id"])
                remote = opened
            number += 1
            about = (begin["run_id"], begin["name"], asked["at"])
            index = remote_copy.index_of(folder, number, *about)
            size = remote_copy.publish(remote, folder, index, before)
            before = index
            seconds = round(time.monotonic() - started, 3)
            answer(
                {"copied": asked["number"], "at": asked["at"], "bytes": size, "seconds": seconds}
            )
        except Exception as error:  # of whichever client the address has
            told = fault(error, address, "be written to").faults[0]
            remote = None  # what is there is looked up anew
            answer({"failed": asked["number"], "at": asked["at"], "why": told.what})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # a library's exit handlers would wait once more


if __name__ == "__main__":
    main()

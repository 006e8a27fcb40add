"""Something other than a plain file, in a file's place."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

SECRET = b"secret\nhalf a line"


def place(kind: str, path: Path, target: Path) -> None:
    """Put something that leads to the target, or nowhere, where a file is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "link":
            path.symlink_to(target)
        case "relative link":
            path.symlink_to(os.path.relpath(target, path.parent))
        case "dangling link":
            path.symlink_to(target.with_name("new.txt"))
        case "hard link":
            os.link(target, path)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/full")
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path is short
                made.bind(path.name)
                os.chdir(here)


KINDS = ["link", "relative link", "dangling link", "hard link", "pipe", "device", "socket"]


def in_time(work, seconds: float = 20.0):
    """Return what the work gives or raises; fail where it hangs, as a pipe makes readers do."""
    done: list[object] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it hangs"
    return done[0]

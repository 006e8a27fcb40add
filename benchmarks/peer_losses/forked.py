"""Run a peer on several configurations: `python forked.py MODULE FUNCTION WORDS FOLDER...`.

The peer is imported once, and each configuration is trained in a fork of its own, in its FOLDER, by
the function that the peer's command calls, with WORDS (JSON) as its command line.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module


def main(module: str, function: str, words: str, *folders: str) -> int:
    """Train in each folder in turn; what is printed goes to its out.txt."""
    start = getattr(import_module(module), function)
    for folder in folders:
        child = os.fork()
        if child == 0:
            _train(start, json.loads(words), folder)
        os.waitpid(child, 0)
    return 0


def _train(start: object, words: list[str], folder: str) -> None:
    os.chdir(folder)
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(out, 1), os.dup2(out, 2)
    sys.argv = words
    try:
        start()  # type: ignore[operator]
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

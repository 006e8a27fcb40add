"""The report that a bug of ours leaves behind: the traceback and versions, and no secrets."""

from __future__ import annotations

import os
import re
import tempfile
import time
import traceback
from pathlib import Path

from llmft.api.errors import TrustError
from llmft.api.shown_text import escaped
from llmft.recipes.secret import masked
from llmft.system.plain_files import open_own, refuse_link

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|KEY", re.IGNORECASE)


def write_report(error: BaseException, command: str, run_folder: Path | None) -> Path:
    """Write what is needed to mend a bug, and return the file's path.

    command: the command's name only; its arguments may hold what is nobody's business.
    run_folder: where `logs/` is, if the run had got that far; else a temporary file is made.
    """
    from llmft.cli.commands.environment import machine, versions

    about: dict[str, object] = {"command": command, **machine(Path())}
    about |= versions()
    lines = [f"{key}: {value}" for key, value in about.items()]
    text = "\n".join(lines) + "\n\n" + trace(error)
    path = _new_file(run_folder)
    path.write_text(escaped(text), encoding="utf-8", errors="backslashreplace")
    return path


def trace(error: BaseException) -> str:
    """Return the traceback as text, without secrets."""
    return redacted("".join(traceback.format_exception(error)))


def redacted(text: str) -> str:
    """Return text with the values of secret environment variables, and all tokens, struck out."""
    known = tuple(
        value for name, value in os.environ.items() if len(value) > 5 and _SECRET_NAME.search(name)
    )
    return "\n".join(masked(line, known) for line in text.split("\n"))


def _new_file(run_folder: Path | None) -> Path:
    if run_folder is not None:
        logs = run_folder / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            path = logs / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            refuse_link(logs)
            os.close(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            return path
        except (OSError, TrustError):  # a full or read-only disk may be why it crashed
            pass
    handle, name = tempfile.mkstemp(prefix="llmft-crash-", suffix=".txt")
    os.close(handle)
    return Path(name)

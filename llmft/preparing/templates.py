"""A chat template tried out where it can do no harm: it is a program that came with a model."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from llmft.errors import TrustError

SECONDS, MEGABYTES, CHARACTERS = 10, 1024, 10_000_000
_HUGE = 4
_PATIENCE = 6
"""Times as long as its processor time a template may take by the clock."""


def try_out(
    tokenizer: Any,
    messages: Sequence[Any],
    seconds: float = SECONDS,
    megabytes: int = MEGABYTES,
) -> None:
    """Raise TrustError where the template does not render a conversation in bounds.

    transformers' sandbox keeps a template from files and from Python; nothing keeps it from
    counting for ever. So its first conversation is rendered in a forked process that has so many
    seconds and megabytes. What else is wrong with it shows when it is rendered in earnest.
    """
    if not hasattr(os, "fork"):
        return
    pid = os.fork()
    if pid == 0:
        _render(tokenizer, messages, megabytes, seconds)
    why = _waited(pid, seconds)
    if why:
        raise TrustError(
            "E604",
            f"the chat template {why} on a conversation of {len(messages)} messages",
            fix="give another template as model.chat_template, or prompt and completion columns",
        )


def _render(tokenizer: Any, messages: Sequence[Any], megabytes: int, seconds: float) -> None:
    """Render in the forked process, and leave it without touching anything of the parent's."""
    code = 0
    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)
        _limit_time(seconds)
        _limit_memory(megabytes)
        text = tokenizer.apply_chat_template(list(messages), tokenize=False)
        code = _HUGE if len(text) > CHARACTERS else 0
    except MemoryError:
        code = _HUGE
    except BaseException:
        code = 0  # a template that refuses is no danger
    finally:
        os._exit(code)


def _limit_time(seconds: float) -> None:
    """Allow so much processor time: on a busy machine a good template may wait for long."""
    import resource

    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    most = math.ceil(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))


def _limit_memory(megabytes: int) -> None:
    """Allow so much memory beyond what the process has; macOS knows no such limit."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _waited(pid: int, seconds: float) -> str:
    """Return what is wrong with a process: '' where it ended well in time."""
    late = f"did not end within {seconds:g} seconds"
    deadline, pause = time.monotonic() + _PATIENCE * seconds, 0.001
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGXCPU:
                return late
            # Short of memory, Python may be ended by a signal; where there was no limit, it means
            # only that the system minds a fork.
            huge = code == _HUGE or (code and sys.platform == "linux")
            return f"took more than {MEGABYTES:,} MB or made an endless text" if huge else ""
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return late

"""Keeps upstream's banners, warnings and progress bars out of the terminal: into the run's log."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from llmft.api.errors import EnvironmentFault
from llmft.api.shown_text import escaped
from llmft.system.fsio import open_to_append


class _Log(io.TextIOWrapper):
    """A log file: what is written by rows, models or libraries is shown, and does nothing."""

    def write(self, text: str) -> int:
        """Write the text; a terminal that shows the file is not steered by it."""
        super().write(escaped(text))
        return len(text)


@contextmanager
def captured_output(log_file: Path) -> Iterator[None]:
    """Send log records, warnings and whatever is printed to a file while the block runs.

    Trackers that write to the terminal keep the stream they took before.
    """
    root = logging.getLogger()
    before = root.level
    nowhere = log_file == Path(os.devnull)
    with open(os.devnull, "a") if nowhere else open_to_append(log_file, _Log) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        sys.stdout.flush()
        try:
            with redirect_stdout(stream), redirect_stderr(stream), _without_handlers_of_their_own():
                _quiet_upstream()
                yield
        finally:
            logging.captureWarnings(False)
            root.setLevel(before)
            root.removeHandler(handler)


_OWN_HANDLERS = ("transformers", "huggingface_hub", "datasets", "torch")


@contextmanager
def _without_handlers_of_their_own() -> Iterator[None]:
    """Let loggers that would print to the terminal they took at import speak through ours."""
    loggers = [logging.getLogger(name) for name in _OWN_HANDLERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [], True
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def before_upstream() -> None:
    """Set what upstream reads when it is first imported; what the user has set stays.

    No telemetry, no progress bars, and no kernels from the hub: transformers and bitsandbytes fetch
    code by the package `kernels`, where it is installed, and run it. Threads that wait for work
    sleep instead of spinning: on a machine that is shared, spinning made a small model's steps up
    to ninety times slower.
    Raises EnvironmentFault in a folder that was deleted, where torch's libraries end the process.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        what = "the working folder was deleted"
        raise EnvironmentFault("E203", what, fix="change to an existing folder: cd") from error
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }.items():
        os.environ.setdefault(name, value)
    os.environ["USE_HUB_KERNELS"] = "NO"
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # it cannot be imported then


def _quiet_upstream() -> None:
    """Turn upstream's progress bars off, and let its loggers speak through ours."""
    for name in ("httpx", "httpx2"):  # the hub's client has either, by its version
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.disable_progress_bar()

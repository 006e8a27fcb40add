"""Keeps upstream's banners, warnings and progress bars out of the terminal: into the run's log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


@contextmanager
def captured_output(log_file: Path) -> Iterator[None]:
    """Send log records, warnings and whatever is printed to a file while the block runs.

    Trackers that write to the terminal keep the stream they took before.
    """
    root = logging.getLogger()
    before = root.level
    with log_file.open("a", encoding="utf-8", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        sys.stdout.flush()
        try:
            with redirect_stdout(stream), redirect_stderr(stream):
                _quiet_upstream()
                yield
        finally:
            logging.captureWarnings(False)
            root.setLevel(before)
            root.removeHandler(handler)


def _quiet_upstream() -> None:
    """Turn upstream's progress bars off, and let its loggers speak through ours."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.disable_progress_bar()

"""A rater's file while it is written: held by one process, and every decision synced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from llmft.ranking.ratings import Decision, checked_rater, read_rater
from llmft.runs import locking
from llmft.system import fsio
from llmft.system.plain_files import refuse_link


@dataclass
class RaterLog:
    """One rater's file, held by this process alone; `add` returns when a decision is on disk."""

    path: Path
    decisions: dict[str, Decision]

    def add(self, decision: Decision) -> None:
        """Append a decision; raise EnvironmentFault, and leave the file as it was, if it fails."""
        fsio.append_line(self.path, json.dumps(asdict(decision)))
        self.decisions[decision.item] = decision


@contextmanager
def rater_log(folder: Path, rater: str) -> Iterator[RaterLog]:
    """Yield a rater's log; raise EnvironmentFault (E204) where another process holds it."""
    path = folder / f"{checked_rater(rater)}.jsonl"
    with fsio.disk_errors(folder):
        refuse_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
    with locking.held(folder, f"{rater}.lock"):
        decisions, torn = read_rater(path) if os.path.lexists(path) else ({}, False)
        if torn:
            fsio.cut_half_line(path)
        yield RaterLog(path, decisions)

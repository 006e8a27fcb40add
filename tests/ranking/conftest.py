"""What the ranking tests share: a samples file, and a rater's session on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmft.ranking import RATINGS, read_samples
from llmft.ranking.log import rater_log
from llmft.ranking.ranking_session import Session
from llmft.ranking.requests import Desk
from llmft.ranking.server import Server

ROWS = [
    {"prompt": "Capital of Norway?", "completions": ["Oslo", "Lima", "Bergen", "no idea"],
     "answers": ["Oslo"]},
    {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Winter?"}],
     "completions": ["snow", "<img src=x onerror=\"document.title='x'\">", "snow", "  cold\n\tice"],
     "answers": []},
    {"prompt": "A colour", "completions": ["blue", "red"], "answers": []},
    {"prompt": "Say yes.", "completions": ["yes", " yes"], "answers": []},
]  # fmt: skip


@pytest.fixture
def samples_file(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    """Keep what pages remember away from the home folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def ratings(samples_file) -> Path:
    """The folder with the raters' files; not there before the first decision."""
    return samples_file.parent / RATINGS


@pytest.fixture
def samples(samples_file):
    return read_samples(samples_file)


@pytest.fixture
def session(samples, ratings):
    """A session of the rater 'anna'."""
    with rater_log(ratings, "anna") as log:
        yield Session(samples, "anna", log)


def lines(ratings: Path, rater: str = "anna") -> list[dict]:
    """Return a rater's decisions as they are on disk."""
    path = ratings / f"{rater}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def served(desk: Desk, token: str, port: int = 0) -> Iterator[Server]:
    """Serve the page from this process."""
    server = Server(desk, token, port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

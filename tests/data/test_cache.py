"""Token rows kept between runs: the same rows as without, made once, and never trusted blindly."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from llmft.api import ChatRow, CompletionRow, PreferenceRow, TextRow
from llmft.api.train_settings import TrainSettings
from llmft.data import cache
from llmft.data.encoding import Encoder
from llmft.data.pair_encoding import encode_pairs
from llmft.modeling.tiny_models import tiny_tokenizer

CHAT = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"})
ROWS = [
    CompletionRow("a question: ", "yes", origin="rows:1"),
    CompletionRow("another: ", "no, never", origin="rows:2"),
    TextRow("plain text", origin="rows:3"),
    ChatRow(CHAT, origin="rows:4"),
]
PAIRS = [PreferenceRow("ab", "cd", "efg", 0.5, "pairs:1"), PreferenceRow("h", "i", "j")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "LEAST_ROWS", 2)
    return tmp_path / "tokens"


class Counting:
    """A tokenizer that counts how often it is asked."""

    def __init__(self, **options: Any) -> None:
        self._own, self.calls = tiny_tokenizer(chat=True, **options), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._own(*args, **kwargs)


def encode(rows: Any = ROWS, tokenizer: Any = None, **settings: Any) -> Any:
    tokenizer = tokenizer or Counting()
    limit = settings.pop("max_length", None)
    kept, report = Encoder(tokenizer, limit).encode(rows, TrainSettings(**settings))
    return kept, report, tokenizer.calls


def test_a_second_time_nothing_is_tokenised_and_the_rows_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, _, calls = encode()
    again, _, none = encode()
    assert calls
    assert not none
    assert again == first
    monkeypatch.setenv("LLMFT_CACHE", "off")
    without, _, calls = encode()
    assert calls
    assert without == first


def test_pairs_are_kept_too_with_their_margins() -> None:
    tokenizer, other = Counting(), Counting()
    first = encode_pairs(Encoder(tokenizer, None), PAIRS, TrainSettings())[0]
    again = encode_pairs(Encoder(other, None), PAIRS, TrainSettings())[0]
    assert again == first
    assert (tokenizer.calls > 0, other.calls) == (True, 0)
    assert [pair.margin for pair in again] == [0.5, None]


def test_what_is_cut_is_cut_anew_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    kept, report, calls = encode(max_length=14, max_dropped=0.9)
    assert not calls
    monkeypatch.setenv("LLMFT_CACHE", "off")
    without, counted, _ = encode(max_length=14, max_dropped=0.9)
    assert kept == without
    assert report == counted
    assert report.counts["truncated"]


@pytest.mark.parametrize("what", ["a row", "an origin", "the tokenizer", "the template"])
def test_any_change_is_tokenised_anew(what: str) -> None:
    encode()
    rows, tokenizer = list(ROWS), Counting(pad=what == "the tokenizer")
    if what == "a row":
        rows[1] = CompletionRow("another: ", "no, newer", origin="rows:2")
    if what == "an origin":
        rows[1] = CompletionRow("another: ", "no, never", origin="rows:7")
    if what == "the template":
        tokenizer._own.chat_template = tokenizer._own.chat_template.replace(": ", "> ")
    kept, _, calls = encode(rows, tokenizer)
    assert calls
    assert kept[1].origin == rows[1].origin


@pytest.mark.parametrize("damage", ["a bit", "half", "nothing left"])
def test_a_damaged_entry_is_told_ignored_and_made_again(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode()[0]
    (entry,) = folder.iterdir()
    data = bytearray(entry.read_bytes())
    data[-5] ^= 4
    entry.write_bytes({"a bit": data, "half": data[: len(data) // 2], "nothing left": b""}[damage])
    with caplog.at_level(logging.WARNING, "llmft"):
        again, _, calls = encode()
    assert calls
    assert again == first
    assert "is damaged" in caplog.text
    assert not encode()[2]


def test_few_rows_are_not_kept(folder: Path) -> None:
    encode(ROWS[:1])
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "file"))
    assert len(encode()[0]) == len(ROWS)
    assert "not kept" in caplog.text


def test_the_entries_unused_for_longest_make_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode()
    (oldest,) = folder.iterdir()
    encode(ROWS[:3])
    os.utime(oldest, (1, 1))
    size = sum(path.stat().st_size for path in folder.iterdir())
    monkeypatch.setattr(cache, "LARGEST", size)
    encode(ROWS[1:])
    assert not oldest.exists()
    assert len(list(folder.iterdir())) == 2


def test_an_entry_is_its_owners_alone(folder: Path) -> None:
    encode()
    (entry,) = folder.iterdir()
    assert entry.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0

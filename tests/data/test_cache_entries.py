"""A cache entry that somebody else could have written is not taken."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter

import pytest

from llmft.api import Encoded, TextRow
from llmft.data import cache
from tests.odd_files import in_time, place


@pytest.fixture
def kept(tmp_path, tokenizer, monkeypatch):
    """Rows that were tokenised once, the entry's file, and a function that reads them again."""
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_ROWS", 1)
    rows = [TextRow("abc", "f:1"), TextRow("de", "f:2")]
    made = [Encoded((1, 2), (1, 2), "f:1"), Encoded((3,), (3,), "f:2")]

    def again(give=made):
        groups = cache.through_cache(
            tokenizer, rows, len(rows), "rows", lambda: [[row] for row in give], Counter()
        )
        return [row for group in groups for row in group]

    again()
    (entry,) = (tmp_path / "cache" / "tokens").glob("*.safetensors")
    return entry, again


def test_an_entry_of_our_own_is_taken(kept):
    _, again = kept
    assert again([]) == [Encoded((1, 2), (1, 2), "f:1"), Encoded((3,), (3,), "f:2")]


def test_an_entry_that_others_could_have_written_is_not_taken(kept, caplog, monkeypatch, tmp_path):
    entry, again = kept
    data = entry.read_bytes()
    other = [Encoded((9,), (9,), "f:1"), Encoded((9,), (9,), "f:2")]
    caplog.set_level(logging.WARNING)

    entry.chmod(0o666)
    assert again(other) == other
    entry.write_bytes(data)
    entry.chmod(0o600)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert again(other) == other
    monkeypatch.undo()

    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LEAST_ROWS", 1)
    for kind in ("link", "pipe", "device"):
        entry.unlink()
        (tmp_path / "elsewhere").write_bytes(data)
        place(kind, entry, tmp_path / "elsewhere")
        assert in_time(lambda: again(other)) == other
    assert "others may have written it" in caplog.text


def test_an_entry_under_another_name_is_not_taken(kept):
    entry, again = kept
    body = entry.read_bytes()[32:]
    forged = hashlib.sha256(b"other.safetensors" + body).digest() + body
    entry.write_bytes(forged)
    other = [Encoded((9,), (9,), "f:1"), Encoded((9,), (9,), "f:2")]
    assert again(other) == other


@pytest.mark.parametrize("how", ["link", "writable"])
def test_nothing_is_kept_or_removed_where_the_folder_could_be_anybodys(kept, tmp_path, how, caplog):
    """A link may lead to weights; the oldest would go where the cache is full."""
    entry, again = kept
    weights = tmp_path / "weights"
    entry.unlink()
    entry.parent.rename(weights)
    (weights / "model.safetensors").write_bytes(b"x" * 9)
    (weights / f"{'a' * 64}.safetensors").write_bytes(b"x" * 9)
    if how == "link":
        entry.parent.symlink_to(weights)
    else:
        weights.rename(entry.parent)
        entry.parent.chmod(0o777)
    caplog.set_level(logging.WARNING)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "LARGEST", 1)
        again()
    assert len(list(entry.parent.iterdir())) == 2
    assert "not kept for the next run" in caplog.text


def test_only_entries_make_room_for_others(kept, monkeypatch):
    entry, again = kept
    other = entry.parent / "model.safetensors"
    other.write_bytes(b"x" * 9)
    old = entry.rename(entry.with_name(f"{'a' * 64}.safetensors"))
    monkeypatch.setattr(cache, "LARGEST", 1)
    again()
    assert (old.exists(), other.exists(), entry.exists()) == (False, True, True)

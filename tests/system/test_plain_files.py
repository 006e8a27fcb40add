"""Files of ours are plain ones: no link, pipe or device is followed or waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmft.api.errors import TrustError
from llmft.runs import locking
from llmft.system import fsio, plain_files
from llmft.system.quiet import captured_output
from tests.odd_files import KINDS, SECRET, in_time, place


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the user's that no command names."""
    path = tmp_path / "mine" / "secret.txt"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_appended_to_cut_or_locked_is_a_plain_file_of_ours(tmp_path, target, kind):
    changes = {
        "append": lambda path: fsio.append_line(path, "more"),
        "cut": fsio.cut_half_line,
        "lock": lambda path: locking.held(path.parent, path.name).__enter__(),
        "log": lambda path: captured_output(path).__enter__(),
        "text": fsio.open_to_append,
    }
    for name, change in changes.items():
        path = tmp_path / name / "file"
        place(kind, path, target)
        error = in_time(lambda change=change, path=path: change(path))
        assert isinstance(error, TrustError), (name, error)
        assert error.faults[0].code == "E605"
        assert str(path) in error.faults[0].what
    assert target.read_bytes() == SECRET
    assert [p.name for p in target.parent.iterdir()] == ["secret.txt"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "log.txt").mkdir()
    with pytest.raises(TrustError, match=r"E605.*log\.txt.*a folder"):
        fsio.open_to_append(tmp_path / "log.txt")


def test_a_link_above_the_folder_is_the_users_own(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    fsio.append_line(tmp_path / "runs" / "file", "a")
    with locking.held(tmp_path / "runs"):
        pass
    assert (tmp_path / "disk" / "file").read_text() == "a\n"


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_read_is_a_plain_file(tmp_path, target, kind):
    place(kind, tmp_path / "file", target)
    error = in_time(lambda: plain_files.read_bytes(tmp_path / "file"))
    assert isinstance(error, OSError)


def test_a_bound_is_kept_while_reading(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="more than 100 bytes"):
        plain_files.read_bytes(tmp_path / "file", 100)
    assert plain_files.read_bytes(tmp_path / "file", 101) == b"x" * 101

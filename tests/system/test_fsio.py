"""Writes are whole or not there; damage is recognised."""

from __future__ import annotations

import errno
import os

import pytest

from llmft.api.errors import CheckpointError, EnvironmentFault
from llmft.system import fsio


def make(folder):
    with fsio.staged_folder(folder, "run-1") as staged:
        (staged / "a.json").write_text("{}")
        (staged / "sub").mkdir()
        (staged / "sub" / "b.bin").write_bytes(b"12345")
    return folder


def test_a_staged_folder_appears_whole_with_its_manifest(tmp_path):
    folder = make(tmp_path / "x" / "target")
    assert fsio.verify_folder(folder) == "run-1"
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "a.json", "b.bin", "manifest.json", "sub", "target", "x",
    ]  # fmt: skip


def test_an_error_inside_leaves_nothing(tmp_path):
    def fail(staged):
        (staged / "a").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), fsio.staged_folder(tmp_path / "target", "r") as staged:
        fail(staged)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest", "no manifest"])
def test_damage_is_recognised(tmp_path, damage):
    folder = make(tmp_path / "target")
    file = folder / "sub" / "b.bin"
    if damage == "flip":
        file.write_bytes(b"12346")
    elif damage == "cut":
        file.write_bytes(b"1234")
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError):
        fsio.verify_folder(folder)


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    fsio.write_json(path, {"n": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFault, match="no space left on device") as caught:
        fsio.write_json(path, {"n": 2})
    assert "MB free" in caught.value.faults[0].what
    assert path.read_text() == '{\n  "n": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_not_a_number_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        fsio.write_json(tmp_path / "a.json", {"n": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_stale_staging_is_swept_and_nothing_else(tmp_path):
    make(tmp_path / "target")
    (tmp_path / ".staging-old").mkdir()
    (tmp_path / ".staging-file").write_text("x")
    fsio.sweep_staging(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_t11_a_limit_on_the_size_of_files_is_told_as_such(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"E202.*file too large.*ulimit -f"), \
            fsio.disk_errors(tmp_path / "x"):  # fmt: skip
        raise OSError(errno.EFBIG, "File too large")


@pytest.mark.parametrize("damage", [b"", b'{"a": 1', b"\xff\xfe", b"[1]", None])
def test_a_file_of_a_run_that_is_damaged_is_named_with_the_way_out(tmp_path, damage):
    path = tmp_path / "run.json"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"E401.*run.json' is (damaged|missing).*fix: do so"):
        fsio.read_json(path, "do so")

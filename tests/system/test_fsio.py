"""Writes are whole or not there; damage is recognised."""

from __future__ import annotations

import errno
import json
import os

import pytest

from llmft.api.errors import CheckpointError, EnvironmentFault, LlmftError
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


def events_of(monkeypatch) -> list[str]:
    """Return a list that gets what is synced and renamed from now on, by name."""
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def named(path) -> str:
        name = os.path.basename(str(path))
        return "staged" if name.startswith(fsio.STAGING) else name

    def synced(handle):
        events.append("sync " + named(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def moved(act):
        def move(source, target):
            events.append(f"{named(source)} -> {named(target)}")
            act(source, target)

        return move

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", moved(rename))
    monkeypatch.setattr(os, "replace", moved(replace))
    return events


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="/proc names open files")


@linux
def test_a_file_is_on_disk_before_its_name_is_and_its_name_before_it_returns(tmp_path, monkeypatch):
    events = events_of(monkeypatch)
    fsio.write_bytes(tmp_path / "new" / "more" / "a.json", b"{}")
    assert events == ["sync staged", "staged -> a.json", "sync more"]


@linux
def test_a_folder_is_on_disk_with_all_its_files_before_its_name_is(tmp_path, monkeypatch):
    events = events_of(monkeypatch)
    make(tmp_path / "target")
    at = events.index("staged -> target")
    before, after = events[:at], events[at + 1 :]
    assert {"sync a.json", "sync b.bin", "sync sub", "sync staged"} <= set(before)
    assert after == [f"sync {tmp_path.name}"]


@linux
def test_a_line_is_on_disk_when_it_returns(tmp_path, monkeypatch):
    events = events_of(monkeypatch)
    path = tmp_path / "anna.jsonl"
    fsio.append_line(path, "one")
    assert events == ["sync anna.jsonl", f"sync {tmp_path.name}"]
    fsio.append_line(path, "two")
    assert events[2:] == ["sync anna.jsonl"], "its name is there already"
    assert path.read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "anna.jsonl"
    fsio.append_line(path, "one")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "x")))
    with pytest.raises(EnvironmentFault, match="E202"):
        fsio.append_line(path, "two")
    assert path.read_text() == "one\n"


def test_half_a_line_is_cut_off(tmp_path):
    path = tmp_path / "anna.jsonl"
    for text, left in (("one\ntw", "one\n"), ("one\n", "one\n"), ("on", "")):
        path.write_text(text)
        fsio.cut_half_line(path)
        assert path.read_text() == left


def test_a_write_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:3]))
    fsio.write_text(tmp_path / "a.txt", "more than three bytes: ü")
    assert (tmp_path / "a.txt").read_text("utf-8") == "more than three bytes: ü"


def test_rows_and_texts_are_written_as_they_are_read(tmp_path):
    fsio.write_jsonl(tmp_path / "rows.jsonl", [{"a": "ü"}, {"a": 1}])
    assert (tmp_path / "rows.jsonl").read_text("utf-8") == '{"a": "ü"}\n{"a": 1}\n'
    fsio.write_json(tmp_path / "a.json", {"a": "ü"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "a": "ü"\n}\n'


def test_a_private_folder_is_new_and_its_owners(tmp_path):
    folder = tmp_path / "runs" / "tiny" / "1"
    fsio.make_private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        fsio.make_private_folder(folder)


def test_a_folder_that_is_taken_away_is_gone_with_its_remains(tmp_path):
    folder = make(tmp_path / "target")
    fsio.remove_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_looks_like_staging_is_taken_away_and_not_what_it_names(tmp_path):
    kept = make(tmp_path / "elsewhere" / "target")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".staging-link").symlink_to(kept)
    fsio.sweep_staging(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    assert fsio.verify_folder(kept) == "run-1"


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.ENOSPC, "E202", "12,345 bytes needed.*MB free.*free some space"),
        (errno.EDQUOT, "E202", "12,345 bytes needed"),
        (errno.EIO, "E202", "12,345 bytes needed"),
        (errno.EROFS, "E202", "read-only"),
        (errno.EACCES, "E203", "permission denied"),
        (errno.EPERM, "E203", "permission denied"),
        (errno.ENOTDIR, "E203", "a part of the path is a file"),
        (errno.EISDIR, "E203", "it is a folder"),
        (errno.EBUSY, "E203", "it is a folder"),
        (errno.ENOENT, "", ""),
    ],
)
def test_what_the_disk_refuses_is_told_in_words(number, code, said, tmp_path):
    with pytest.raises((EnvironmentFault, OSError)) as caught, fsio.disk_errors(tmp_path, 12_345):
        raise OSError(number, os.strerror(number))
    if code:
        assert caught.value.faults[0].code == code
        caught.match(f"(?i){said}")
    else:
        assert caught.type is FileNotFoundError


def test_a_refusal_that_safetensors_tells_in_words_is_the_disks(tmp_path):
    class SafetensorError(Exception):
        pass

    with pytest.raises(EnvironmentFault, match="E202"), fsio.disk_errors(tmp_path / "x" / "y"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    for other in (SafetensorError("a header too long"), ValueError("(os error 28)")):
        with pytest.raises(type(other)), fsio.disk_errors(tmp_path):
            raise other


def test_an_altered_manifest_vouches_for_nothing(tmp_path):
    folder = make(tmp_path / "target")
    manifest = folder / fsio.MANIFEST
    manifest.write_text(manifest.read_text().replace("\n", "\n\n", 1))
    with pytest.raises(CheckpointError, match=r"no readable manifest.json.*fix: do so"):
        fsio.verify_folder(folder, "do so")


@pytest.mark.parametrize(("damage", "state"), [("remove", "is missing"), ("flip", "is damaged")])
def test_what_is_wrong_with_a_folder_is_told(damage, state, tmp_path):
    folder = make(tmp_path / "target")
    file = folder / "a.json"
    file.unlink() if damage == "remove" else file.write_text("[]")
    with pytest.raises(CheckpointError, match=rf"a\.json' {state}"):
        fsio.verify_folder(folder)


def test_tensors_are_written_as_safetensors(tmp_path):
    import torch
    from safetensors.torch import load_file

    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    fsio.write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", ["a.json", "README.md", "chat_template.jinja", "vocab"])
def test_an_endless_file_beside_the_weights_is_not_read_to_its_end(tmp_path, name):
    with fsio.staged_folder(tmp_path / "made", "r") as staged:
        (staged / name).write_text("{}")
    os.truncate(tmp_path / "made" / name, 2**40)
    with pytest.raises(CheckpointError, match=rf"{name}' is damaged"):
        fsio.verify_folder(tmp_path / "made")


def test_endless_weights_are_not_hashed_to_their_end(tmp_path):
    import torch

    with fsio.staged_folder(tmp_path / "made", "r") as staged:
        fsio.write_tensors(staged / "a.safetensors", {"x": torch.ones(3), "y": torch.ones(2, 2)})
    fsio.verify_folder(tmp_path / "made")
    os.truncate(tmp_path / "made/a.safetensors", 2**40)
    with pytest.raises(CheckpointError, match=r"a\.safetensors' is damaged"):
        fsio.verify_folder(tmp_path / "made")


@pytest.mark.parametrize("name", ["../other", "/etc/passwd"])
def test_a_manifest_names_its_own_files_only(tmp_path, name):
    with fsio.staged_folder(tmp_path / "made", "r"):
        pass
    fsio.write_json(tmp_path / "made/manifest.json", {"run_id": "r", "sha256": {name: "0"}})
    with pytest.raises(CheckpointError, match="has no readable manifest"):
        fsio.verify_folder(tmp_path / "made")


def test_a_file_that_the_manifest_does_not_name_is_none_of_the_folders(tmp_path):
    """It would be sent to the hub with the others; nor does an emptied manifest vouch for any."""
    with fsio.staged_folder(tmp_path / "made", "run-1") as staged:
        (staged / "a.json").write_text("{}")
    (tmp_path / "made/.env").write_text("KEY=1")
    with pytest.raises(CheckpointError, match=r"\.env' is not a file that was written with"):
        fsio.verify_folder(tmp_path / "made")
    (tmp_path / "made/.env").unlink()
    fsio.verify_folder(tmp_path / "made")
    fsio.write_json(tmp_path / "made" / fsio.MANIFEST, {"run_id": "run-1", "sha256": {}})
    with pytest.raises(CheckpointError, match=r"a\.json' is not a file"):
        fsio.verify_folder(tmp_path / "made")


def test_the_room_that_is_told_is_that_of_the_nearest_folder_there_is(tmp_path, monkeypatch):
    """The file's own disk, which need not be the root's; neither file nor folders may be there."""
    asked = []

    def usage(path):
        asked.append(path)
        return fsio.shutil._ntuple_diskusage(10**9, 0, 7 * 10**6)

    monkeypatch.setattr(fsio.shutil, "disk_usage", usage)
    with (
        pytest.raises(EnvironmentFault, match="7 MB free"),
        fsio.disk_errors(tmp_path / "runs" / "tiny" / "a.json", 12),
    ):
        raise OSError(errno.ENOSPC, "no space")
    assert asked == [tmp_path]


@pytest.mark.parametrize(
    ("there", "code", "said"),
    [("folder", "E203", "it is a folder"), ("file", "E090", "there already"),
     ("broken link", "E090", "there already"), ("", "", "")],
)  # fmt: skip
def test_what_is_there_already_is_not_written_over(there, code, said, tmp_path):
    path = tmp_path / "rows.jsonl"
    if there == "folder":
        path.mkdir()
    elif there == "file":
        path.write_text("mine")
    elif there:
        path.symlink_to(tmp_path / "nothing")
    if code:
        with pytest.raises(LlmftError, match=f"{code}.*{said}"):
            fsio.write_new_jsonl(path, [{"a": 1}])
    else:
        fsio.write_new_jsonl(path, [{"a": 1}])
        assert path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{}"), ("run.json", '{"stages": 3}'), ("result.json", '{"produces": 3}'),
        ("lock.json", '{"model": 3}'), ("lock.json", '{"model": {"path": "m", "sha256": []}}'),
    ],
)  # fmt: skip
def test_a_file_of_a_run_without_what_a_run_writes_is_damaged(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"E401.*{name}' is damaged.*fix: do so"):
        fsio.read_json(tmp_path / name, "do so")
    (tmp_path / "other.json").write_text(text)
    assert fsio.read_json(tmp_path / "other.json", "do so") == json.loads(text)


@pytest.mark.parametrize(
    ("held", "now"),
    [(b"", b"new\n"), (b"a", b"a\nnew\n"), (b"a\nbc", b"a\nbc\nnew\n"),
     (b"\n", b"\nnew\n"), (b"a\n", b"a\nnew\n")],
)  # fmt: skip
def test_a_line_that_a_kill_left_is_ended_before_the_next(tmp_path, held, now):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(held)
    with fsio.open_to_append(path) as file:
        file.write("new\n")
    assert path.read_bytes() == now

"""Nothing outside is written: no link, pipe or device in a stranger's folder is followed."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from llmft.api import Encoded, TextRow
from llmft.api.errors import RecipeError, TrustError
from llmft.cli.main import main
from llmft.data import cache
from llmft.ranking.log import rater_log
from llmft.runs import locking
from llmft.system import fsio, plain_files
from llmft.system.quiet import captured_output

SAMPLE = {"prompt": "p", "completions": ["a", "b"], "answers": []}
SECRET = b"secret\nhalf a line"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the user's that no command names."""
    path = tmp_path / "mine" / "secret.txt"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


def place(kind: str, path: Path, target: Path) -> None:
    """Put something that leads to the target, or nowhere, where a file is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "link":
            path.symlink_to(target)
        case "relative link":
            path.symlink_to(os.path.relpath(target, path.parent))
        case "dangling link":
            path.symlink_to(target.with_name("new.txt"))
        case "hard link":
            os.link(target, path)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/full")
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path is short
                made.bind(path.name)
                os.chdir(here)


KINDS = ["link", "relative link", "dangling link", "hard link", "pipe", "device", "socket"]


def in_time(work, seconds: float = 20.0):
    """Return what the work gives or raises; fail where it hangs, as a pipe makes readers do."""
    done: list[object] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it hangs"
    return done[0]


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


def test_a_link_above_the_folder_is_the_users_own(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    fsio.append_line(tmp_path / "runs" / "file", "a")
    with locking.held(tmp_path / "runs"):
        pass
    assert (tmp_path / "disk" / "file").read_text() == "a\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bob.jsonl", "bob.lock", "ann.jsonl"])
def test_a_folder_of_ratings_from_elsewhere_changes_no_other_file(
    tmp_path, target, kind, name, capsys, monkeypatch
):
    (tmp_path / "s.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    place(kind, tmp_path / "ratings" / name, target)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nq\n"))
    code = in_time(
        lambda: main(["rank", str(tmp_path / "s.jsonl"), "--rater", "bob", "--terminal"])
    )
    assert code == 8
    assert name in capsys.readouterr().err
    assert target.read_bytes() == SECRET
    assert [p.name for p in target.parent.iterdir()] == ["secret.txt"]


def test_a_ratings_folder_that_is_a_link_is_refused(tmp_path, target, capsys):
    (tmp_path / "s.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    (tmp_path / "ratings").symlink_to(target.parent)
    assert main(["rank", str(tmp_path / "s.jsonl"), "--rater", "bob", "--terminal"]) == 8
    with pytest.raises(TrustError, match="a link"), rater_log(tmp_path / "ratings", "bob"):
        pass
    assert [p.name for p in target.parent.iterdir()] == ["secret.txt"]


TRAIN = {
    "name": "sft", "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
    "train": {"max_steps": 1, "per_device_train_batch_size": 2},
}  # fmt: skip


@pytest.fixture
def finished(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}", "completion": "x"}) + "\n" for n in "ab"))
    summary = run({**TRAIN, "data": {"method": "jsonl", "path": str(rows)}})
    return summary.folder


@pytest.mark.parametrize(
    "name", ["log.txt", "lock", "stages/sft/metrics.jsonl", "stages/sft/checkpoints", "logs/x",
             "wandb", "stages/more/deep/file"],
)  # fmt: skip
def test_a_run_folder_from_elsewhere_changes_no_other_file(
    finished, target, name, capsys, monkeypatch
):
    recipe = finished / "recipe.yaml"
    path = finished / name
    if path.is_dir():
        path.rename(path.with_name("aside"))
    path.unlink(missing_ok=True)
    place("link", path, target)
    for words in (
        ["run", str(recipe), str(finished), "--resume"],
        ["generate", str(finished), "a"],
        ["score", str(finished), "x.jsonl"],
        ["rank", str(finished), "--status"],
        ["push", str(finished), "--repo-id", "me/x"],
    ):
        assert main(words) == 8, words
        assert f"{name}' is a link" in capsys.readouterr().err
    assert target.read_bytes() == SECRET


def test_outputs_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "s.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    out = tmp_path / "out.jsonl"
    out.write_bytes(SECRET)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out.jsonl", "link"):
        assert main(["rank", str(tmp_path / "s.jsonl"), "--export", str(tmp_path / name)]) == 2
        assert "is there already, and is not overwritten" in capsys.readouterr().err
        words = ["score", str(tmp_path), str(tmp_path / "s.jsonl"), "--output"]
        assert main([*words, str(tmp_path / name)]) == 2
    assert out.read_bytes() == SECRET
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(RecipeError, match="is there already"):
        fsio.write_new_jsonl(out, [{"a": 1}])


# --- the cache of token rows -----------------------------------------------------------------


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


# --- reading ---------------------------------------------------------------------------------


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

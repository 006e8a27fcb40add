"""A copy of a run elsewhere: whole whenever it is looked at, and checked on the way back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from llmft.api.errors import LlmftError
from llmft.hub import remote_copy
from llmft.hub.remote_copy import Index, claim, fetch, index_of, last_number, newest, publish
from llmft.hub.remote_folder import HubRepository, RemoteFolder, fault, remote_folder
from llmft.system import fsio
from tests.hub.fake_hub import TOKEN

ID = "20260101-000000-abcd"


def run_folder(place: Path, step: int) -> Path:
    """Return what a run holds of two checkpoints: files that change, and files that do not."""
    place.mkdir(parents=True)
    (place / "run.json").write_text(f'{{"step": {step}}}')
    (place / "stages/sft").mkdir(parents=True)
    (place / "stages/sft/metrics.jsonl").write_text("{}\n" * step)
    for at in (step - 1, step):
        with fsio.staged_folder(place / f"stages/sft/checkpoints/step-{at}", ID) as staged:
            (staged / "state.safetensors").write_bytes(b"weights %d" % at * 100)
            (staged / "state.json").write_text(f'{{"at": {at}}}')
    return place


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def copied(
    remote: RemoteFolder, folder: Path, before: Index | None = None, number: int = 0
) -> Index:
    number = number or (before.number + 1 if before else 1)
    index = index_of(folder, number, ID, "tiny", f"step {number}")
    publish(remote, folder, index, before)
    return index


def back(remote: RemoteFolder, place: Path, notes: list[str] | None = None) -> dict[str, str]:
    found: list[str] = [] if notes is None else notes
    return tree(fetch(remote, "there", place, "tiny", found.append))


class Dying(Exception):
    """A kill, as far as a file system can see."""


def dying(remote, monkeypatch, at: int, halfway: bool):
    """Let a folder die in its `at`-th write or removal, with half of the bytes there or none."""
    count = 0
    system = remote._system
    for name in ("pipe_file", "put_file", "rm_file"):
        real = getattr(system, name)

        def meets(*args, name=name, real=real):
            nonlocal count
            count += 1
            if count != at:
                return real(*args)
            if halfway and name != "rm_file":
                data = args[1] if name == "pipe_file" else Path(args[0]).read_bytes()
                place = Path(args[1] if name == "put_file" else args[0])
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data[: len(data) // 2])
            raise Dying

        monkeypatch.setattr(system, name, meets)


@pytest.mark.parametrize("halfway", [False, True])
def test_a_copy_killed_at_any_write_leaves_the_old_one_or_the_new_one(tmp_path, halfway):
    old, new = run_folder(tmp_path / "old", 4), run_folder(tmp_path / "new", 5)
    seen = set()
    for at in range(1, 99):
        remote = remote_folder(f"file://{tmp_path}/there-{at}")
        first = copied(remote, old)
        with pytest.MonkeyPatch.context() as patch:
            dying(remote, patch, at, halfway)
            try:
                copied(remote, new, first)
            except Dying:
                ended = False
            else:
                ended = True
        found = back(remote, tmp_path / f"back-{at}")
        assert found in (tree(old), tree(new)), at
        seen.add(found == tree(new))
        # The next process goes on from what is there, and leaves nothing of the kill behind.
        copied(remote, new, newest(remote), last_number(remote) + 1)
        assert len(remote.names()) == len(tree(new)) + 1
        assert back(remote, tmp_path / f"again-{at}") == tree(new)
        if ended:
            assert at > 6
            break
    assert seen == {False, True}


def test_what_is_there_already_is_not_sent_again(tmp_path):
    remote = remote_folder(f"{tmp_path}/there")
    first = copied(remote, run_folder(tmp_path / "old", 4))
    new = run_folder(tmp_path / "new", 5)
    index = index_of(new, 2, ID, "tiny", "step 5")
    wanted = sum(
        path.stat().st_size
        for path in new.rglob("*")
        if path.is_file() and path.parent.name != "step-4"
    )
    assert publish(remote, new, index, first) == wanted


def test_what_somebody_took_away_is_sent_again(tmp_path):
    remote = remote_folder(f"{tmp_path}/there")
    new = run_folder(tmp_path / "new", 5)
    first = copied(remote, new)
    (tmp_path / f"there/files/{first.files['run.json'][0]}-run.json").unlink()
    copied(remote, new, first)
    assert back(remote, tmp_path / "back") == tree(new)


def test_a_copy_that_is_replaced_while_it_is_fetched_gives_the_new_one(tmp_path, monkeypatch):
    old, new = run_folder(tmp_path / "old", 4), run_folder(tmp_path / "new", 5)
    remote = remote_folder(f"{tmp_path}/there")
    first, real = copied(remote, old), remote.fetch

    def fetch_later(name: str, target: Path) -> None:
        monkeypatch.setattr(remote, "fetch", real)
        copied(remote_folder(f"{tmp_path}/there"), new, first)
        real(name, target)

    monkeypatch.setattr(remote, "fetch", fetch_later)
    notes: list[str] = []
    assert back(remote, tmp_path / "back", notes) == tree(new)
    assert notes == [f"the copy of '{ID}' (step 2) was fetched from there"]


def test_files_of_others_at_the_address_stay(tmp_path):
    mine = {"README.md", "files/thesis.tex", "files/abc-notes.txt", "copy-1.json"}
    there = tmp_path / "there"
    (there / "files").mkdir(parents=True)
    for name in mine:
        (there / name).write_text("mine")
    remote = remote_folder(str(there))
    claim(remote, "there", None)
    copied(remote, run_folder(tmp_path / "new", 5), copied(remote, run_folder(tmp_path / "o", 4)))
    assert mine <= remote.names()
    assert len(remote.names() - mine) == len(tree(tmp_path / "new")) + 1


def test_a_damaged_checkpoint_is_left_out_and_another_file_refused(tmp_path):
    new = run_folder(tmp_path / "new", 5)
    remote = remote_folder(f"{tmp_path}/there")
    index = copied(remote, new)
    path = "stages/sft/checkpoints/step-5/state.safetensors"
    sum_, size = index.files[path]
    (tmp_path / f"there/files/{sum_}-state.safetensors").write_bytes(b"x" * size)
    notes: list[str] = []
    found = back(remote, tmp_path / "back", notes)
    assert found == {k: v for k, v in tree(new).items() if "step-5" not in k}
    assert "step-5 is left out" in notes[0]
    (tmp_path / f"there/files/{index.files['run.json'][0]}-run.json").unlink()
    with pytest.raises(LlmftError, match=r"E229.*'run\.json'.*damaged or missing"):
        back(remote, tmp_path / "again")
    assert not list((tmp_path / "again").iterdir())  # nor a half one


@pytest.mark.parametrize("path", ["../evil", "/evil", "a/../../evil", "a//b", ""])
def test_an_index_that_names_files_outside_is_none(tmp_path, path):
    remote = remote_folder(f"{tmp_path}/there")
    remote.put({"copy-00000001.json": Index(1, ID, "tiny", "", {path: ("0" * 64, 1)}).as_bytes()},
               (), "")  # fmt: skip
    with pytest.raises(LlmftError, match=r"E229.*holds no copy"):
        back(remote, tmp_path / "back")


def test_an_index_of_another_form_is_refused(tmp_path, monkeypatch):
    remote = remote_folder(f"{tmp_path}/there")
    with monkeypatch.context() as patch:
        patch.setattr(remote_copy, "_FORMAT", 2)
        copied(remote, run_folder(tmp_path / "new", 5))
    with pytest.raises(LlmftError, match=r"E229.*another version of llmft \(form 2\)"):
        newest(remote)


def test_another_recipe_and_a_run_that_is_here_are_refused(tmp_path):
    remote = remote_folder(f"{tmp_path}/there")
    copied(remote, run_folder(tmp_path / "new", 5))
    with pytest.raises(LlmftError, match=r"E229.*a run of 'tiny', and this recipe is called 'big'"):
        fetch(remote, "there", tmp_path / "back", "big", print)
    back(remote, tmp_path / "back")
    with pytest.raises(LlmftError, match=r"E090.*is here already"):
        back(remote, tmp_path / "back")


def test_an_address_with_another_run_is_refused(tmp_path):
    remote = remote_folder(f"{tmp_path}/there")
    copied(remote, run_folder(tmp_path / "new", 5))
    claim(remote, "there", ID)
    for other in (None, "20260101-000000-efgh"):
        with pytest.raises(LlmftError, match=f"E228.*'there' holds the run '{ID}'.*--resume-from"):
            claim(remote, "there", other)


def test_two_processes_do_not_copy_to_one_address(tmp_path):
    new = run_folder(tmp_path / "new", 5)
    mine, theirs = (remote_folder(f"{tmp_path}/there") for _ in range(2))
    first = copied(mine, new)
    copied(theirs, new, first)
    with pytest.raises(LlmftError, match=r"E229.*another process copies"):
        copied(mine, new, first)


def test_a_run_is_fetched_by_the_name_that_its_folder_was_given(tmp_path):
    remote, name = remote_folder(f"{tmp_path}/there"), "best run, 2.0"
    publish(
        remote, folder := run_folder(tmp_path / "n", 5), index_of(folder, 1, name, "t", ""), None
    )
    assert fetch(remote, "there", tmp_path / "back", "t", print) == tmp_path / "back" / name


@pytest.mark.parametrize("name", [".hidden", "a\nb", "x" * 201])
def test_a_folder_by_whose_name_no_run_is_fetched_is_refused(tmp_path, name):
    with pytest.raises(LlmftError, match=r"E228.*rename"):
        claim(remote_folder(f"{tmp_path}/there"), "there", name)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "plain address"),
        (" /tmp", "plain address"),
        ("zip://x::file:///y", "plain address"),
        ("memory://x", "gone when the process ends"),
        ("hf://user", "not a repository"),
        ("hf://datasets/user/name", "not a repository"),
        ("nosuch://x", "no client"),
        ("file://backup/run", "has no full path"),
        ("sftp://user:canary@host/x", "looks like a password"),
        ("s3://bucket/x?sig=canary", "looks like a password"),
        ("s3://AKIACANARYCANARYCAN1/x", "looks like a password"),
    ],
)
def test_an_address_that_is_none_is_refused_and_no_secret_printed(address, said):
    with pytest.raises(LlmftError, match=f"E228.*{said}") as error:
        remote_folder(address)
    assert "canary" not in str(error.value).lower()


def test_a_client_that_is_not_installed_is_named():
    with pytest.raises(LlmftError, match=r"E206.*'s3://b/x' is not installed.*s3fs"):
        remote_folder("s3://b/x")


def test_what_a_client_says_is_told_without_secrets():
    key = "AKIACANARYCANARYCAN1"
    error = OSError(f"PUT https://me:canary@host/a?X-Signature=canary refused for {key}")
    told = fault(error, "s3://bucket/x", "be written to").faults[0].what
    assert told.startswith("'s3://bucket/x' cannot be written to (OSError: PUT https://host/a")
    assert "canary" not in told.lower()


def test_the_hub_has_one_commit_for_a_copy_in_a_private_repository(hub, tmp_path):
    remote = remote_folder("hf://me/copies")
    claim(remote, "hf://me/copies", None)
    assert hub.private["me/copies"]
    commits = hub.repos["model", "me/copies"]
    before = len(commits)
    first = copied(remote, run_folder(tmp_path / "old", 4))
    new = run_folder(tmp_path / "new", 5)
    copied(remote, new, first)
    assert len(commits) == before + 2
    assert len(list(commits.values())[-1]) == len(tree(new)) + 1
    assert back(HubRepository("me/copies"), tmp_path / "back") == tree(new)
    assert hub.tokens <= {"", f"Bearer {TOKEN}"}


def test_a_public_repository_is_refused(hub):
    hub.add("model", "me/open", {}, "0" * 40)
    with pytest.raises(LlmftError, match=r"E228.*is public"):
        claim(remote_folder("hf://me/open"), "hf://me/open", None)
    assert json.dumps(hub.files("model", "me/open", "main")[1]) == "{}"


def test_a_hub_that_does_not_answer_has_not_said_that_there_is_no_copy(hub, tmp_path):
    remote = remote_folder("hf://me/copies")
    copied(remote, run_folder(tmp_path / "new", 5))

    def refuse(path: str) -> None:
        if "/resolve/" in path:
            hub.mode = 403

    hub.on_asked = refuse
    with pytest.raises(ConnectionError, match=r"copy-00000001\.json"):
        newest(remote)

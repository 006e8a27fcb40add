"""A run that is copied while it trains goes on elsewhere, from the copy, to the very same state."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.checkpoints.harness import state_of
from tests.end_to_end.checkpoints.test_resume import at, two_stages


def indexes(there: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in there.glob("copy-*.json")]


def wait_for(there: Path, said: str) -> None:
    until = time.monotonic() + 60
    while not any(one["at"] == said for one in indexes(there)):
        assert time.monotonic() < until, [one["at"] for one in indexes(there)]
        time.sleep(0.02)


@pytest.fixture
def there(tmp_path) -> Path:
    return tmp_path / "there"


def test_a_run_killed_on_one_machine_ends_bit_exactly_on_another(go, recipe, whole, there):
    words = ["--checkpoints-to", f"file://{there}"]
    # SIGTERM waits for the copy of the last step, as a scheduler gives time for.
    first = go(recipe, "one", fault=at(3, signal.SIGTERM), words=words)
    assert first.code == 128 + signal.SIGTERM, first.text
    assert f"--resume --checkpoints-to file://{there}" in first.text
    assert [one["at"] for one in indexes(there)] == ["step 3 of stage 'sft'"]
    second = go(recipe, "two", words=[*words, "--resume-from", str(there)])
    assert second.code == 0, second.text
    assert "continues after step 3" in second.text
    assert second.folder != first.folder
    assert second.folder.name == first.folder.name
    wanted = state_of(whole.folder)
    assert state_of(second.folder) | {"sft/checkpoints": 0} == wanted | {"sft/checkpoints": 0}
    assert [one["at"] for one in indexes(there)] == ["the end of stage 'sft'"]
    third = go(recipe, "three", words=["--resume-from", str(there)])
    assert "already finished" in third.text
    assert state_of(third.folder) == state_of(second.folder)


def test_a_killed_pipeline_goes_on_by_itself_in_its_second_stage(go, recipe, there):
    data = two_stages(recipe)
    whole = go(data, "whole")
    words = ["--checkpoints-to", f"file://{there}", "--resume-auto"]
    begun = go(data, "one", fault=at(3, signal.SIGTERM, stage="more"), words=words)
    assert begun.code == 128 + signal.SIGTERM, begun.text
    wait_for(there, "step 3 of stage 'more'")
    ended = go(data, "two", words=words)
    assert ended.code == 0, ended.text
    assert "sft: already finished" in ended.text
    assert "continues after step 3" in ended.text
    wanted, found = state_of(whole.folder), state_of(ended.folder)
    for one in (wanted, found):
        for key in [key for key in one if key.endswith(("/checkpoints", "/facts"))]:
            del one[key]
    assert found == wanted


def test_a_run_whose_copy_fails_is_finished_and_says_so_at_its_end(go, recipe, there):
    recipe["stages"][0]["train"]["save_steps"] = 1
    words = ["--checkpoints-to", f"file://{there}"]
    spoilt = {"kind": "replaced", "at": 3, "where": str(there)}
    ended = go(recipe, "one", words=words, fault=spoilt)
    assert ended.code == 4, ended.text
    assert ended.text.count("is not copied") == 1  # one reason, told once
    assert "; the run goes on" in ended.text
    assert "error[E230] the run is finished, and its copy at" in ended.text
    assert (ended.folder / "stages/sft/result.json").is_file()
    assert not list(ended.folder.glob(".staging-*"))
    there.unlink()
    again = go(recipe, "one", resume=True, words=[str(ended.folder), *words])
    assert again.code == 0, again.text
    assert [one["at"] for one in indexes(there)] == ["its end"]


def test_a_run_killed_while_it_waited_for_its_last_copy_is_copied_when_it_goes_on(
    go, recipe, there
):
    ended = go(recipe, "one")
    (ended.folder / ".staging-copies" / "1").mkdir(parents=True)  # as the kill leaves it
    words = [str(ended.folder), "--checkpoints-to", str(there)]
    again = go(recipe, "one", resume=True, words=words)
    assert again.code == 0, again.text
    assert [one["at"] for one in indexes(there)] == ["its end"]


def test_a_second_signal_leaves_without_the_copy_and_says_how_to_go_on(go, recipe, there):
    said = there.parent / "one/out.txt"

    def until(is_so) -> None:
        end = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.005)

    def second(pid: int) -> None:
        until(lambda: (there / "files").is_dir())
        os.mkfifo(there / "copy-00000001.json")  # whose reader waits for ever
        until(lambda: "waiting for the copy" in said.read_text())
        os.kill(pid, signal.SIGTERM)

    words = ["--checkpoints-to", str(there)]
    ended = go(recipe, "one", words=words, fault=at(3, signal.SIGTERM), kill=second)
    assert ended.code == 128 + signal.SIGTERM, ended.text
    assert f"--resume --checkpoints-to {there}" in ended.text
    assert not list(ended.folder.glob(".staging-*"))


def test_a_new_run_does_not_take_the_address_of_another(go, recipe, there):
    words = ["--checkpoints-to", str(there)]
    assert go(recipe, "one", words=words).code == 0
    refused = go(recipe, "two", words=words)
    assert refused.code == 2
    assert "error[E228]" in refused.text
    assert not (refused.folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoints-to", "x", "--smoke"], "trains nothing that is worth a copy"),
        (["--resume-from", "x", "--resume"], "--resume-from begins with a copy"),
        (["--resume-from", "/nothing/here"], "error[E229]"),
    ],
)
def test_words_that_exclude_each_other_are_refused(go, recipe, words, said):
    ended = go(recipe, "one", words=words)
    assert ended.code in (2, 6)
    assert said in ended.text

"""Recipes of several stages: what runs again, what never does, and where a run stops."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest

from llmft.api.errors import DataError
from llmft.cli.main import main
from llmft.engine.session import Part, resume_recipe, run_recipe
from llmft.recipes.load import load_recipe

from .conftest import NAMES, made, times

# --- a whole run -----------------------------------------------------------------------------


def test_every_stage_leaves_what_it_makes_and_a_result(whole):
    assert set(made(whole)) == {
        "stages/sft/adapter/adapter_model.safetensors",
        "stages/collect/rows.jsonl",
        "stages/rank/rows.jsonl",
        "stages/dpo/adapter/adapter_model.safetensors",
    }
    results = {n: json.loads((whole / "stages" / n / "result.json").read_text()) for n in NAMES}
    assert [results[name]["produces"] for name in NAMES] == [
        "policy", "samples", "preferences", "policy",
    ]  # fmt: skip
    identities = [results[name]["fingerprint"] for name in NAMES]
    assert len(set(identities)) == 4
    assert all(len(identity) == 64 for identity in identities)
    lock = json.loads((whole / "lock.json").read_text())
    named = {(p["kind"], p["method"]) for p in lock["plugins"]}
    assert {("task", "rank"), ("reward", "length"), ("dataset", "from_stage")} <= named
    assert set(lock["rows_sha256"]["dpo"]) == {"train"}


def test_the_same_recipe_makes_the_same_bits(whole, data, load, registry, tmp_path):
    again = run_recipe(load(data, f"output_dir={tmp_path}")).folder
    assert made(again) == made(whole)


# --- what runs again -------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(finished, data, load, registry, ran):
    before = times(finished)
    summary = resume_recipe(load(data), finished)
    assert summary.already_finished
    assert (ran, times(finished)) == ([], before)


@pytest.mark.parametrize(
    ("stage", "keys", "to", "runs"),
    [
        ("sft", ("train", "learning_rate"), 0.02, ["sft", "collect", "rank", "dpo"]),
        pytest.param(
            "sft", ("adapter", "r"), 3, ["sft", "collect", "rank", "dpo"], marks=pytest.mark.slow
        ),
        pytest.param(
            "collect",
            ("task", "temperature"),
            0.5,
            ["collect", "rank", "dpo"],
            marks=pytest.mark.extended,
        ),
        ("rank", ("task", "judge", "target"), 2, ["rank", "dpo"]),
        ("dpo", ("alignment", "beta"), 0.3, ["dpo"]),
        ("dpo", ("train", "logging_steps"), 1, []),
    ],
)
def test_an_edited_stage_runs_again_with_what_follows_and_nothing_before(
    finished, edited, load, registry, ran, stage, keys, to, runs, tmp_path
):
    before = made(finished)
    changed = edited(stage, *keys, to=to)
    summary = resume_recipe(load(changed), finished)
    assert ran == runs
    assert list(summary.stages) == [*NAMES]
    kept = {path.name for path in (finished / "replaced").glob("*")}
    assert kept == {f"{name}-1" for name in runs}
    for name in runs:
        for path, digest in before.items():
            inside = Path(path).relative_to("stages")
            if inside.parts[0] == name:
                old = finished / "replaced" / f"{name}-1" / Path(*inside.parts[1:])
                assert hashlib.sha256(old.read_bytes()).hexdigest() == digest
    if 0 < len(runs) < len(NAMES):  # as if it had never been otherwise
        fresh = run_recipe(load(changed, f"output_dir={tmp_path / 'fresh'}")).folder
        assert made(finished) == made(fresh)


def test_a_method_that_an_edit_brings_in_is_written_down(finished, edited, load, registry):
    judge = {"method": "format", "starts_with": "\N{REPLACEMENT CHARACTER}"}  # about half do
    resume_recipe(load(edited("rank", "task", "judge", to=judge)), finished)
    lock = json.loads((finished / "lock.json").read_text())
    assert ("reward", "format") in {(p["kind"], p["method"]) for p in lock["plugins"]}


def test_what_is_put_back_runs_once_more_and_keeps_both(finished, data, edited, load, registry):
    before = made(finished)
    resume_recipe(load(edited("dpo", "alignment", "beta", to=0.3)), finished)
    resume_recipe(load(data), finished)
    assert made(finished) == before
    assert {path.name for path in (finished / "replaced").glob("*")} == {"dpo-1", "dpo-2"}


@pytest.fixture
def prompts_file(data):
    """The file that `collect` reads; it is as it was afterwards."""
    path = Path(data["stages"][1]["data"]["path"])
    text = path.read_text()
    yield path
    path.write_text(text)


def test_rows_that_changed_under_a_finished_run_are_noticed(
    finished, data, load, registry, ran, prompts_file, tmp_path
):
    prompts_file.write_text(prompts_file.read_text().replace("say 3:", "say it:"))
    summary = resume_recipe(load(data), finished)
    assert not summary.already_finished
    assert ran == ["collect", "rank", "dpo"]
    kept = {path.name for path in (finished / "replaced").glob("*")}
    assert kept == {"collect-1", "rank-1", "dpo-1"}
    fresh = run_recipe(load(data, f"output_dir={tmp_path / 'fresh'}")).folder
    assert made(finished) == made(fresh)
    assert resume_recipe(load(data), finished).already_finished


def test_rows_in_another_file_that_are_the_same_are_no_change(
    finished, data, load, registry, ran, prompts_file
):
    lines = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    prompts_file.write_text("".join(json.dumps(row, indent=None) + " \n" for row in lines))
    before = times(finished)
    assert resume_recipe(load(data), finished).already_finished
    assert (ran, times(finished)) == ([], before)


def test_a_finished_run_whose_data_is_gone_says_so_and_stays_as_it_is(
    finished, data, load, registry, ran, prompts_file
):
    prompts_file.unlink()
    before = times(finished)
    with pytest.raises(DataError, match="there is no file"):
        resume_recipe(load(data), finished)
    assert (ran, times(finished)) == ([], before)


def test_a_stage_that_is_added_runs_and_the_others_stay(finished, data, load, registry, ran):
    more = copy.deepcopy(data)
    more["stages"].append({**data["stages"][3], "name": "more", "start_from": "dpo"})
    before = made(finished)
    resume_recipe(load(more), finished)
    assert ran == ["more"]
    assert before.items() <= made(finished).items()
    assert json.loads((finished / "run.json").read_text())["stages"] == [*NAMES, "more"]


@pytest.mark.extended
def test_one_more_round_runs_that_round_only(data, load, registry, tmp_path, ran):
    place = f"output_dir={tmp_path}"
    looped = {**data, "repeat": {"stages": ["collect", "rank", "dpo"], "rounds": 1}}
    folder = run_recipe(load(looped, place)).folder
    first = made(folder)
    del ran[:]
    looped["repeat"]["rounds"] = 2
    resume_recipe(load(looped, place), folder)
    assert ran == ["collect-2", "rank-2", "dpo-2"]
    assert first.items() <= made(folder).items()
    unbroken = run_recipe(load(looped, f"output_dir={tmp_path / 'other'}")).folder
    assert made(unbroken) == made(folder)
    resolved = load_recipe(folder / "resolved.yaml", registry).recipe
    assert resolved.stage("collect-2").start_from == "dpo"


# --- a part of a run -------------------------------------------------------------------------


def test_until_stops_after_a_stage_and_resume_goes_on(whole, data, load, registry, tmp_path, ran):
    loaded = load(data, f"output_dir={tmp_path}")
    summary = run_recipe(loaded, Part(last="collect"))
    assert list(summary.stages) == ["sft", "collect"]
    assert not (summary.folder / "stages" / "rank").exists()
    resume_recipe(loaded)
    assert ran == [*NAMES]
    assert made(summary.folder) == made(whole)


def test_from_runs_a_stage_and_what_follows_again(finished, whole, data, load, registry, ran):
    resume_recipe(load(data), finished, Part(first="rank"))
    assert ran == ["rank", "dpo"]
    assert made(finished) == made(whole)
    assert {path.name for path in (finished / "replaced").glob("*")} == {"rank-1", "dpo-1"}


def test_from_and_until_run_what_is_between(finished, data, load, registry, ran):
    part = Part(first="collect", last="rank")
    assert list(resume_recipe(load(data), finished, part).stages) == [
        "sft", "collect", "rank",
    ]  # fmt: skip
    assert ran == ["collect", "rank"]
    assert (finished / "stages" / "dpo" / "result.json").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--from", "rnak"], "E030", "did you mean 'rank'"),
        (["--until", "ppo"], "E030", "no stage is called 'ppo'"),
        (["--from", "dpo", "--until", "sft"], "E090", "comes before"),
        (["--from", "dpo", "--smoke"], "E090", "exclude each other"),
    ],
)
def test_parts_that_cannot_be_are_refused(data, tmp_path, capsys, words, code, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(data))
    assert main(["run", str(path), *words]) == 2
    told = capsys.readouterr().err
    assert f"error[{code}]" in told
    assert said in told

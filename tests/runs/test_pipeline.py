"""Recipes of several stages: what runs again, what never does, and where a run stops."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from llmft.cli import main
from llmft.engine import Part, resume_recipe, run_recipe
from llmft.errors import DataError, LlmftError
from llmft.reading.recipe import load_recipe
from llmft.registry import Registry

NAMES = ("sft", "collect", "rank", "dpo")
TRAIN = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture(scope="module")
def data(model_folder, tmp_path_factory) -> dict:
    """A tiny pipeline as plain data; its rows lie in files of its own, for a test to change."""
    folder = tmp_path_factory.mktemp("pipeline")
    rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in range(12)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in rows[:6]])
    return {
        "recipe": 1,
        "name": "pipe",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(model_folder)},
        "stages": [
            {
                "name": "sft",
                "adapter": {"method": "lora", "r": 2},
                "alignment": {"method": "sft"},
                "data": {"method": "jsonl", "path": str(folder / "rows.jsonl")},
                "train": TRAIN,
            },
            {
                "name": "collect",
                "start_from": "sft",
                "task": {"method": "collect", "num_return_sequences": 3, "max_new_tokens": 5},
                "data": {"method": "prompts", "path": str(folder / "prompts.jsonl")},
            },
            {
                "name": "rank",
                "task": {
                    "method": "rank",
                    "samples": "collect",
                    "judge": {"method": "length", "target": 5, "unit": "characters"},
                },
            },
            {
                "name": "dpo",
                "start_from": "sft",
                "alignment": {"method": "dpo"},
                "data": {"method": "from_stage", "stage": "rank"},
                "train": TRAIN,
            },
        ],
    }


def write_rows(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def load(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")

    def loaded(data: dict, *overrides: str):
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(data))
        return load_recipe(path, registry, overrides)

    return loaded


@pytest.fixture(scope="module")
def whole(data, load, registry) -> Path:
    """The folder of an unbroken run; not to be changed."""
    return run_recipe(load(data), registry).folder


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A copy of the unbroken run, to be gone on with."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / "pipe" / whole.name))


@pytest.fixture
def edited(data):
    """Return the recipe with a setting of a stage replaced."""

    def edit(stage: str, *keys: str, to) -> dict:
        changed = copy.deepcopy(data)
        block = next(one for one in changed["stages"] if one["name"] == stage)
        for key in keys[:-1]:
            block = block[key]
        block[keys[-1]] = to
        return changed

    return edit


@pytest.fixture
def ran(monkeypatch):
    """The names of the stages that do something, in order."""
    from llmft.engine import Engine

    names: list[str] = []
    original = Engine.llmft_run_stage

    def noted(self, stage, context):
        names.append(stage.name)
        return original(self, stage, context)

    # pluggy reads the hook's mark from the function that it finds
    noted.llmft_impl = original.llmft_impl
    monkeypatch.setattr(Engine, "llmft_run_stage", noted)
    return names


def made(folder: Path) -> dict[str, str]:
    """The SHA-256 of every adapter and every rows file of a run."""
    files = [*folder.glob("stages/*/adapter/*.safetensors"), *folder.glob("stages/*/rows.jsonl")]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


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
    identities = [results[name]["identity"] for name in NAMES]
    assert len(set(identities)) == 4
    assert all(len(identity) == 64 for identity in identities)
    lock = json.loads((whole / "lock.json").read_text())
    named = {(p["kind"], p["method"]) for p in lock["plugins"]}
    assert {("task", "rank"), ("reward", "length"), ("dataset", "from_stage")} <= named
    assert set(lock["rows_sha256"]["dpo"]) == {"train"}


def test_the_same_recipe_makes_the_same_bits(whole, data, load, registry, tmp_path):
    again = run_recipe(load(data, f"output_dir={tmp_path}"), registry).folder
    assert made(again) == made(whole)


# --- what runs again -------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(finished, data, load, registry, ran):
    before = times(finished)
    summary = resume_recipe(load(data), registry, finished)
    assert summary.already_finished
    assert (ran, times(finished)) == ([], before)


@pytest.mark.parametrize(
    ("stage", "keys", "to", "runs"),
    [
        ("sft", ("train", "learning_rate"), 0.02, ["sft", "collect", "rank", "dpo"]),
        pytest.param(
            "sft", ("adapter", "r"), 3, ["sft", "collect", "rank", "dpo"], marks=pytest.mark.slow
        ),
        ("collect", ("task", "temperature"), 0.5, ["collect", "rank", "dpo"]),
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
    summary = resume_recipe(load(changed), registry, finished)
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
    if runs:  # as if it had never been otherwise
        fresh = run_recipe(load(changed, f"output_dir={tmp_path / 'fresh'}"), registry).folder
        assert made(finished) == made(fresh)


def test_a_method_that_an_edit_brings_in_is_written_down(finished, edited, load, registry):
    judge = {"method": "format", "starts_with": "\N{REPLACEMENT CHARACTER}"}  # about half do
    resume_recipe(load(edited("rank", "task", "judge", to=judge)), registry, finished)
    lock = json.loads((finished / "lock.json").read_text())
    assert ("reward", "format") in {(p["kind"], p["method"]) for p in lock["plugins"]}


def test_what_is_put_back_runs_once_more_and_keeps_both(finished, data, edited, load, registry):
    before = made(finished)
    resume_recipe(load(edited("dpo", "alignment", "beta", to=0.3)), registry, finished)
    resume_recipe(load(data), registry, finished)
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
    summary = resume_recipe(load(data), registry, finished)
    assert not summary.already_finished
    assert ran == ["collect", "rank", "dpo"]
    kept = {path.name for path in (finished / "replaced").glob("*")}
    assert kept == {"collect-1", "rank-1", "dpo-1"}
    fresh = run_recipe(load(data, f"output_dir={tmp_path / 'fresh'}"), registry).folder
    assert made(finished) == made(fresh)
    assert resume_recipe(load(data), registry, finished).already_finished


def test_rows_in_another_file_that_are_the_same_are_no_change(
    finished, data, load, registry, ran, prompts_file
):
    lines = [json.loads(line) for line in prompts_file.read_text().splitlines()]
    prompts_file.write_text("".join(json.dumps(row, indent=None) + " \n" for row in lines))
    before = times(finished)
    assert resume_recipe(load(data), registry, finished).already_finished
    assert (ran, times(finished)) == ([], before)


def test_a_finished_run_whose_data_is_gone_says_so_and_stays_as_it_is(
    finished, data, load, registry, ran, prompts_file
):
    prompts_file.unlink()
    before = times(finished)
    with pytest.raises(DataError, match="there is no file"):
        resume_recipe(load(data), registry, finished)
    assert (ran, times(finished)) == ([], before)


def test_a_stage_that_is_added_runs_and_the_others_stay(finished, data, load, registry, ran):
    more = copy.deepcopy(data)
    more["stages"].append({**data["stages"][3], "name": "more", "start_from": "dpo"})
    before = made(finished)
    resume_recipe(load(more), registry, finished)
    assert ran == ["more"]
    assert before.items() <= made(finished).items()
    assert json.loads((finished / "run.json").read_text())["stages"] == [*NAMES, "more"]


def test_one_more_round_runs_that_round_only(data, load, registry, tmp_path, ran):
    place = f"output_dir={tmp_path}"
    looped = {**data, "repeat": {"stages": ["collect", "rank", "dpo"], "rounds": 1}}
    folder = run_recipe(load(looped, place), registry).folder
    first = made(folder)
    del ran[:]
    looped["repeat"]["rounds"] = 2
    resume_recipe(load(looped, place), registry, folder)
    assert ran == ["collect-2", "rank-2", "dpo-2"]
    assert first.items() <= made(folder).items()
    unbroken = run_recipe(load(looped, f"output_dir={tmp_path / 'other'}"), registry).folder
    assert made(unbroken) == made(folder)
    resolved = load_recipe(folder / "resolved.yaml", registry).recipe
    assert resolved.stage("collect-2").start_from == "dpo"


# --- a part of a run -------------------------------------------------------------------------


def test_until_stops_after_a_stage_and_resume_goes_on(whole, data, load, registry, tmp_path, ran):
    loaded = load(data, f"output_dir={tmp_path}")
    summary = run_recipe(loaded, registry, Part(last="collect"))
    assert list(summary.stages) == ["sft", "collect"]
    assert not (summary.folder / "stages" / "rank").exists()
    resume_recipe(loaded, registry)
    assert ran == [*NAMES]
    assert made(summary.folder) == made(whole)


def test_from_runs_a_stage_and_what_follows_again(finished, whole, data, load, registry, ran):
    resume_recipe(load(data), registry, finished, Part(first="rank"))
    assert ran == ["rank", "dpo"]
    assert made(finished) == made(whole)
    assert {path.name for path in (finished / "replaced").glob("*")} == {"rank-1", "dpo-1"}


def test_from_and_until_run_what_is_between(finished, data, load, registry, ran):
    part = Part(first="collect", last="rank")
    assert list(resume_recipe(load(data), registry, finished, part).stages) == [
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


# --- crashes ---------------------------------------------------------------------------------


class Crash(Exception):
    """Stands for a kill: nothing in llmft catches it."""


QUICK = [("collect", "while"), ("rank", "after"), ("dpo", "before")]


@pytest.mark.parametrize(
    ("stage", "when"),
    [
        pytest.param(stage, when, marks=[] if (stage, when) in QUICK else pytest.mark.slow)
        for stage in NAMES
        for when in ("before", "while", "after")
    ],
)
def test_a_run_that_crashed_at_a_stage_resumes_to_the_same_bits(
    whole, data, load, registry, tmp_path, monkeypatch, stage, when
):
    from llmft import artifacts
    from llmft.stage import StageRun

    def crash_at(name: str, owner, attribute: str) -> None:
        original = getattr(owner, attribute)

        def crashing(*given, **named):
            if given[0].name == stage and name == when:  # a stage, or a stage's folder
                raise Crash
            return original(*given, **named)

        monkeypatch.setattr(owner, attribute, crashing)

    crash_at("before", StageRun, "rows" if stage != "rank" else "stage_folder")
    crash_at("while", StageRun, {"collect": "sample", "rank": "reward_function"}.get(stage, "_fit"))
    crash_at("after", artifacts, "save_stage")  # given the stage's folder: rows are there already
    loaded = load(data, f"output_dir={tmp_path}")
    with pytest.raises(Crash):
        run_recipe(loaded, registry)
    monkeypatch.undo()
    summary = resume_recipe(loaded, registry)
    assert made(summary.folder) == made(whole)
    assert not (summary.folder / "replaced").exists()


def test_a_crash_after_set_aside_loses_nothing(
    finished, whole, edited, load, registry, monkeypatch, ran
):
    from llmft import artifacts

    def crash(*_):
        raise Crash

    changed = load(edited("rank", "task", "judge", "target", to=2))
    monkeypatch.setattr(artifacts, "save_stage", crash)
    with pytest.raises(Crash):
        resume_recipe(changed, registry, finished)
    monkeypatch.undo()
    assert (finished / "replaced" / "rank-1" / "rows.jsonl").read_bytes() == (
        whole / "stages" / "rank" / "rows.jsonl"
    ).read_bytes()
    resume_recipe(changed, registry, finished)
    assert {path.name for path in (finished / "replaced").glob("*")} == {"rank-1", "dpo-1"}
    results = [json.loads(p.read_text()) for p in finished.glob("stages/*/result.json")]
    assert len(results) == 4


def test_rows_that_were_tampered_with_are_refused(finished, edited, load, registry):
    rows = finished / "stages" / "rank" / "rows.jsonl"
    rows.write_text(rows.read_text().replace("say", "tell", 1))
    with pytest.raises(LlmftError, match=r"E401.*rank.*is not what the stage wrote"):
        resume_recipe(load(edited("dpo", "alignment", "beta", to=0.3)), registry, finished)


def test_an_edit_of_a_stage_that_stopped_at_a_checkpoint_is_refused(
    edited, data, load, registry, tmp_path, monkeypatch
):
    from llmft import artifacts

    saving = edited("dpo", "train", to={**TRAIN, "save_strategy": "steps", "save_steps": 1})
    place = f"output_dir={tmp_path}"

    def crash(folder, *rest):
        if folder.name == "dpo":
            raise Crash
        return original(folder, *rest)

    original = artifacts.save_stage
    monkeypatch.setattr(artifacts, "save_stage", crash)
    with pytest.raises(Crash):
        run_recipe(load(saving, place), registry)
    monkeypatch.undo()
    changed = copy.deepcopy(saving)
    changed["stages"][3]["alignment"]["beta"] = 0.3
    with pytest.raises(LlmftError, match=r"E404.*stages\.dpo\.alignment\.beta") as caught:
        resume_recipe(load(changed, place), registry)
    assert caught.value.exit_code == 6
    resume_recipe(load(saving, place), registry)


# --- earlier runs and later files ------------------------------------------------------------


def test_a_run_starts_from_a_stage_of_an_earlier_run(whole, data, load, registry, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(whole, runs / "pipe" / whole.name)
    later = {**copy.deepcopy(data), "name": "later", "stages": copy.deepcopy(data["stages"][1:])}
    for stage in later["stages"]:
        if "start_from" in stage:
            stage["start_from"] = f"run:{whole.name}/sft"
    summary = run_recipe(load(later, f"output_dir={runs}"), registry)
    theirs = {path: digest for path, digest in made(whole).items() if "sft" not in path}
    assert made(summary.folder) == theirs


def test_an_earlier_run_that_is_not_there_is_an_error(data, load, registry, tmp_path):
    later = {**copy.deepcopy(data), "stages": copy.deepcopy(data["stages"][1:2])}
    later["stages"][0]["start_from"] = "run:20200101-000000-abc/sft"
    with pytest.raises(LlmftError, match="E402"):
        run_recipe(load(later, f"output_dir={tmp_path}"), registry)


@pytest.mark.parametrize("stage", ["collect", "more"])
def test_a_later_stages_missing_file_is_found_before_anything_runs(
    data, edited, load, registry, tmp_path, ran, stage
):
    changed = edited("collect", "data", "path", to=str(tmp_path / "gone.jsonl"))
    if stage == "more":
        changed = copy.deepcopy(data)
        more = {**data["stages"][0], "name": "more"}
        more["data"] = {"method": "jsonl", "path": str(tmp_path / "gone.jsonl")}
        changed["stages"].append(more)
    with pytest.raises(LlmftError, match=r"gone\.jsonl"):
        run_recipe(load(changed, f"output_dir={tmp_path / 'runs'}"), registry)
    assert ran == []
    assert not (tmp_path / "runs").exists()

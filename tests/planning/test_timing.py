"""The time of a plan by an earlier run of the same shape: the arithmetic, and which runs count."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from llmft.cli.main import main
from llmft.engine.session import run_recipe
from llmft.planning.planner import plan_recipe
from llmft.planning.timing import (
    BEYOND,
    SCORING,
    SET_UP,
    TRAINING,
    Seconds,
    from_earlier_runs,
    stage_time,
)
from llmft.recipes.load import load_recipe
from tests.planning.conftest import tiny_recipe


def planned(**other):
    """A stage of 100 steps over 400 rows of 10 tokens, scored on 40 rows."""
    counts = SimpleNamespace(rows=400, tokens=4000, steps=100, items=400)
    told = {"name": "only", "counts": counts, "held_out": 40, "evaluations": None, "drawn": None}
    return SimpleNamespace(**(told | {"trains": True} | other))


def told(phases, **timeline):
    sizes = {"rows": 400, "tokens": 4000, "steps": 100}
    return SimpleNamespace(
        timeline={"phases": phases, **sizes, **timeline}, recipe={"evaluate": {"max_new_tokens": 8}}
    )


def phase(name, seconds, done=None, total=None, pace=()):
    found = {"phase": name, "seconds": seconds}
    return found | ({"done": done, "total": total, "pace": list(pace)} if done else {})


BLOCK = {"evaluate": {"max_new_tokens": 8}}


def parts(stage, phases, block=BLOCK, **timeline):
    found = stage_time(stage, block, told(phases, **timeline), "r")
    assert found is not None
    return found.parts


def test_a_run_of_the_same_length_takes_as_long_again():
    found = parts(
        planned(),
        [
            phase("load the model", 3.0),
            phase("evaluate", 1.0, 40, 40),
            phase("answer", 5.0, 40, 40),
            phase("train", 50.0, 100, 100, [0.4, 0.5, 0.6]),
            phase("evaluate", 1.0, 40, 40),
            phase("answer", 4.0, 40, 40),
        ],
    )
    assert found[SET_UP].likely == 3.0
    assert found[SCORING].likely == 11.0
    assert found[TRAINING].likely == 50.0
    # All of it as fast as its fastest part, and as slow as its slowest.
    assert found[TRAINING].low == pytest.approx(40 / (1 + BEYOND))
    assert found[TRAINING].high == pytest.approx(60 * (1 + BEYOND))


def test_steps_rows_and_tokens_scale_what_depends_on_them():
    phases = [
        phase("tokenise", 2.0),
        phase("reference", 6.0, 200, 200),
        phase("answer", 2.0, 20, 20),
        phase("train", 5.0, 10, 10, [0.5, 0.5]),
    ]
    found = parts(planned(), phases, rows=200, tokens=1000, steps=10)
    assert found[TRAINING].likely == 5.0 * 10 * 2  # ten times the steps, of rows twice as long
    assert found[SET_UP].likely == (2.0 + 6.0) * 2
    assert found[SCORING].likely == 2.0 * 2 * 2  # twice the rows, and after training too


def test_the_first_of_a_few_steps_is_a_warm_up():
    steps = phase("train", 12.0, 4, 4, [9.0, 1.0, 1.0, 1.0])
    found = parts(planned(), [steps], steps=4)
    assert found[TRAINING].likely == pytest.approx(100.0)


def test_a_phase_that_was_stopped_is_carried_on_to_its_end():
    phases = [phase("reference", 6.0, 100, 400)]
    found = stage_time(planned(), BLOCK, told(phases), "r")
    assert found.parts[SET_UP].likely == 24.0
    assert found.lacks == (TRAINING,)


def test_evaluations_during_training_and_longer_answers_count():
    more = SimpleNamespace(times=3, rows=40, with_answers=1)
    phases = [phase("evaluate", 1.0, 40, 40), phase("answer", 2.0, 40, 40)]
    stage = planned(evaluations=more)
    found = parts(stage, phases, {"evaluate": {"max_new_tokens": 24}})
    assert found[SCORING].likely == 1.0 * 5 + 2.0 * 3 * 3


def test_times_add_up():
    both = Seconds(1, 2, 3) + Seconds(1, 1, 1).times(2)
    assert both == Seconds(3, 4, 5)


@pytest.fixture(scope="module")
def made(model_folders, rows_file, registry, tmp_path_factory):
    """A recipe, and the folder of its runs with a real one; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    recipe = tiny_recipe(model_folders["llama"], rows_file)
    recipe["output_dir"] = str(folder / "runs")
    recipe["stages"][0]["train"]["max_steps"] = 6
    recipe["stages"][0]["evaluate"] = {"metrics": ["loss"], "holdout": 0.2, "max_new_tokens": 2}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    run_recipe(load_recipe(path, registry))
    return recipe, folder / "runs"


@pytest.fixture
def ran(made, tmp_path):
    """A recipe, and the folder of a real run of it."""
    recipe, runs = made
    here = shutil.copytree(runs, tmp_path / "runs")
    (folder,) = here.glob("tiny/*")
    return copy.deepcopy(recipe) | {"output_dir": str(here)}, folder


def test_a_plan_tells_the_time_of_the_last_run_and_of_no_other_shape(ran, loaded):
    recipe, folder = ran
    timeline = json.loads((folder / "timeline.json").read_text())
    real = sum(p["seconds"] for p in timeline["stages"]["only"]["phases"])

    plan = plan_recipe(loaded(recipe))
    same = from_earlier_runs(plan)
    assert same.stages[0].source == f"run {folder.name}"
    assert same.whole.low <= real <= same.whole.high
    counts = replace(plan.stages[0].counts, steps=60)
    longer = replace(plan, stages=[replace(plan.stages[0], counts=counts)])
    grown = from_earlier_runs(longer).stages[0].parts[TRAINING].likely
    assert grown == pytest.approx(10 * same.stages[0].parts[TRAINING].likely)

    def time_of(change):
        changed = copy.deepcopy(recipe)
        change(changed["stages"][0])
        return from_earlier_runs(replace(plan, job=loaded(changed)))

    longer = time_of(lambda stage: stage["train"].update(max_steps=60, learning_rate=1e-3))
    assert longer == same  # of the same shape
    assert time_of(lambda stage: stage["train"].update(per_device_train_batch_size=2)) is None
    assert time_of(lambda stage: stage["adapter"].update(r=2)) is None
    lock = json.loads((folder / "lock.json").read_text())
    (folder / "lock.json").write_text(json.dumps(lock | {"torch_threads": 999}))
    assert from_earlier_runs(plan) is None
    (folder / "lock.json").write_text("{")  # a damaged run keeps nobody from planning
    assert from_earlier_runs(plan) is None


def test_steps_are_measured_and_leave_nothing(recipe, tmp_path, capsys):
    recipe["output_dir"] = str(tmp_path / "runs")
    recipe["stages"][0]["train"] |= {"num_train_epochs": 3, "warmup_ratio": 0.2}
    recipe["stages"][0]["evaluate"] = {
        "metrics": ["loss"], "holdout": 8, "eval_strategy": "epoch", "load_best_model_at_end": True,
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["plan", str(path), "--measure", "500", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["time"]
    assert found["stages"][0]["source"] == "its first steps, measured"
    assert set(found["stages"][0]["parts"]) == {"set-up", "training", "scoring"}
    assert found["whole"]["low"] > 0
    assert "6 steps" in found["remark"]
    assert not (tmp_path / "runs").exists()


def test_what_stops_the_measurement_is_said(recipe, tmp_path, capsys, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["plan", str(path), "--measure", "1"]) == 4
    assert "error[E217]" in capsys.readouterr().err
    assert main(["plan", str(path), "--measure", "1", "--gpu", "24GB"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_the_command_has_the_time_of_a_longer_run(ran, tmp_path, capsys):
    recipe, folder = ran
    recipe["stages"][0]["train"]["max_steps"] = 60
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(recipe))
    assert main(["plan", str(path), "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["time"]["stages"]
    assert stage["source"] == f"run {folder.name}"
    steps = json.loads((folder / "timeline.json").read_text())["stages"]["only"]["phases"]
    trained = next(phase["seconds"] for phase in steps if phase["phase"] == "train")
    assert stage["parts"]["training"]["likely"] > 3 * trained


def test_text_names_the_interval_and_what_to_do_where_there_is_none(ran, tmp_path, capsys):
    recipe, folder = ran
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["plan", str(path)]) == 0
    told = capsys.readouterr().out
    assert "time of stage" in told
    assert f"run {folder.name}" in told
    shutil.rmtree(Path(recipe["output_dir"]))
    assert main(["plan", str(path)]) == 0
    assert "--measure 120" in capsys.readouterr().out

"""A run in two processes: the curve of one with the doubled batch, signals, and a lost process."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

PAIR = Path(__file__).parent / "pair.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]


def written(path: Path, data: dict) -> Path:
    with path.open("w") as stream:
        YAML(typ="safe").dump(data, stream)
    return path


def doubled(data: dict) -> dict:
    data = copy.deepcopy(data)
    for stage in data["stages"]:
        if "train" in stage:
            stage["train"]["per_device_train_batch_size"] *= 2
    return data


def curve(run: Path, stage: str) -> list[dict]:
    lines = (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    # Which side of an edge a token is on may be a matter of rounding; the losses there are one.
    dropped = ("tokens_per_second", "clipfrac")
    return [{k: v for k, v in json.loads(x).items() if k not in dropped} for x in lines]


def assert_same_curve(two: Path, one: Path, stage: str) -> None:
    ours, theirs = curve(two, stage), curve(one, stage)
    assert len(ours) == len(theirs) > 4
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name, value in b.items():
            wanted = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)
            assert a[name] == wanted, (name, a)


@pytest.fixture
def pairs(tmp_path):
    """Run command lines, each in two processes, and return their exit codes."""

    def run(*jobs: dict) -> list[list[int]]:
        for number, job in enumerate(jobs):
            job["out"] = [str(tmp_path / f"out-{number}-{rank}.txt") for rank in (0, 1)]
        path = tmp_path / "jobs.json"
        path.write_text(json.dumps(jobs))
        done = subprocess.run(
            [sys.executable, str(PAIR), str(path)],
            capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def said(job: dict, rank: int = 0) -> str:
    return Path(job["out"][rank]).read_text("utf-8", "replace")


def the_run(place: Path) -> Path:
    (found,) = place.glob("tiny/*")
    return found


def state_of(run: Path) -> dict[str, str]:
    files = [*run.glob("stages/*/adapter/*.safetensors"), *run.glob("stages/*/*/*/*.safetensors")]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_have_the_curve_of_one_with_the_doubled_batch(
    launcher, recipe, run, tmp_path
):
    recipe["stages"][0]["train"] |= {"logging_steps": 1, "max_steps": 10}  # over an epoch's end
    if launcher is ACCELERATE:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            launcher = [*launcher, f"--main_process_port={free.getsockname()[1]}"]
    path = written(tmp_path / "two.yaml", recipe)
    words = ["-m", "llmft", "run", str(path), "--output-dir", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("writing to") == 1
    one = run(doubled(recipe)).folder
    two = the_run(tmp_path / "two")
    assert_same_curve(two, one, "sft")
    assert json.loads((two / "lock.json").read_text())["processes"] == 2
    assert (two / "stages/sft/adapter/manifest.json").is_file()


def rlhf(recipe: dict) -> dict:
    """Return the recipe with answers collected and ranked, a reward model, and PPO."""
    sft = recipe["stages"][0]
    data, train = sft["data"], {"max_steps": 3, "per_device_train_batch_size": 2}
    prompts = {"method": "prompts", "path": data["path"]}
    judge = {"method": "length", "target": 4, "unit": "characters"}
    sft["train"] |= {"max_steps": 2, "per_device_train_batch_size": 2}
    del sft["evaluate"]
    recipe["stages"] += [
        {"name": "collect", "start_from": "sft", "data": prompts | {"limit": 12},
         "task": {"method": "collect", "num_return_sequences": 3, "max_new_tokens": 4}},
        {"name": "rank", "task": {"method": "rank", "samples": "collect", "judge": judge}},
        {"name": "reward", "adapter": {"method": "lora", "r": 2},
         "alignment": {"method": "reward"}, "train": train,
         "data": {"method": "from_stage", "stage": "rank"}},
        {"name": "ppo", "start_from": "sft", "data": prompts,
         "alignment": {"method": "ppo", "reward_model": "reward", "response_length": 5,
                       "num_ppo_epochs": 2, "num_mini_batches": 2, "temperature": 1.0},
         "train": {"max_steps": 4, "per_device_train_batch_size": 3, "logging_steps": 1},
         "evaluate": {"metrics": [], "holdout": 0.2}},
    ]  # fmt: skip
    return recipe


def test_a_whole_recipe_with_ppo_has_the_curve_of_one_process(recipe, run, pairs, tmp_path):
    recipe = rlhf(recipe)
    path = written(tmp_path / "two.yaml", recipe)
    job = {"argv": ["run", str(path), "--output-dir", str(tmp_path / "two")]}
    assert pairs(job) == [[0, 0]], said(job) + said(job, 1)
    assert said(job, 1) == ""
    one = run(doubled(recipe)).folder
    two = the_run(tmp_path / "two")
    for file in ("collect/rows.jsonl", "rank/rows.jsonl"):
        ours, theirs = (place / "stages" / file for place in (two, one))
        assert ours.read_text() == theirs.read_text()
    assert_same_curve(two, one, "ppo")


def of_other_methods(recipe: dict, folder: Path) -> dict[str, dict]:
    """Return recipes of methods whose batches or rows are special: kto, cpo and streamed rows."""
    answers = [
        {"prompt": f"say {n}:", "completion": f" {n % 7}", "label": n % 3 > 0} for n in range(20)
    ]
    pairs = [{"prompt": f"say {n}:", "chosen": f" {n % 7}", "rejected": " no"} for n in range(20)]
    for name, rows in (("unpaired", answers), ("preference", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"max_steps": 7, "per_device_train_batch_size": 2, "train_batch_size": 4,
             "learning_rate": 0.01, "logging_steps": 1}  # fmt: skip
    found = {}
    for name, data in (("kto", "unpaired"), ("cpo", "preference"), ("sft", "")):
        found[name] = copy.deepcopy(recipe)
        (stage,) = found[name]["stages"]
        stage |= {"alignment": {"method": name}, "train": dict(train)}
        stage["data"] = (
            {"method": data, "path": str(folder / f"{data}.jsonl")}
            if data
            else {**stage["data"], "streaming": True, "buffer_size": 11}
        )
        stage["evaluate"] = {"metrics": [], "holdout": 0.2} if data else None
    return found


def test_kto_cpo_and_streamed_rows_have_the_curve_of_one_process(recipe, run, pairs, tmp_path):
    recipes = of_other_methods(recipe, tmp_path)
    jobs = {
        name: {
            "argv": [
                "run", str(written(tmp_path / f"{name}.yaml", data)),
                "--output-dir", str(tmp_path / name),
            ]
        }
        for name, data in recipes.items()
    }  # fmt: skip
    codes = pairs(*jobs.values())
    assert codes == [[0, 0]] * 3, [said(job) for job in jobs.values()]
    for name, data in recipes.items():
        two, one = the_run(tmp_path / name), run(data).folder
        assert json.loads((two / "lock.json").read_text())["processes"] == 2
        assert_same_curve(two, one, "sft")
        results = [json.loads((r / "stages/sft/result.json").read_text()) for r in (two, one)]
        for moment in ("before", "after"):
            assert results[0][moment] == pytest.approx(results[1][moment], rel=1e-4, abs=1e-6)


def test_callbacks_act_in_two_processes_as_in_one(recipe, run, pairs, tmp_path):
    train = recipe["stages"][0]["train"]
    train |= {"logging_steps": 1, "max_steps": 12, "learning_rate": 5e-3}
    scoring = {"metrics": ["loss"], "holdout": 4, "eval_strategy": "steps", "eval_steps": 3}
    recipe["stages"][0]["evaluate"] = scoring
    watching = {"method": "loss_watchdog", "window": 2, "plateau_patience": 2, "min_delta": 0.5}
    recipe["stages"][0]["plugins"] = [{"method": "ema", "decay": 0.5}, watching]
    path = written(tmp_path / "two.yaml", recipe)
    job = {"argv": ["run", str(path), "--output-dir", str(tmp_path / "two")]}
    assert pairs(job) == [[0, 0]], said(job)
    two, one = the_run(tmp_path / "two"), run(doubled(recipe)).folder
    assert_same_curve(two, one, "sft")
    results = [json.loads((r / "stages/sft/result.json").read_text()) for r in (two, one)]
    assert results[0]["steps"] == results[1]["steps"] < 12  # the watchdog ended both, at one step
    assert results[0]["after"] == pytest.approx(results[1]["after"], rel=1e-4, abs=1e-6)
    # The averaged weights, not the trained ones, are the result of both.
    ours, theirs = (weights_of(r) for r in (two, one))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    plain = copy.deepcopy(doubled(recipe))
    plain["stages"][0]["plugins"] = [watching]
    trained = weights_of(run(plain).folder)
    assert any(trained[name] != pytest.approx(value, rel=1e-3, abs=1e-5)
               for name, value in ours.items())  # fmt: skip


def weights_of(run: Path) -> dict[str, list[float]]:
    """Return the values of a stage's adapter, by name."""
    (file,) = run.glob("stages/sft/adapter/*.safetensors")
    return {name: value.flatten().tolist() for name, value in load_file(file).items()}


def steady(recipe: dict) -> dict:
    """Return the recipe with dropout, and so many steps that a signal comes in time."""
    stage = recipe["stages"][0]
    del stage["evaluate"]
    stage["adapter"]["lora_dropout"] = 0.3
    stage["train"] |= {"max_steps": 100, "logging_steps": 1, "save_strategy": "steps",
                       "save_steps": 90, "learning_rate": 1e-3}  # fmt: skip
    return recipe


def test_a_signal_to_one_process_stops_both_and_they_go_on_bit_exactly(recipe, pairs, tmp_path):
    path = written(tmp_path / "recipe.yaml", steady(recipe))
    argv = ["run", str(path), "--output-dir"]
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    stopped = {"argv": [*argv, cut], "when": "train 8/", "kill": [[1, int(signal.SIGTERM)]]}
    resumed = {"argv": [*argv, cut, "--resume"]}
    codes = pairs({"argv": [*argv, whole]}, stopped, resumed)
    assert [first for first, _ in codes] == [0, 143, 0]
    assert "stopped by SIGTERM at the end of step" in said(stopped)
    assert "torchrun --nproc_per_node=2 -m llmft run" in said(stopped)
    assert "continues after step" in said(resumed)
    assert state_of(the_run(Path(cut))) == state_of(the_run(Path(whole)))
    assert curve(the_run(Path(cut)), "sft") == curve(the_run(Path(whole)), "sft")


def test_a_lost_process_ends_the_run_and_another_number_goes_on_where_the_rows_are_kept(
    recipe, pairs, tmp_path, capsys
):
    from llmft.cli import main

    data = steady(recipe)
    data["stages"][0]["train"]["save_steps"] = 10
    path = written(tmp_path / "recipe.yaml", data)
    argv = ["run", str(path), "--output-dir", str(tmp_path / "runs")]
    job = {"argv": argv, "when": "train 20/", "kill": [[1, int(signal.SIGKILL)]]}
    assert pairs(job) == [[5, -signal.SIGKILL]]
    assert "error[E306]" in said(job)
    assert main.main([*argv, "--resume"]) == 6
    told = capsys.readouterr().err
    rows = 2 * data["stages"][0]["train"]["per_device_train_batch_size"]
    assert f"had {rows} rows in 2 processes" in told
    assert f"train.train_batch_size: {rows}" in told
    assert main.main([*argv, "--resume", "--set", f"stages.0.train.train_batch_size={rows}"]) == 0
    assert "not bit-exact: processes 2 -> 1" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_stopped_is_named_and_the_run_ends(rank, recipe, pairs, tmp_path):
    path = written(tmp_path / "recipe.yaml", steady(recipe))
    argv = ["run", str(path), "--output-dir", str(tmp_path / "runs")]
    stopped = {"argv": argv, "when": "train 8/", "kill": [[rank, int(signal.SIGSTOP)]],
               "environment": {"LLMFT_STALL_SECONDS": "9"}, "wait": 1}  # fmt: skip
    other = 1 - rank
    (codes,) = pairs(stopped)
    assert (codes[rank], codes[other]) == (-signal.SIGKILL, 5)
    told = said(stopped, other)
    assert f"note: rank {rank} " in told
    assert f"error[E306] rank {rank} shows no sign of life" in told
    assert "it was last at " in told

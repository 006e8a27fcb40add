"""Runs in two processes whose base is divided: the bits of runs that each have it whole."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import pytest

from tests.end_to_end.test_launched_runs import (
    assert_same_curve,
    curve,
    of_other_methods,
    pairs,
    said,
    state_of,
    steady,
    the_run,
    written,
)

__all__ = ["pairs"]
pytestmark = pytest.mark.extended


def of_each_kind(recipe: dict, folder: Path) -> dict[str, dict]:
    """Return recipes whose passes differ: by layers, by weights' types, by rows, by method."""
    recipe["stages"][0]["train"] |= {"logging_steps": 1, "max_steps": 7, "learning_rate": 0.01}
    others = of_other_methods(copy.deepcopy(recipe), folder)
    pairs_of = others["cpo"]["stages"][0]["data"]
    scored = {"metrics": ["loss", "exact_match"], "holdout": 5, "eval_strategy": "steps",
              "eval_steps": 3, "max_new_tokens": 4, "generate_every": 1}  # fmt: skip
    made = {name: copy.deepcopy(recipe) for name in ("recomputed", "dora", "dpo", "orpo", "reward")}
    stages = {name: data["stages"][0] for name, data in made.items()}
    # An epoch's last step has a pass for one process only.
    stages["recomputed"]["train"] |= {"gradient_checkpointing": True}
    stages["recomputed"]["adapter"] |= {"lora_dropout": 0.3}
    stages["recomputed"]["evaluate"] = scored
    stages["dora"]["adapter"] = {"method": "dora", "r": 2}
    stages["dora"]["train"] |= {"packing": True, "max_length": 40, "per_device_train_tokens": 90}
    made["dora"]["model"]["dtype"] = "bfloat16"
    stages["dpo"] |= {"adapter": {"method": "qlora", "r": 2}, "alignment": {"method": "dpo"},
                      "data": pairs_of, "evaluate": {"metrics": [], "holdout": 5}}  # fmt: skip
    stages["orpo"] |= {"adapter": {"method": "prefix", "num_virtual_tokens": 3},
                       "alignment": {"method": "orpo"}, "data": pairs_of}  # fmt: skip
    del stages["orpo"]["evaluate"]
    stages["reward"] |= {"alignment": {"method": "reward"}, "data": pairs_of,
                         "evaluate": {"metrics": [], "holdout": 5}}  # fmt: skip
    following = copy.deepcopy(stages["recomputed"]) | {"name": "next"}
    following["start_from"] = {"stage": "sft", "merge": True}
    made["recomputed"]["stages"].append(following)
    return {**made, "kto": others["kto"], "streamed": others["sft"]}


def of_full_training(recipe: dict, folder: Path) -> dict[str, dict]:
    """Return recipes that train the layers themselves; the first's sums are taken in one order."""
    recipe["stages"][0]["adapter"] = {"method": "full"}
    train = {"logging_steps": 1, "max_steps": 7, "learning_rate": 1e-3, "max_grad_norm": 0,
             "save_strategy": "steps", "save_steps": 2, "weight_decay": 0.1}  # fmt: skip
    scored = {"metrics": ["loss"], "holdout": 5, "eval_strategy": "steps", "eval_steps": 2,
              "load_best_model_at_end": True}  # fmt: skip
    recipe["stages"][0] |= {"train": {**train, "per_device_train_batch_size": 4}}
    recipe["stages"][0]["evaluate"] = scored
    others = of_other_methods(copy.deepcopy(recipe), folder)
    made = {name: copy.deepcopy(recipe) for name in ("exact", "dpo", "rewards")}
    for name in ("dpo", "rewards"):
        (stage,) = made[name]["stages"]
        stage["data"] = others["cpo"]["stages"][0]["data"]
        stage["train"] |= {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1}
        stage["evaluate"] = {"metrics": [], "holdout": 5}
    made["dpo"]["model"]["dtype"] = "bfloat16"
    made["dpo"]["stages"][0] |= {"alignment": {"method": "dpo"}}
    made["dpo"]["stages"][0]["train"] |= {"gradient_checkpointing": True, "bf16": True}
    made["rewards"]["stages"][0]["alignment"] = {"method": "reward"}
    made["rewards"]["stages"][0]["train"] |= {"optim": "adafactor"}
    return made


def both(recipes: dict[str, dict], pairs, folder: Path) -> dict[str, list[Path]]:
    """Run each recipe in two processes, divided and whole; return the two runs of each."""
    jobs = {}
    for name, data in recipes.items():
        for divided in (True, False):
            for stage in data["stages"]:
                stage["train"]["shard_base"] = divided
            place = folder / f"{name}-{divided}"
            path = written(place.with_suffix(".yaml"), data)
            jobs[place.name] = {"argv": ["run", str(path), "--output-dir", str(place)]}
    codes = dict(zip(jobs, pairs(*jobs.values()), strict=True))
    failed = [said(jobs[name]) + said(jobs[name], 1) for name, code in codes.items() if any(code)]
    assert not failed, "\n".join(failed)
    return {name: [the_run(folder / f"{name}-{asked}") for asked in (True, False)]
            for name in recipes}  # fmt: skip


def test_trained_layers_are_divided_too(recipe, pairs, tmp_path):
    runs = both(of_full_training(recipe, tmp_path), pairs, tmp_path)
    divided, whole = (state_of(run) for run in runs["exact"])
    assert any("checkpoints" in name for name in whole)
    assert divided == whole
    for two, one in runs.values():
        assert_same_curve(two, one, "sft")


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_stopped_run_goes_on_with_whole_bases_bit_exactly(recipe, pairs, tmp_path, adapter):
    stage = steady(recipe)["stages"][0]
    if adapter == "full":
        stage["adapter"] = {"method": "full"}
        stage["train"] |= {"max_grad_norm": 0, "max_steps": 40, "save_steps": 30}
    path = written(tmp_path / "recipe.yaml", recipe)
    argv = ["run", str(path), "--output-dir"]
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    divided = ["--set", "stages.0.train.shard_base=true"]
    stopped = {"argv": [*argv, cut, *divided], "when": "train 8/",
               "kill": [[1, int(signal.SIGTERM)]]}  # fmt: skip
    resumed = {"argv": [*argv, cut, "--resume"]}
    codes = pairs({"argv": [*argv, whole]}, stopped, resumed)
    assert [first for first, _ in codes] == [0, 143, 0], said(stopped) + said(resumed)
    assert "continues after step" in said(resumed)
    ours, theirs = the_run(Path(cut)), the_run(Path(whole))
    assert state_of(ours) == state_of(theirs)
    assert_same_curve(ours, theirs, "sft")  # the gradient's norm is one of norms


def test_a_divided_base_gives_the_bits_of_a_whole_one(recipe, pairs, tmp_path):
    for name, (divided, whole) in both(of_each_kind(recipe, tmp_path), pairs, tmp_path).items():
        assert len(state_of(whole)) > 0
        assert state_of(divided) == state_of(whole), name
        for stage in [path.name for path in (whole / "stages").iterdir()]:
            assert curve(divided, stage) == curve(whole, stage), name
            ours, theirs = (
                json.loads((run / "stages" / stage / "result.json").read_text())
                for run in (divided, whole)
            )
            assert [ours[when] for when in ("before", "after")] == [
                theirs[when] for when in ("before", "after")
            ], name

"""Runs in two processes whose base is divided: the bits of runs that each have it whole."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests.end_to_end.test_launched_runs import (
    curve,
    of_other_methods,
    pairs,
    said,
    state_of,
    the_run,
    written,
)

__all__ = ["pairs"]
pytestmark = pytest.mark.slow


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


def test_a_divided_base_gives_the_bits_of_a_whole_one(recipe, pairs, tmp_path):
    jobs = {}
    for name, data in of_each_kind(recipe, tmp_path).items():
        for divided in (False, True):
            for stage in data["stages"]:
                stage["train"]["shard_base"] = divided
            place = tmp_path / f"{name}-{divided}"
            path = written(place.with_suffix(".yaml"), data)
            jobs[place.name] = {"argv": ["run", str(path), "--output-dir", str(place)]}
    codes = dict(zip(jobs, pairs(*jobs.values()), strict=True))
    failed = [said(jobs[name]) + said(jobs[name], 1) for name, code in codes.items() if any(code)]
    assert not failed, "\n".join(failed)
    for name in {place.rpartition("-")[0] for place in jobs}:
        whole, divided = (the_run(tmp_path / f"{name}-{asked}") for asked in (False, True))
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

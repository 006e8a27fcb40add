"""Callbacks in a run: the stage's result, its scores, its notes, a resume, and later stages."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from llmft.api.errors import StageError

TRAIN = {
    "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01,
    "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5,
}  # fmt: skip
EMA = {"method": "ema", "decay": 0.5}


@pytest.fixture
def go(run, model_folder):
    """Run stages over the tiny model."""

    def go(*stages):
        return run({"recipe": 1, "name": "tiny", "model": {"path": str(model_folder)},
                    "stages": list(stages)})  # fmt: skip

    return go


def stage(tmp_path, *plugins, name="s", **other):
    path = tmp_path / "rows.jsonl"
    if not path.exists():
        rows = [{"prompt": f"say {n}:", "completion": f" {n}"} for n in range(16)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {
        "name": name, "adapter": {"method": "lora", "r": 2}, "alignment": {"method": "sft"},
        "data": {"method": "jsonl", "path": str(path)}, "train": TRAIN,
        "evaluate": {"metrics": ["loss"], "holdout": 0.25}, "plugins": list(plugins),
    }  # fmt: skip
    return {**made, **other}


def test_the_result_is_the_average_and_a_later_stage_starts_from_it(go, tmp_path):
    later = stage(
        tmp_path, name="t", start_from="s", adapter=None,
        train={"max_steps": 1, "learning_rate": 1e-9, "optim": "sgd"},
    )  # fmt: skip
    found = go(stage(tmp_path, EMA), later)
    first, second = found.stages["s"], found.stages["t"]
    saved = load_file(found.folder / "stages/s/checkpoints/step-6/state.safetensors")
    made = load_file(found.folder / "stages/s/adapter/adapter_model.safetensors")
    used = {n: t for n, t in saved.items() if n.startswith("model/")}
    assert len(made) == len(used)
    sums = sorted(float(t.double().sum()) for t in made.values())
    assert sums == sorted(float(t.double().sum()) for t in used.values())
    assert sums != sorted(float(saved[f"trained/{n[6:]}"].double().sum()) for n in used)
    plain = go(stage(tmp_path)).stages["s"]
    assert first.before == plain.before
    assert first.after["loss"] != plain.after["loss"]
    assert first.metrics["train_loss"] == plain.metrics["train_loss"], "training is the same"
    assert second.before["loss"] == pytest.approx(first.after["loss"], rel=1e-5)


def test_a_plateau_ends_the_stage_with_its_scores_and_says_why(go, tmp_path, capsys):
    watch = {"method": "loss_watchdog", "plateau_patience": 2, "window": 1, "min_delta": 99.0}
    found = go(stage(tmp_path, watch))
    made = found.stages["s"]
    assert (made.steps, set(made.after)) == (3, {"loss"})
    assert "ended at step 3 of 6: the loss is" in capsys.readouterr().out
    assert (found.folder / "stages/s/checkpoints/step-3").is_dir(), "its end is saved"


def test_a_spike_stops_the_run_with_its_last_checkpoint(go, tmp_path):
    watch = {"method": "loss_watchdog", "threshold": 1e-6, "patience": 3}
    with pytest.raises(StageError, match=r"E308.*for 3 steps in a row above threshold: 1e-06"):
        go(stage(tmp_path, watch))
    (checkpoints,) = tmp_path.glob("**/stages/s/checkpoints")
    assert [path.name for path in checkpoints.iterdir()] == ["step-2"]


def test_the_lock_names_them(go, tmp_path):
    found = go(stage(tmp_path, EMA, train={"max_steps": 1}))
    lock = json.loads((found.folder / "lock.json").read_text())
    assert ("callback", "ema") in {(p["kind"], p["method"]) for p in lock["plugins"]}

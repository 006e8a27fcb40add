"""Scores during training: they change nothing that is trained, and the best step is the result."""

from __future__ import annotations

import json

import pytest
import torch
from llmft_alignments.reward import Reward
from safetensors.torch import load_file

from llmft.api.errors import LlmftError
from llmft.evaluation import evaluation

TRAIN = {
    "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture
def go(run, model_folder):
    """Run one stage over the tiny model."""
    model = {"path": str(model_folder)}
    return lambda stage: run({"recipe": 1, "name": "tiny", "model": model, "stages": [stage]})


def stage(tmp_path, method="sft", evaluate=None, **train):
    path = tmp_path / "rows.jsonl"
    if not path.exists():
        rows = [
            {"prompt": f"say {n}:", "completion": f" {n}", "chosen": f" {n}", "rejected": " no"}
            for n in range(16)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"sft": "jsonl", "ppo": "prompts"}.get(method, "preference")
    work = {"ppo": {"reward": {"method": "length", "target": 4, "unit": "characters"},
                    "response_length": 4}}  # fmt: skip
    return {
        "name": "s",
        "adapter": {"method": "lora", "r": 2, "lora_dropout": 0.3},
        "alignment": {"method": method, **work.get(method, {})}
        | ({"disable_dropout": False} if method in ("dpo", "orpo", "reward") else {}),
        "data": {"method": data, "path": str(path)},
        "train": TRAIN | train,
        "evaluate": {"metrics": [], "holdout": 0.25, "max_new_tokens": 3} | (evaluate or {}),
    }


def lines(summary, phase):
    text = (summary.folder / "stages/s/metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return [
        {k: v for k, v in line.items() if k != "tokens_per_second"}
        for line in found
        if line["phase"] == phase
    ]


def weights(summary):
    return load_file(summary.folder / "stages/s/adapter/adapter_model.safetensors")


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_a_curve_is_the_same_to_the_bit_with_evaluation_and_without(go, tmp_path, method):
    metrics = {"metrics": ["loss", "exact_match"]} if method == "sft" else {}
    without = go(stage(tmp_path, method, metrics))
    during = {"eval_strategy": "steps", "eval_steps": 2, "generate_every": 1, **metrics}
    scored = go(stage(tmp_path, method, during))
    assert [line["step"] for line in lines(scored, "score")] == [2, 4, 6]
    assert lines(without, "score") == []
    assert lines(scored, "train") == lines(without, "train")
    ours, theirs = weights(scored), weights(without)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert scored.stages["s"].before == without.stages["s"].before
    assert scored.stages["s"].after == without.stages["s"].after
    last = {k: v for k, v in lines(scored, "score")[-1].items() if k in scored.stages["s"].after}
    assert last == pytest.approx(dict(scored.stages["s"].after))
    samples = [(r.folder / "stages/s/samples.jsonl").read_text() for r in (scored, without)]
    assert samples[0] == samples[1]


def test_answers_are_generated_as_rarely_as_is_asked(go, tmp_path):
    asked = {"metrics": ["loss", "f1"], "eval_strategy": "steps", "eval_steps": 1}
    found = lines(go(stage(tmp_path, evaluate=asked)), "score")
    assert [set(line) - {"stage", "step", "phase"} for line in found] == [{"loss"}] * 6
    found = lines(go(stage(tmp_path, evaluate={**asked, "generate_every": 4})), "score")
    assert [line["step"] for line in found if "f1" in line] == [4]


def losses(monkeypatch, *values):
    """Let evaluations find these losses, the first before training."""
    left = list(values)

    def row_losses(model, rows, size, on_batch):
        on_batch(len(rows), len(rows))
        loss = left.pop(0)
        return evaluation.RowLosses([loss] * len(rows), [1] * len(rows), loss)

    monkeypatch.setattr(evaluation, "row_losses", row_losses)


BEST = {
    "metrics": ["loss"], "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
}  # fmt: skip


def test_the_result_is_the_best_step_whose_checkpoint_is_kept(go, tmp_path, monkeypatch):
    losses(monkeypatch, 9.0, 5.0, 2.0, 3.0, 4.0, 3.0, 3.0, 2.0)
    found = go(stage(tmp_path, evaluate=BEST, save_strategy="steps", save_steps=1))
    kept = sorted(p.name for p in (found.folder / "stages/s/checkpoints").glob("step-*"))
    assert kept == ["step-2", "step-6"]
    metrics = found.stages["s"].metrics
    assert (metrics["best_step"], metrics["best_loss"], found.stages["s"].steps) == (2, 2.0, 6)
    saved = load_file(found.folder / "stages/s/checkpoints/step-2/state.safetensors")
    for name, tensor in weights(found).items():
        own = name.replace(".weight", ".default.weight")
        assert torch.equal(saved[f"model/{own}"], tensor)


def test_a_new_best_is_saved_where_nothing_else_is(go, tmp_path, monkeypatch):
    losses(monkeypatch, 9.0, 5.0, 6.0, 4.0, 4.5, 4.4, 4.3, 4.0)
    found = go(stage(tmp_path, evaluate=BEST))
    kept = sorted(p.name for p in (found.folder / "stages/s/checkpoints").glob("step-*"))
    assert kept == ["step-1", "step-3"]
    assert found.stages["s"].metrics["best_step"] == 3


def test_training_stops_after_so_many_evaluations_without_a_better_one(go, tmp_path, monkeypatch):
    losses(monkeypatch, 9.0, 5.0, 4.0, 4.5, 4.4, 4.0)
    asked = {**BEST, "early_stopping_patience": 2}
    found = go(stage(tmp_path, evaluate=asked, save_strategy="epoch"))
    assert found.stages["s"].steps == 4
    assert found.stages["s"].metrics["best_step"] == 2
    kept = sorted(p.name for p in (found.folder / "stages/s/checkpoints").glob("step-*"))
    assert kept == ["step-2", "step-4"], "a stop has its checkpoint, as the last step would"
    log = (found.folder / "log.txt").read_text()
    assert "stopped early, at step 4 of 6: 2 evaluations without a better loss" in log
    assert "the result is that of step 2, the best of 4 evaluations (loss 4)" in log


@pytest.mark.parametrize(("method", "metric", "best"), [
    ("dpo", "preference_accuracy", 1), ("dpo", "preference_margin", None),
    ("reward", "calibration_error", None),
])  # fmt: skip
def test_an_alignments_own_metric_chooses_by_its_own_direction(go, tmp_path, method, metric, best):
    asked = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": metric}
    found = go(stage(tmp_path, method, asked))
    values = {line["step"]: line[metric] for line in lines(found, "score")}
    choose = min if metric == "calibration_error" else max
    assert found.stages["s"].metrics[f"best_{metric}"] == choose(values.values())
    assert values[found.stages["s"].metrics["best_step"]] == choose(values.values())


def test_a_metric_without_a_direction_needs_one(go, tmp_path, monkeypatch):
    asked = {"eval_strategy": "epoch", "metric_for_best_model": "reward_mean"}
    with pytest.raises(LlmftError, match=r"E043.*metric_for_best_model.*this stage scores"):
        go(stage(tmp_path, "reward", asked))
    found = go(stage(tmp_path, "reward", {**asked, "greater_is_better": False}, max_steps=1))
    assert found.stages["s"].metrics["best_step"] == 1
    mistyped = {**asked, "metric_for_best_model": "reward_men", "greater_is_better": True}
    with pytest.raises(LlmftError, match=r"E043.*nothing scores 'reward_men' in this stage"):
        go(stage(tmp_path, "reward", mistyped))
    monkeypatch.setattr(Reward, "greater_is_better", {})  # as a method that declares none
    with pytest.raises(LlmftError, match=r"E043.*'reward_mean' does not say whether more"):
        go(stage(tmp_path, "reward", asked))


def test_ppo_is_scored_during_training_and_its_curve_stays(go, tmp_path):
    small = {"max_steps": 2, "save_strategy": "no"}
    without = go(stage(tmp_path, "ppo", **small))
    asked = {
        "eval_strategy": "steps", "eval_steps": 1, "generate_every": 1,
        "metric_for_best_model": "reward",
    }  # fmt: skip
    scored = go(stage(tmp_path, "ppo", asked, **small))
    assert lines(scored, "train") == lines(without, "train")
    ours, theirs = weights(scored), weights(without)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = [line["reward"] for line in lines(scored, "score")]
    assert scored.stages["s"].metrics["best_reward"] == max(found)
    assert "win_rate" in lines(scored, "score")[0]

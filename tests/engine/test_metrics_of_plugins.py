"""Metrics that are methods of their own: in a run's scores, its best step, and `evaluate`."""

from __future__ import annotations

import json

import pytest
from llmft_metrics.distinct import Distinct
from llmft_metrics.f1 import F1

from llmft.api.errors import LlmftError
from llmft.inference.evaluating import Asked, evaluate

TRAIN = {
    "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1,
}  # fmt: skip
MIXED = {"method": "f1", "name": "overlap"}
METRICS = ["loss", "exact_match", MIXED, "distinct", {"method": "distinct", "name": "d1", "n": 1}]


@pytest.fixture
def go(run, model_folder):
    """Run one stage over the tiny model."""
    model = {"path": str(model_folder)}
    return lambda stage: run({"recipe": 1, "name": "tiny", "model": model, "stages": [stage]})


def stage(tmp_path, data=None, **evaluate):
    path = tmp_path / "rows.jsonl"
    if not path.exists():
        rows = [{"prompt": f"say {n}:", "completion": f" {n}"} for n in range(16)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "s",
        "adapter": {"method": "lora", "r": 2, "lora_dropout": 0.3},
        "alignment": {"method": "sft"},
        "data": data or {"method": "jsonl", "path": str(path)},
        "train": TRAIN,
        "evaluate": {"metrics": METRICS, "holdout": 0.25, "max_new_tokens": 6} | evaluate,
    }


def trained(found):
    text = (found.folder / "stages/s/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
    return [line for line in lines if line["phase"] == "train"], [
        line for line in lines if line["phase"] == "score"
    ]


@pytest.fixture
def varied(monkeypatch):
    """Let every answer be another one of few words."""
    from llmft.evaluation import generation

    monkeypatch.setattr(
        generation, "generate",
        lambda model, tokenizer, prompts, **_: [f"{n} a b a {n}" for n in range(len(prompts))],
    )  # fmt: skip


def test_scores_of_a_run_have_the_metrics_with_rows_and_intervals(go, tmp_path, varied):
    found = go(stage(tmp_path)).stages["s"]
    assert list(found.after) == ["loss", "exact_match", "overlap", "distinct", "d1"]
    # Four answers `n a b a n`: pairs na ab ba an, of which ab and ba are the same in all.
    assert found.after["distinct"] == pytest.approx((4 * 2 + 2) / 16)
    assert found.after["d1"] == pytest.approx((4 + 2) / 20)
    for name in ("overlap", "distinct", "d1"):
        score = found.scores["after"][name]
        assert score["n"] == 4
        assert 0.0 <= score["low"] <= score["value"] <= score["high"] <= 1.0
        assert found.scores["difference"][name]["value"] == pytest.approx(0.0)


def test_they_are_scored_in_training_and_choose_the_best_step(go, tmp_path):
    asked = {"eval_strategy": "steps", "eval_steps": 1, "generate_every": 1}
    without = go(stage(tmp_path, metrics=["loss"]))
    best = go(stage(tmp_path, **asked, metric_for_best_model="distinct"))
    training, scored = trained(best)
    assert training == trained(without)[0], "scoring changes nothing that is trained"
    values = {line["step"]: line["distinct"] for line in scored}
    assert len(values) == 4
    made = best.stages["s"].metrics
    assert made["best_distinct"] == max(values.values())
    assert values[made["best_step"]] == made["best_distinct"]


def test_a_metric_says_whether_less_is_better(go, tmp_path, monkeypatch):
    monkeypatch.setattr(Distinct, "greater_is_better", False)
    asked = {"eval_strategy": "steps", "eval_steps": 1, "generate_every": 1}
    best = go(stage(tmp_path, **asked, metric_for_best_model="d1"))
    values = [line["d1"] for line in trained(best)[1]]
    assert best.stages["s"].metrics["best_d1"] == min(values)


def test_an_interval_is_not_computed_in_training(go, tmp_path, monkeypatch):
    asked = []
    score = Distinct.score_corpus
    monkeypatch.setattr(
        Distinct, "score_corpus", lambda self, some: asked.append(len(some)) or score(self, some)
    )
    during = {"eval_strategy": "steps", "eval_steps": 1, "generate_every": 1}
    go(stage(tmp_path, metrics=["distinct"], **during))
    assert asked == [4, 3, 3, 3, 3, 4, 4, 4, 4, 4, 3, 3, 3, 3]


def test_several_sources_are_scored_alone_and_together(go, tmp_path, varied):
    one = stage(tmp_path)["data"]
    data = {"method": "mix", "sources": [{**one, "name": "a"}, {**one, "name": "b"}]}
    found = go(stage(tmp_path, data, metrics=["distinct", MIXED])).stages["s"]
    assert list(found.after) == [
        "overlap", "distinct", "a_overlap", "a_distinct", "b_overlap", "b_distinct",
    ]  # fmt: skip
    # The second source has the answers of the first again.
    assert found.after["a_distinct"] == pytest.approx(10 / 16)
    assert found.after["distinct"] == pytest.approx(10 / 32)
    assert found.scores["after"]["distinct"]["n"] == 8


def test_rows_without_a_right_answer_have_the_metrics_that_need_none(go, tmp_path):
    data = {"method": "prompts", "path": str(tmp_path / "rows.jsonl")}
    stage(tmp_path)
    task = {"name": "s", "adapter": {"method": "lora", "r": 2}, "data": data,
            "alignment": {"method": "ppo", "reward": {"method": "length", "target": 4},
                          "response_length": 4},
            "train": {**TRAIN, "max_steps": 1},
            "evaluate": {"metrics": ["distinct"], "holdout": 0.25}}  # fmt: skip
    found = go(task).stages["s"]
    assert 0.0 <= found.after["distinct"] <= 1.0


def test_evaluate_takes_the_recipes_metrics_and_any_installed_one(go, tmp_path):
    folder = go(stage(tmp_path, metrics=["loss", {"method": "distinct", "n": 1}])).folder
    found = evaluate(Asked(str(folder)))
    assert list(found.scores) == ["loss", "distinct"]
    told = json.loads((folder / "stages/s/result.json").read_text())["after"]
    assert found.metrics == pytest.approx(told)
    other = evaluate(Asked(str(folder), metrics=("distinct", "f1")))
    assert other.metrics["distinct"] == pytest.approx(told["distinct"]), "with its settings"
    assert list(other.scores) == ["distinct", "f1"]
    assert other.scores["distinct"]["n"] == 4


def test_a_runs_lock_and_fingerprint_hold_the_metrics_plugin(go, tmp_path):
    folder = go(stage(tmp_path, metrics=["exact_match", "distinct"])).folder
    lock = json.loads((folder / "lock.json").read_text())
    metrics = [p["method"] for p in lock["plugins"] if p["kind"] == "metric"]
    assert metrics == ["distinct"], "exact_match is the data's own"


@pytest.mark.parametrize(("value", "said"), [
    (float("nan"), "'score' gives nan, not a finite number ("),
    (2.0, "'score' gives 2.0, outside its own range from 0 to 1 ("),
    ("1", "'score' gives '1', not a finite number"),
    ({"a": 1.0}, "'score' gives a 'dict', not a finite number"),
])  # fmt: skip
def test_what_breaks_the_contract_is_named(go, tmp_path, monkeypatch, value, said):
    monkeypatch.setattr(F1, "score", lambda self, answer: value)
    asked = stage(tmp_path, metrics=[MIXED])
    with pytest.raises(LlmftError, match="E502") as caught:
        go(asked)
    assert "the metric 'f1' (llmft 0.1.0) breaks the contract" in str(caught.value)
    assert said in str(caught.value)

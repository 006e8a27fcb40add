"""The task `evaluate` gives the numbers and the rows of `llmft evaluate`, for adapter and base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmft.cli.main import main
from llmft.engine.session import resume_recipe, run_recipe
from llmft.inference.evaluating import Asked, evaluate
from llmft.planning.planner import plan_recipe
from llmft.recipes.load import load_recipe
from llmft.registry.registry import Registry
from llmft.runs import artifacts

METRICS = ["loss", "exact_match", {"method": "distinct", "n": 1}]
TRAIN = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.02}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exam")
    for name, numbers in (("train", range(20)), ("exam", range(20, 25))):
        rows = [{"prompt": f"say {n}:", "completion": f" {n % 7}"} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def load(home, model_folder):
    def loaded(*stages: dict, name: str = "exam"):
        recipe = {
            "recipe": 1, "name": name, "output_dir": str(home / "runs"),
            "model": {"path": str(model_folder)}, "stages": list(stages),
            "trackers": [{"method": "jsonl"}],
        }  # fmt: skip
        path = home / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        return load_recipe(path, Registry.discover())

    return loaded


@pytest.fixture(scope="module")
def stages(home):
    """A stage that trains with an adapter, and one that scores what it made."""

    def made(adapter: dict, file: str = "exam.jsonl", **task) -> list[dict]:
        settings = {"metrics": METRICS, "max_new_tokens": 6, "base": True} | task
        return [
            {"name": "sft", "adapter": adapter, "alignment": {"method": "sft"}, "train": TRAIN,
             "data": {"method": "jsonl", "path": str(home / "train.jsonl")}},
            {"name": "exam", "start_from": "sft", "task": {"method": "evaluate"} | settings,
             "data": {"method": "jsonl", "path": str(home / file)}},
        ]  # fmt: skip

    return made


@pytest.fixture(scope="module")
def run(load, stages) -> Path:
    return run_recipe(load(*stages({"method": "lora", "r": 4}))).folder


def test_scores_and_rows_are_those_of_llmft_evaluate(run, home):
    made, told = run / "stages/exam", artifacts.result_of(run / "stages/exam")
    for when, file, base in (("after", "rows.jsonl", False), ("before", "base.jsonl", True)):
        asked = Asked(
            str(run), stage="sft", data=str(home / "exam.jsonl"), base=base, max_new_tokens=6,
            metrics=("loss", "exact_match"),
        )  # fmt: skip
        theirs = evaluate(asked)
        assert {name: told[when][name] for name in theirs.metrics} == theirs.metrics
        assert {name: told["scores"][when][name] for name in theirs.scores} == theirs.scores
        assert lines(made / file) == list(theirs.rows)
        assert len(lines(made / file)) == 5
    assert told["before"]["loss"] > told["after"]["loss"] + 0.1
    gained = told["scores"]["difference"]["loss"]
    assert gained["value"] == pytest.approx(told["after"]["loss"] - told["before"]["loss"])
    assert told["generation"]["max_new_tokens"] == 6
    report = (run / "report.html").read_text()
    assert '<th scope="col">base</th>' in report
    assert {"distinct", "evaluate"} <= {
        one["method"] for one in json.loads((run / "lock.json").read_text())["plugins"]
    }
    spoken = lines(made / "metrics.jsonl")
    assert [one["loss"] for one in spoken if "loss" in one] == [
        told["before"]["loss"], told["after"]["loss"]
    ]  # fmt: skip


def test_a_finished_stage_is_scored_again_only_where_its_rows_have_changed(
    load, stages, home, run, capsys
):
    lora = {"method": "lora", "r": 4}
    (home / "grows.jsonl").write_text((home / "exam.jsonl").read_text())
    asked = stages(lora, "grows.jsonl", metrics=["exact_match"], base=False)
    asked[0] = {**asked[1], "name": "exam", "start_from": f"run:{run.name}/sft"}
    first = run_recipe(load(asked[0], name="grows"))
    assert resume_recipe(load(asked[0], name="grows"), first.folder).already_finished
    with (home / "grows.jsonl").open("a") as file:
        file.write('{"prompt": "say 9:", "completion": " 2"}\n')
    again = resume_recipe(load(asked[0], name="grows"), first.folder)
    assert not again.already_finished
    assert len(lines(first.folder / "stages/exam/rows.jsonl")) == 6
    assert len(lines(first.folder / "replaced/exam-1/rows.jsonl")) == 5
    assert main(["compare", str(run), str(first.folder), "--json"]) == 0
    (test,) = json.loads(capsys.readouterr().out)["paired"][0]["tests"]
    assert (test["metric"], test["rows"]) == ("exact_match", 5)


def test_the_base_is_untouched_by_what_was_trained_or_merged(load, stages, home, model_folder):
    trained, exam = stages({"method": "full"}, metrics=["loss"])
    stacked = {
        **trained, "name": "more", "adapter": {"method": "lora", "r": 4},
        "start_from": {"stage": "sft", "merge": True},
    }  # fmt: skip
    second = {**exam, "name": "exam_2", "start_from": "more"}
    plain = {**exam, "name": "plain", "task": {"method": "evaluate"}, "start_from": None}
    made = run_recipe(load(trained, exam, stacked, second, plain, name="bases")).stages
    alone = evaluate(
        Asked(str(model_folder), data=str(home / "exam.jsonl"), metrics=("loss",))
    ).metrics["loss"]
    assert made["plain"].after["loss"] == alone
    for name in ("exam", "exam_2"):
        assert made[name].before["loss"] == alone
        assert made[name].after["loss"] < alone - 0.1
    assert made["exam"].after["loss"] != made["exam_2"].after["loss"]


def test_sources_are_scored_alone_as_often_as_the_mixture_has_their_rows(load, home):
    more = home / "more.jsonl"
    more.write_text("".join((home / "train.jsonl").read_text().splitlines(keepends=True)[:2]))
    sources = [
        {"method": "jsonl", "path": str(path), "name": name}
        for name, path in (("exam", home / "exam.jsonl"), ("more", more))
    ]
    stage = {
        "name": "exam", "task": {"method": "evaluate", "metrics": ["loss", "exact_match"]},
        "data": {"method": "mix", "sources": sources},
    }  # fmt: skip
    scores = run_recipe(load(stage, name="mixed")).stages["exam"].scores["after"]
    counts = {name: score["n"] for name, score in scores.items()}
    assert counts == {
        "loss": 7, "exam_loss": 5, "more_loss": 2,
        "exact_match": 7, "exam_exact_match": 5, "more_exact_match": 2,
    }  # fmt: skip


def test_a_plan_counts_the_answers_of_both_models(load, stages):
    plan = plan_recipe(load(*stages({"method": "full"})))
    exam = plan.stages[1]
    assert (exam.drawn.prompts, exam.drawn.answers, exam.drawn.max_new_tokens) == (5, 10, 6)
    phases = [peak.phase for peak in exam.peaks]
    assert phases[-5:] == [
        "evaluate", "generate", "load the base", "evaluate the base", "generate the base",
    ]  # fmt: skip
    assert exam.followed
    weights = sum(exam.peaks[1].by_kind.values())  # of full fine-tuning the base is a second model
    assert sum(exam.peaks[-1].by_kind.values()) > 1.9 * weights


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("metrics: [exact_mach]", "jsonl", "E043 8:17 did you mean 'exact_match'"),
        ("metrics: [{method: f1, nam: x}]", "jsonl", "E020 8:30 unknown key 'nam'"),
        ("metrics: [loss]", "prompts", "E042 8:17 'loss' is of right answers"),
        ("metrics: [f1]", "jsonl, columns: {text: prompt}", "E042 8:17 'f1' scores answers"),
        ("base: true", "jsonl", "E040 8:13 starts from no stage"),
        ("metrics: []", "jsonl", "E023 8:16 "),
        ("max_new_tokens: 9999\n      metrics: [f1]", "jsonl", "E045 8:23 leaves no room"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(
    task, data, said, home, model_folder, tmp_path, capsys
):
    path = tmp_path / "asked.yaml"
    path.write_text(
        f"recipe: 1\nname: asked\nmodel: {{path: '{model_folder}'}}\nstages:\n  - name: exam\n"
        f"    task:\n      method: evaluate\n      {task}\n"
        f"    data: {{method: {data}, path: '{home / 'exam.jsonl'}'}}\n"
    )
    assert main(["validate", str(path), "--model"]) == 2
    told = capsys.readouterr().err
    code, place, what = said.split(" ", 2)
    assert code in told
    assert f"asked.yaml:{place}" in told
    assert what in told


def test_a_training_stage_is_held_to_the_same_rule(home, model_folder, tmp_path, capsys):
    path = tmp_path / "asked.yaml"
    path.write_text(
        f"recipe: 1\nname: asked\nmodel: {{path: '{model_folder}'}}\nstages:\n  - name: sft\n"
        "    adapter: {method: lora}\n    alignment: {method: sft}\n"
        f"    data: {{method: jsonl, columns: {{text: prompt}}, path: '{home / 'exam.jsonl'}'}}\n"
        "    evaluate: {holdout: 2, metrics: [loss, exact_match]}\n"
    )
    assert main(["validate", str(path)]) == 2
    told = capsys.readouterr().err
    assert "E042" in told
    assert "asked.yaml:9:44" in told

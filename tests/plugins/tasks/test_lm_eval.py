"""Tasks of lm-evaluation-harness find of a run what the harness finds of its merged model."""

from __future__ import annotations

import json

import pytest

from llmft.api.errors import TrustError
from llmft.cli.main import main
from llmft.evaluation.harness import ANSWERS, Harness, measure
from llmft.inference.evaluating import Asked, model_of
from llmft.inference.on_harness import on_harness
from llmft.system import trust
from tests.exporting.conftest import lora_run, rows_file, train  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures by their names

pytest.importorskip("lm_eval", reason="pip install 'llmft[lm-eval]'")

MORE = {
    "choose": (
        "output_type: multiple_choice\nfewshot_split: validation\n"
        "doc_to_text: 'say {{number}}:'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{right}}'\n"
    ),
    "answer": (
        "output_type: generate_until\nfewshot_split: validation\n"
        "doc_to_text: 'say {{number}}:'\ndoc_to_target: '{{choices[right]}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 8, do_sample: false}\n"
    ),
    "read": (
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{choices[0]}}'\n"
    ),
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of tasks with rows of their own."""
    monkeypatch.setenv("LLMFT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"number": n, "choices": [f"{n} and {n + 1}", f"{n}", "no number"], "right": n % 2}
        for n in range(6)
    ]
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    for name, more in MORE.items():
        write(folder, name, more)
    return folder


def write(folder, name: str, more: str) -> None:
    rows = {"validation": str(folder / "rows.json")}
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps({'data_files': rows})}\n"
        f"validation_split: validation\n{more}"
    )


def test_the_numbers_are_those_of_the_harness_on_the_merged_model(lora_run, tasks, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    asked = Harness(tuple(MORE), num_fewshot=1, limit=5, include_path=str(tasks))
    ours = on_harness(Asked(str(lora_run)), asked).measured
    assert main(["merge", str(lora_run), "--output", str(tmp_path / "merged")]) == 0
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "merged"), "dtype": "float32"},
        tasks=list(MORE),
        num_fewshot=1,
        limit=5,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )["results"]
    found = 0
    for task, told in theirs.items():
        for key, value in told.items():
            metric, comma, _ = key.partition(",")
            if comma and isinstance(value, float):
                assert ours.metrics[f"{task}_{metric}"] == pytest.approx(value, rel=1e-4), key
                found += 1
    assert found >= 8
    base = on_harness(Asked(str(lora_run), base=True), asked).measured
    assert abs(base.metrics["read_bits_per_byte"] - ours.metrics["read_bits_per_byte"]) > 0.01
    again = on_harness(Asked(str(lora_run)), asked).measured
    assert (again.asked, again.kept) == (0, ours.asked)
    assert again.metrics == ours.metrics


def test_an_interrupted_task_goes_on_from_its_answers(lora_run, tasks, tmp_path):
    one = model_of(Asked(str(lora_run)))
    asked = Harness(("choose",), include_path=str(tasks))

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    def found(**more):
        return measure(asked, one.model, one.base.tokenizer, batch_size=2, **more)

    kept = {"answers": tmp_path / ANSWERS, "about": "this model"}
    with pytest.raises(KeyboardInterrupt):
        found(**kept, on_answer=stop)
    went_on, whole = found(**kept), found()
    assert (went_on.kept, went_on.asked, whole.asked) == (6, 12, 18)
    assert went_on.metrics == pytest.approx(whole.metrics)


def test_code_of_a_task_runs_only_where_it_is_trusted(lora_run, tasks, tmp_path):
    (tasks / "mine.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n\ndef docs(rows):\n    return rows.select([0])\n"
    )
    write(tasks, "own", "process_docs: !function mine.docs\n" + MORE["choose"])
    asked = Harness(("own",), include_path=str(tasks))
    with pytest.raises(TrustError, match=r"E607.*mine\.py.*--trust file:"):
        on_harness(Asked(str(lora_run)), asked)
    model = model_of(Asked(str(lora_run)))
    with pytest.raises(TrustError, match="E607"):  # as the harness itself asks for it
        measure(asked, model.model, model.base.tokenizer, batch_size=2)
    assert not (tmp_path / "ran").exists()
    trust.grant([f"file:{tasks / 'mine.py'}"])
    try:
        found = on_harness(Asked(str(lora_run)), asked).measured
    finally:
        trust.revoke_all()
    assert len(found.rows) == 1
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("choose", "process_docs: !function os.system\n", "os.system"),
        ("choose", "description: \"{{''.__class__.__mro__}}\"\n", "__class__"),
        ("choose", "metric_list: [{metric: some/one, aggregation: mean, hf_evaluate: true,"
         " higher_is_better: true}]\n", "some/one"),
        ("answer", "generation_kwargs: {until: ['.'], custom_generate: a/b}\n", "custom_generate"),
        ("choose", "unsafe_code: true\n", "never happens here"),
    ],
)  # fmt: skip
def test_a_task_that_reaches_for_other_code_is_refused(lora_run, tasks, name, more, what):
    lines = [line for line in MORE[name].splitlines() if not line.startswith(more.split(":")[0])]
    write(tasks, "bad", "\n".join(lines) + "\n" + more)
    with pytest.raises(TrustError, match=f"E607.*{what}"):
        on_harness(Asked(str(lora_run)), Harness(("bad",), limit=2, include_path=str(tasks)))


def test_a_stage_writes_rows_and_results_and_runs_again_where_its_files_changed(
    lora_run, tasks, tmp_path, capsys
):
    recipe = tmp_path / "asked.yaml"
    recipe.write_text(
        json.dumps(
            {
                "recipe": 1, "name": "asked", "output_dir": str(tmp_path / "out"),
                "model": {"path": "embedded:model"},
                "stages": [{"name": "h", "task": {
                    "method": "lm_eval", "tasks": ["choose", "read"], "limit": 3,
                    "include_path": str(tasks)}}],
            }
        )
    )  # fmt: skip
    assert main(["run", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "choose_acc" in said
    assert "read_bits_per_byte" in said
    [run] = (tmp_path / "out" / "asked").iterdir()
    stage = run / "stages/h"
    rows = [json.loads(line) for line in (stage / "rows.jsonl").read_text().splitlines()]
    assert [row["task"] for row in rows] == ["choose"] * 3 + ["read"] * 3
    told = json.loads((stage / "result.json").read_text())
    assert told["after"]["choose_acc"] == sum(row["acc"] for row in rows[:3]) / 3
    assert json.loads((stage / "lm_eval.json").read_text())["results"]["choose"]
    resume = ["run", str(recipe), "--resume", str(run)]
    capsys.readouterr()
    assert main(resume) == 0
    assert "already" in capsys.readouterr().out
    with (tasks / "rows.json").open("a") as file:
        file.write('\n{"number": 9, "choices": ["9", "8", "7"], "right": 0}')
    assert main(resume) == 0
    assert "runs again" in capsys.readouterr().out


def test_unknown_tasks_are_named_with_their_place(tasks, tmp_path, capsys):
    recipe = tmp_path / "asked.yaml"
    recipe.write_text(
        "recipe: 1\nname: asked\nmodel: {path: 'embedded:model'}\nstages:\n  - name: h\n"
        f"    task:\n      method: lm_eval\n      include_path: {tasks}\n"
        "      tasks: [choose, chose]\n"
    )
    assert main(["validate", str(recipe), "--model"]) == 2
    said = capsys.readouterr().err
    assert "asked.yaml:9:23" in said
    assert "did you mean 'choose'" in said


def test_a_folder_that_the_harness_cannot_list_is_one_error(tasks, tmp_path, capsys):
    (tasks / "odd.yaml").write_text("task: 5\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "recipe: 1\nname: asked\nmodel: {path: 'embedded:model'}\nstages:\n  - name: h\n"
        f"    task: {{method: lm_eval, tasks: [choose], include_path: {tasks}}}\n"
    )
    assert main(["validate", str(recipe), "--model"]) == 4
    said = capsys.readouterr().err
    assert f"error[E224] {recipe}:6:11 stages[0].task: " in said
    assert "cannot be read: TypeError" in said

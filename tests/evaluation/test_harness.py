"""Files of tasks for lm-evaluation-harness are looked at, and not run; answers are kept as JSON."""

from __future__ import annotations

import importlib.metadata
import json
from types import SimpleNamespace

import pytest

from llmft.api.errors import DataError, EnvironmentFault, TrustError
from llmft.cli.main import main
from llmft.evaluation import harness
from llmft.evaluation.harness import Harness, task_files

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
output_type: multiple_choice
"""


def write(folder, name: str, more: str = "", rows: str = "none.json") -> None:
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows) + more)


def names(paths) -> list[str]:
    return [path.name for path in paths]


def test_files_are_those_of_the_tasks_that_are_asked_for(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text("{}")
    for file in ("mine", "theirs"):
        (tmp_path / f"{file}.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "common.yaml").write_text("process_docs: !function mine.docs\n")
    write(tmp_path, "one", "include: common.yaml\ntag: few\n", rows=str(rows))
    write(tmp_path, "two", "tag: [few, more]\n")
    write(tmp_path, "other", "process_results: !function theirs.score\n")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [two, {task: other}]\n")

    found = task_files(str(tmp_path), ["one"])
    assert names(found.yaml) == ["common.yaml", "one.yaml"]
    assert (names(found.code), names(found.data)) == (["mine.py"], ["rows.json"])
    assert found.complete
    assert names(task_files(str(tmp_path), ["few"]).yaml) == ["common.yaml", "one.yaml", "two.yaml"]
    of_group = task_files(str(tmp_path), ["all"])
    assert names(of_group.yaml) == ["all.yaml", "other.yaml", "two.yaml"]
    assert names(of_group.code) == ["theirs.py"]
    assert not task_files(str(tmp_path), ["one", "arc_easy"]).complete


def test_lists_in_lists_name_no_task(tmp_path):
    write(tmp_path, "one")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [[one, one], {task: [[one]]}, one]\n")
    assert names(task_files(str(tmp_path), ["all"]).yaml) == ["all.yaml", "one.yaml"]


@pytest.mark.parametrize("function", ["os.system", "subprocess.run", "nothing", "sub.dir.docs"])
def test_a_function_of_no_file_beside_the_task_is_refused(tmp_path, function):
    write(tmp_path, "one", f"process_docs: !function {function}\n")
    with pytest.raises(TrustError, match=f"E607.*'{function}'"):
        task_files(str(tmp_path), ["one"])


def test_another_file_of_code_makes_another_list_and_another_row_another_fingerprint(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(harness, "version", lambda: "0.4.13")
    rows = tmp_path / "rows.json"
    rows.write_text("{}")
    write(tmp_path, "one", rows=str(rows))
    before = Harness(("one",), include_path=str(tmp_path)).reads()
    assert before["lm-eval"] == "0.4.13"
    rows.write_text('{"more": 1}')
    after = Harness(("one",), include_path=str(tmp_path)).reads()
    changed = [name for name in before if before[name] != after[name]]
    assert [name.endswith("rows.json") for name in changed] == [True]


def test_what_is_not_there_is_said_before_a_run_starts(tmp_path, capsys, monkeypatch):
    with pytest.raises(DataError, match=r"E107.*no folder"):
        task_files(str(tmp_path / "none"), ["one"])

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "recipe: 1\nname: asked\nmodel: {path: 'embedded:model'}\nstages:\n  - name: h\n"
        "    task: {method: lm_eval, tasks: [arc_easy]}\n"
    )
    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["validate", str(recipe)]) == 4
    said = capsys.readouterr().err
    assert "r.yaml:6:" in said
    assert "E206" in said
    assert "pip install lm-eval" in said
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.9.1")
    with pytest.raises(EnvironmentFault, match=r"E223.*0\.4\.9\.1"):
        harness.version()


def asked(*texts: str, **settings) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=(text, settings) if settings else (text, " a")) for text in texts]


def test_answers_are_asked_for_once_and_kept_as_json(tmp_path):
    file, sent = tmp_path / "answers.jsonl", []

    def ask(requests):
        sent.append([one.args[0] for one in requests])
        for one in requests:
            answers.add_partial("loglikelihood", one.args, (-1.5, True))
        return [(-1.5, True) for _ in requests]

    def through(*texts):
        return answers.through("loglikelihood", asked(*texts), ask)

    answers = harness._Answers(file, "a model", lambda *_: None)
    assert through("x", "y") == [(-1.5, True)] * 2
    answers.close()
    with file.open("a") as torn:
        torn.write('{"key": "abc", "answ')
    answers = harness._Answers(file, "a model", lambda *_: None)
    assert through("y", "z", "x") == [(-1.5, True)] * 3
    assert sent == [["x", "y"], ["z"]]
    answers.close()
    assert [set(json.loads(line)) for line in file.read_text().splitlines()[:2]] == [
        {"about"},
        {"key", "answer"},
    ]
    file.write_text(file.read_text()[1:])  # what it is of cannot be read
    answers = harness._Answers(file, "a model", lambda *_: None)
    through("x")
    assert sent[-1] == ["x"]
    answers.close()
    answers = harness._Answers(file, "another model", lambda *_: None)
    through("x")
    assert sent[-1] == ["x"]
    answers.close()


def test_a_drawn_answer_is_not_kept():
    drawn, greedy = asked("x", do_sample=True)[0], asked("x", do_sample=False)[0]
    assert harness._key("generate_until", drawn.args) is None
    assert harness._key("generate_until", greedy.args) is not None
    # So the harness takes a temperature, where nothing is said of do_sample.
    assert harness._key("generate_until", asked("x", temperature=0.7)[0].args) is None
    assert harness._key("generate_until", asked("x", temperature=0.0)[0].args) is not None
    cold = asked("x", do_sample=False, temperature=0.7)[0]
    assert harness._key("generate_until", cold.args) is not None


def test_a_mean_of_rows_has_our_interval_and_another_metric_that_of_its_error():
    results = {
        "one": {"alias": "one", "acc,none": 0.75, "acc_stderr,none": 0.25,
                "bleu,none": 9.0, "bleu_stderr,none": 2.0, "em,strict": 0.0,
                "ppl,none": 7.0, "ppl_stderr,none": "N/A"},
    }  # fmt: skip
    rows = [{"filter": "none", "acc": float(n != 0), "bleu": ["a", "b"]} for n in range(4)]
    metrics, scores = harness._scores(results, {"one": rows}, {"one": {"effective": 4}})
    assert metrics["one_acc_stderr"] == 0.25
    assert "one_ppl_stderr" not in metrics
    assert scores["one_acc"]["low"] == pytest.approx(0.3006, abs=1e-4)  # Wilson, 3 of 4
    assert scores["one_bleu"]["high"] == pytest.approx(9 + 1.959964 * 2)
    assert (scores["one_ppl"]["value"], scores["one_ppl"]["low"]) == (7.0, None)
    assert scores["one_em_strict"]["n"] == 4


@pytest.mark.parametrize(
    "given",
    [{"data_files": {"test": ["https://elsewhere.example/x.json"]}}, {"trust_remote_code": True},
     ["ftp://elsewhere.example/x"]],
)  # fmt: skip
def test_rows_of_other_hosts_and_made_by_code_are_refused(given):
    with pytest.raises(TrustError, match="E607"):
        harness._refuse_other_hosts(given)
    harness._refuse_other_hosts({"data_files": "hf://datasets/a/b/x.json", "path": "/rows.json"})

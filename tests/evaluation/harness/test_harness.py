"""What a task is made of is in its fingerprint, and its scores have intervals."""

from __future__ import annotations

import importlib.metadata

import pytest

from llmft.api.errors import EnvironmentFault
from llmft.cli.main import main
from llmft.evaluation import harness
from llmft.evaluation.harness import Harness
from tests.evaluation.harness.test_task_files import write


@pytest.mark.parametrize("changed", ["rows.json", "mine.py", "one.yaml"])
def test_another_byte_of_a_task_is_another_fingerprint(tmp_path, monkeypatch, changed):
    monkeypatch.setattr(harness, "version", lambda: "0.4.13")
    (tmp_path / "rows.json").write_text("{}")
    (tmp_path / "mine.py").write_text("def docs(rows): return rows")
    write(tmp_path, "one", "process_docs: !function mine.docs\n", rows=str(tmp_path / "rows.json"))
    before = Harness(("one",), include_path=str(tmp_path)).reads()
    assert before["lm-eval"] == "0.4.13"
    with (tmp_path / changed).open("a") as file:
        file.write("\n")
    after = Harness(("one",), include_path=str(tmp_path)).reads()
    found = [name for name in before if before[name] != after[name]]
    assert found == [harness.shown(tmp_path / changed)]


def test_a_harness_that_is_not_there_is_said_before_a_run_starts(tmp_path, capsys, monkeypatch):
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


def test_a_mean_of_rows_has_our_interval_and_another_metric_that_of_its_error():
    results = {
        "one": {"alias": "one", "acc,none": 0.75, "acc_stderr,none": 0.25,
                "bleu,none": 9.0, "bleu_stderr,none": 2.0, "chrf,none": 9.0, "em,strict": 0.0,
                "ppl,none": 7.0, "ppl_stderr,none": "N/A"},
    }  # fmt: skip
    rows = [
        {"filter": "none", "acc": float(n != 0), "bleu": float(n), "chrf": ["a", "b"]}
        for n in range(4)
    ]
    metrics, scores = harness._scores(results, {"one": rows}, {"one": {"effective": 4}})
    assert metrics["one_acc_stderr"] == 0.25
    assert "one_ppl_stderr" not in metrics
    assert scores["one_acc"]["low"] == pytest.approx(0.3006, abs=1e-4)  # Wilson, 3 of 4
    assert scores["one_bleu"]["high"] == pytest.approx(9 + 1.959964 * 2)
    assert (scores["one_ppl"]["value"], scores["one_ppl"]["low"]) == (7.0, None)
    assert scores["one_em_strict"]["n"] == 4

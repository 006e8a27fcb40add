"""`run` and `generate`, with an engine that does nothing: what the command line adds."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmft.api import StageResult
from llmft.api.errors import Interrupted, StageError
from llmft.inference.asking import Asking


@pytest.fixture
def engine(monkeypatch):
    """Stands in for the engine, and keeps what it was asked to run."""
    seen = SimpleNamespace(loaded=None, error=None)

    def run_recipe(loaded, part, **options):
        seen.loaded = loaded
        print("step 1")
        if seen.error is not None:
            raise seen.error
        stages = {"sft": StageResult("policy", steps=2, metrics={"loss": 0.5})}
        return SimpleNamespace(run_id="1", folder=Path("runs/tiny/1"), seconds=1.5, stages=stages)

    fake = SimpleNamespace(run_recipe=run_recipe, Part=lambda first, last: (first, last))
    monkeypatch.setitem(sys.modules, "llmft.engine.session", fake)
    return seen


def test_run_leaves_the_telling_to_the_trackers(llmft, recipe, engine):
    assert llmft("run", recipe) == (0, "step 1\n", "")
    assert engine.loaded.recipe.name == "tiny"


def test_run_applies_overrides_typed_as_in_the_file(llmft, recipe, engine):
    ran = llmft(
        "run", recipe, "--set", "seed=3", "--set", "stages.sft.train.learning_rate=1e-4",
        "--output-dir", 'a "strange: one',
    )  # fmt: skip
    assert ran.code == 0
    loaded = engine.loaded.recipe
    assert loaded.seed == 3
    assert loaded.stages[0].train.learning_rate == 1e-4
    assert loaded.output_dir == 'a "strange: one'


def test_run_gives_its_result_alone_as_json(llmft, recipe, engine):
    ran = llmft("run", recipe, "--json")
    assert ran.data["ok"] is True
    assert ran.data["folder"] == "runs/tiny/1"
    assert ran.data["stages"]["sft"]["metrics"] == {"loss": 0.5}
    assert ran.err == "step 1\n"


def test_run_can_be_quiet(llmft, recipe, engine):
    assert llmft("run", recipe, "--quiet") == (0, "", "")


def test_run_finds_a_shipped_recipe_by_its_name(llmft, engine, monkeypatch, tmp_path, recipe):
    from llmft.cli.commands import shipped

    monkeypatch.setattr(shipped, "_FOLDERS", (tmp_path,))
    assert llmft("run", "recipe").code == 0
    assert engine.loaded.recipe.name == "tiny"
    ran = llmft("run", "recpie")
    assert ran.code == 2
    assert "did you mean 'recipe'?" in ran.err


def test_a_bad_recipe_never_reaches_the_engine(llmft, recipe, engine):
    ran = llmft("run", recipe, "--set", "seed=-1")
    assert ran.code == 2
    assert engine.loaded is None


def test_a_run_that_fails_has_the_exit_code_of_its_error(llmft, recipe, engine):
    engine.error = StageError("E301", "the loss is not finite at step 3", fix="lower learning_rate")
    ran = llmft("run", recipe)
    assert ran.code == 5
    assert ran.err == ("error[E301] the loss is not finite at step 3 — fix: lower learning_rate\n")
    data = llmft("run", recipe, "--json").data
    assert data["exit_code"] == 5
    assert data["errors"][0]["code"] == "E301"


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_an_interrupted_run_exits_as_its_signal_says(llmft, recipe, engine, number, code):
    engine.error = Interrupted(number, "stopped after step 4")
    assert llmft("run", recipe).code == code


def test_a_bug_in_a_run_leaves_its_report_in_the_run_folder(llmft, recipe, engine, tmp_path):
    engine.error = ValueError("oops")
    engine.error.run_folder = tmp_path / "run"
    ran = llmft("run", recipe)
    assert ran.code == 1
    [report] = (tmp_path / "run" / "logs").glob("crash-*.txt")
    assert str(report) in ran.err
    assert "ValueError: oops" in report.read_text()


def test_generate_prints_the_answers(llmft, monkeypatch):
    asked = {}

    def answer(job, run, questions, **options):
        assert job == "job"
        asked.update(run=run, questions=list(questions), **options)
        return ["Paris"]

    monkeypatch.setitem(
        sys.modules,
        "llmft.inference.answering",
        SimpleNamespace(answer=answer, load_run=lambda run, registry: "job"),
    )
    assert llmft("generate", "runs/x", "capital of France?") == (0, "Paris\n", "")
    assert asked == {
        "run": Path("runs/x"), "questions": ["capital of France?"], "stage": None, "step": None,
        "max_new_tokens": 64, "with_adapter": True, "asking": Asking(),
    }  # fmt: skip
    data = llmft("generate", "runs/x", "q?", "--no-adapter", "--stage", "sft", "--json").data
    assert data["answers"] == [{"question": "q?", "answer": "Paris"}]
    assert asked["with_adapter"] is False
    assert asked["stage"] == "sft"
